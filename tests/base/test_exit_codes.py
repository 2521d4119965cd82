"""What a command prints when it fails."""

from __future__ import annotations

import io
import json
import sys

from posttrain.base.exit_codes import say_error


class Pieces(io.StringIO):
    """A stream that remembers what came in one piece."""

    def __init__(self):
        super().__init__()
        self.written = []

    def write(self, text):
        self.written.append(text)
        return super().write(text)


def test_an_error_is_one_line_also_where_other_ranks_write(monkeypatch, tmp_path):
    """Its end came by itself, behind what another rank had written meanwhile."""
    stream = Pieces()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    say_error("out of memory")
    assert stream.written == ["error: out of memory\n"]
    assert "out of memory" in json.loads((tmp_path / "error.json").read_text())["message"]["message"]
