"""The files of reference log-probabilities: a damaged one is not used, whichever byte it is."""

from __future__ import annotations

import numpy as np
import pytest

from posttrain.training.reference import ReferenceStore


@pytest.fixture
def store(tmp_path):
    store = ReferenceStore(tmp_path / "cache", tmp_path / "run", ["name"])
    known = {(0, row): np.array([-row - 0.5, -2.0 * row], dtype=np.float32) for row in range(3)}
    store.save(known, set(known))
    return store


def values(store) -> dict:
    return {key: value.tolist() for key, value in store.load().items()}


def test_every_flipped_byte(store, tmp_path, caplog):
    """Rows and values are those that were written, or none; the copy stands in."""
    whole = values(store)
    assert whole == {(0, row): [-row - 0.5, -2.0 * row] for row in range(3)}
    cached, own = tmp_path / "cache/name.npz", tmp_path / "run/name.npz"
    content = own.read_bytes()
    own.unlink()
    unread = 0
    for i in range(len(content)):
        cached.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        found = values(store)
        assert found in (whole, {}), i
        unread += not found
    assert unread > len(content) / 2 and caplog.text.count("is damaged and not used") == unread
    own.write_bytes(content)
    assert values(store) == whole


@pytest.mark.parametrize("content", [b"", b"7", b"PK\x03\x04"])
def test_other_content(store, tmp_path, content):
    whole = values(store)
    (tmp_path / "cache/name.npz").write_bytes(content)
    assert values(store) == whole
