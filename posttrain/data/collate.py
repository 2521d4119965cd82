"""Rows of a prepared data set to a batch of tensors, padded or padding-free.

Each is a document of the batch. Segments get numbers that are unique in the batch, and the first token of a
document is never trained, because nothing in the document predicts it. A padding-free batch is one sequence
of documents whose position ids restart. transformers isolates such documents only without an attention mask
and without a cache (`use_cache=False`), so no mask is made here. Left out: which rows go together (the
trainer's sampler), padding on the left (generation/).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from posttrain.data.tokens import IGNORED


class Collator:
    """Makes batches of the rows of `TrainRows` and `HeldoutRows`.

    pad_id        the token used for padding
    padding_free  documents are joined into one sequence instead of padded to the longest
    """

    def __init__(self, pad_id: int, padding_free: bool) -> None:
        self.pad_id, self.padding_free = pad_id, padding_free

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch of `rows`: B = 1 and L their total length if padding-free, else B = rows and L the longest.

        input_ids int64 [B, L]. labels int64 [B, L], unshifted, IGNORED where not trained. segment_ids int64
        [B, L], 0 for none, otherwise 1 .. num_segments over the batch. num_segments: int. attention_mask
        int64 [B, L], or position_ids int64 [1, L]. segment_p float32 [num_segments], the row's p for each of
        its segments, if all rows have one. example_ids int64 [rows, 2]: source, and row of the source.
        """
        ids = [np.asarray(row["input_ids"], dtype=np.int64) for row in rows]
        labels = [np.array(row["labels"], dtype=np.int64) for row in rows]
        segments = [np.array(row["segment_ids"], dtype=np.int64) for row in rows]
        counts = [int(part.max(initial=0)) for part in segments]
        before = 0
        for label, part, count in zip(labels, segments, counts, strict=True):
            label[0] = IGNORED
            part[part > 0] += before
            part[label == IGNORED] = 0
            before += count
        batch: dict[str, Any]
        if self.padding_free:
            batch = self._joined(ids, labels, segments)
        else:
            batch = self._padded(ids, labels, segments)
        batch["num_segments"] = before
        if all(row["p"] is not None for row in rows):
            p = np.repeat(np.array([row["p"] for row in rows], dtype=np.float32), counts)
            batch["segment_p"] = torch.from_numpy(p)
        batch["example_ids"] = torch.tensor([[row["source"], row["row"]] for row in rows])
        return batch

    def _padded(self, ids: list, labels: list, segments: list) -> dict[str, torch.Tensor]:
        length = max(len(part) for part in ids)
        ones = [np.ones(len(part), dtype=np.int64) for part in ids]
        return {
            "input_ids": _stack(ids, length, self.pad_id),
            "labels": _stack(labels, length, IGNORED),
            "segment_ids": _stack(segments, length, 0),
            "attention_mask": _stack(ones, length, 0),
        }

    def _joined(self, ids: list, labels: list, segments: list) -> dict[str, torch.Tensor]:
        positions = [np.arange(len(part)) for part in ids]
        return {
            name: torch.from_numpy(np.concatenate(parts)).long()[None]
            for name, parts in (
                ("input_ids", ids),
                ("labels", labels),
                ("segment_ids", segments),
                ("position_ids", positions),
            )
        }


def count_tokens(batch: dict[str, Any]) -> int:
    """Tokens of a collated batch without padding."""
    real = batch.get("attention_mask")
    return batch["input_ids"].numel() if real is None else int(real.sum())


class PairCollator:
    """Makes batches of preference pairs by a `Collator`: first the chosen sides, then the rejected ones."""

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """As `Collator` on 2 x `rows` documents; example_ids int64 [rows, 2]: source and row of each pair.

        With one segment per document, segment i + 1 is the chosen side of pair i and segment rows + i + 1 its
        rejected side.
        """
        sides = [row[side] for side in ("chosen", "rejected") for row in rows]
        batch = self.collator(sides)
        batch["example_ids"] = batch["example_ids"][: len(rows)]
        return batch


def _stack(parts: list[np.ndarray], length: int, fill: int) -> torch.Tensor:
    """int64 [len(parts), length], filled on the right."""
    out = np.full((len(parts), length), fill, dtype=np.int64)
    for row, part in zip(out, parts, strict=True):
        row[: len(part)] = part
    return torch.from_numpy(out)
