"""Labelled rows with what KTO's estimate of the KL needs: each prompt with the reply of another row.

Within a global batch of the run, prompt i gets the reply of row i - 1, and the first prompt that of the last row
(TRL rotates the same way, within a micro-batch). That is a function of the position alone: the same whatever the
micro-batch, the accumulation, the ranks or the restarts. Left out: what the model says of them (kto.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from posttrain.data.tokenize import IGNORED

Key = tuple[int, int]
"""(source, row of the source); of a mismatched row (a number that is no source's, position)."""


class MismatchedRows:
    """`rows` with `mismatch`, a row as they are: `size` rows make a global batch.

    A mismatched row is cut at `max_length` tokens. `source` stands for a source in its key; `known` has the reference's
    log-probabilities by key (see training/reference.py).
    """

    def __init__(
        self, rows: Any, size: int, max_length: int, source: int, known: dict[Key, np.ndarray]
    ) -> None:
        self.rows, self.size, self.max_length = rows, size, max_length
        self.source, self.known = source, known

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        mismatch = self.mismatch(i)
        found = self.known.get((self.source, i))
        if found is not None:
            mismatch["reference"] = found
        return self.rows[i] | {"mismatch": mismatch}

    def mismatch(self, i: int) -> dict[str, Any]:
        """Prompt i with the reply of the row before it in its global batch."""
        place = i % self.size
        size = min(self.size, len(self) - (i - place))  # the last batch of a held-out set
        other = i - place + (place - 1) % size
        row = joined(self.rows[i], self.rows[other], self.max_length)
        return row | {"source": self.source, "row": i}

    def places(self) -> dict[Key, Callable[[], dict[str, Any]]]:
        """What the reference is asked: every row once, every mismatch."""
        own = {(self.source, i): partial(self.mismatch, i) for i in range(len(self))}
        return self.rows.places() | own


def joined(row: dict[str, Any], other: dict[str, Any], max_length: int) -> dict[str, Any]:
    """The prompt of `row` with the reply of `other`: {"input_ids", "labels", "segment_ids": int32 [L], "p": None}.

    The prompt is what stands before the first trained token, the reply the trained tokens with their end of turn.
    At least one token of the reply is left, since `row` itself fits.
    """
    prompt = row["input_ids"][: int(np.argmax(row["labels"] != IGNORED))]
    reply = other["input_ids"][other["labels"] != IGNORED]
    ids = np.concatenate([prompt, reply])[:max_length]
    trained = np.arange(len(ids)) >= len(prompt)
    return {
        "input_ids": ids,
        "labels": np.where(trained, ids, np.int32(IGNORED)),
        "segment_ids": trained.astype(np.int32),
        "p": None,
    }
