"""KTO: preference optimisation on single replies that are labelled good or bad (arXiv 2402.01306).

`posttrain dpo` with `preference.loss: kto` runs it; a row has a prompt, a reply and a label
(data/shapes/labelled.py).

It does not subclass TRL's KTOTrainer, which estimates the KL within each micro-batch, so that its loss
changes with accumulation and ranks. Here z is the mean of log pi - log ref over the mismatched rows of the
whole global batch, at least 0 and without gradient, computed before the step's first backward. With one
micro-batch on one process the two are equal. Left out: APO's unpaired loss, which has no z.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from posttrain.data.collate import count_tokens
from posttrain.data.tokens import IGNORED
from posttrain.errors import RequestError
from posttrain.losses.preference import kto, with_beta
from posttrain.recipe.sections import Preference
from posttrain.training.metrics import ReplyStats
from posttrain.training.parts import RowParts
from posttrain.training.preference import PreferenceTrainer
from posttrain.training.reference import Key, ReferencedRows, referenced

log = logging.getLogger(__name__)
BALANCE = (1.0, 4 / 3)
"""Range of (weight x number) of good replies over that of bad ones (section 4.2 of the paper)."""


class LabelledFacts:
    """Wraps a `Collator`, for rows with a `mismatch`; P rows are P segments.

    Adds `desirable` bool [P], `reply_tokens` int64 [P] (trained tokens), `mismatch` (a batch of the
    mismatched rows), and `reference` float32 [P] in both if every row has it; `num_tokens`,
    `num_trained_tokens`, and `num_forward_tokens` of the mismatched rows are ints.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, rows: Any) -> dict[str, Any]:
        batch = self._with_reference(rows)
        batch["mismatch"] = self._with_reference([row["mismatch"] for row in rows])
        batch["desirable"] = batch.pop("segment_p") > 0.5
        counted = batch["segment_ids"][:, 1:].reshape(-1)
        batch["reply_tokens"] = torch.bincount(counted, minlength=len(rows) + 1)[1:]
        batch["num_tokens"] = count_tokens(batch)
        batch["num_trained_tokens"] = int(batch["reply_tokens"].sum())
        batch["num_forward_tokens"] = count_tokens(batch["mismatch"])
        return batch

    def _with_reference(self, rows: Any) -> dict[str, Any]:
        batch = self.collator(rows)
        if all("reference" in row for row in rows):
            batch["reference"] = torch.tensor([float(row["reference"][0]) for row in rows])
        return batch


class KtoTrainer(PreferenceTrainer):
    """The loss of single replies; `z` is that of the optimizer step."""

    facts_of = LabelledFacts
    what = "replies"
    z: torch.Tensor

    @classmethod
    def mixed(cls, parts: RowParts, known: dict[Key, Any], batch: int, max_length: int) -> ReferencedRows:
        """As in `DpoTrainer`, and each row with its mismatched row within the global batch of `batch`
        rows."""
        rows, sources = referenced(parts, known), len(parts.prepared.fingerprints)
        prints = [f"mismatched {parts.prepared.mixture.fingerprint} {batch} {max_length}"]
        train, heldout = MismatchedRows(rows.train, batch, max_length, sources, known), None
        if rows.heldout is not None:
            prints.append(f"mismatched {parts.prepared.heldout_table.fingerprint} {max_length}")
            size = len(rows.heldout)
            heldout = MismatchedRows(rows.heldout, size, max_length, sources + 1, known)
        return ReferencedRows(train, heldout, prints)

    def setup_loss(self, given: Preference, parts: RowParts) -> dict[str, ReplyStats]:
        """Sets the loss; returns the windows of what is logged."""
        self.options = with_beta(given)
        check_labels(parts.prepared, parts.rows, self.options)
        return {mode: ReplyStats(self.args.device, parts.prepared.names) for mode in ("train", "heldout")}

    # ---- z -------------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples, device):
        """Replies of the optimizer step; here, before its first loss, `z` is estimated from all of them."""
        with self.inference():
            ratios = [
                self._ratios(self.model_wrapped, self._prepare_inputs(batch["mismatch"]))
                for batch in batch_samples
            ]
        self.z = self._estimate(ratios)
        return super()._get_num_items_in_batch(batch_samples, device)

    def _ratios(self, model, batch: dict[str, Any]) -> torch.Tensor:
        """log pi - log ref of a batch [P]."""
        reference = self.reference_of(batch)
        return self.log_probs(model, batch) - reference

    def _estimate(self, ratios: list[torch.Tensor]) -> torch.Tensor:
        """The mean of `ratios` over all ranks, at least 0: fp32 []. Collective."""
        mine = torch.cat(
            [r.double() for r in ratios] or [torch.zeros(0, dtype=torch.float64, device=self.args.device)]
        )
        total, count = self.reduce(torch.stack([mine.sum(), mine.new_tensor(len(mine))]))
        return (total / count.clamp_min(1)).clamp_min(0).float()

    # ---- the loss ------------------------------------------------------------------------------------------

    def losses(self, model, batch: dict[str, Any]) -> torch.Tensor:
        reference = self.reference_of(batch)
        log_probs = self.log_probs(model, batch)
        return self._losses_of("train", log_probs, reference, self.z, batch)

    def _losses_of(self, mode: str, log_probs, reference, z, batch: dict[str, Any]) -> torch.Tensor:
        """The loss of each reply [P], added to the stats."""
        loss = kto(log_probs, reference, batch["desirable"], z, self.options)
        ratios = (log_probs - reference).detach()
        facts = (log_probs.detach(), ratios, self.options.beta * ratios)
        self.stats[mode].add(loss.detach(), *facts, z, batch)
        return loss

    def measure(self, rows: list[Callable[[], Any]]) -> None:
        """One z for all held-out rows: their log-probabilities first, then the losses."""
        held, ratios = [], []
        for real, batch in self.dealt(rows):
            mismatched = self._ratios(self.model_wrapped, batch["mismatch"])
            reference = self.reference_of(batch)
            log_probs = self.log_probs(self.model_wrapped, batch)
            if real:
                ratios.append(mismatched)
                facts = ("desirable", "reply_tokens", "num_tokens", "example_ids")
                held.append((log_probs, reference, {name: batch[name] for name in facts}))
        z = self._estimate(ratios)
        for log_probs, reference, batch in held:
            self._losses_of("heldout", log_probs, reference, z, batch)


def check_labels(prepared: Any, total: int, o: Preference) -> None:
    """Logs a warning where the weights of good and bad replies do not balance their numbers.

    Raises:
        RequestError: all rows have the same label.
    """
    shown = prepared.mixture.counts(total)
    tables = list(zip(prepared.names, prepared.tables, strict=True))
    good = [int((table.p > 0.5).sum()) for _, table in tables]
    rows = [len(table) for _, table in tables]
    if sum(good) in (0, sum(rows)):
        raise RequestError(
            f"preference.loss = kto needs good and bad replies: of {sum(rows)} rows {sum(good)} are good and "
            f"{sum(rows) - sum(good)} bad; check columns.label of "
            f"{', '.join(repr(name) for name, _ in tables)}"
        )
    n_good = sum(s * g / n for s, g, n in zip(shown, good, rows, strict=True))
    n_bad = sum(s * (n - g) / n for s, g, n in zip(shown, good, rows, strict=True))
    above, below = o.desirable_weight * n_good, o.undesirable_weight * n_bad
    if not below * (BALANCE[0] - 1e-9) <= above <= below * (BALANCE[1] + 1e-9):
        advice = ""
        if n_good and n_bad:
            low, high = (side * below / n_good for side in BALANCE)
            advice = f"; set preference.desirable_weight between {low:.3g} and {high:.3g}"
        log.warning(
            "training on about %.0f good and %.0f bad replies, weighted %.3g to %.3g; the KTO paper "
            "recommends a ratio between 1 and 4/3%s",
            n_good,
            n_bad,
            above,
            below,
            advice,
        )


class MismatchedRows:
    """`rows`, each with a row `mismatch`; `size` rows make a global batch.

    A mismatched row is cut at `max_length` tokens. `source` is the source number in its key; `known` has the
    log-probabilities of the reference by key (see training/reference.py).
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
        """The rows whose reference log-probabilities are needed: every row once, every mismatch."""
        own = {(self.source, i): partial(self.mismatch, i) for i in range(len(self))}
        return self.rows.places() | own


def joined(row: dict[str, Any], other: dict[str, Any], max_length: int) -> dict[str, Any]:
    """The prompt of `row` with the reply of `other`.

    Returns {"input_ids", "labels", "segment_ids": int32 [L], "p": None}. The prompt is everything before the
    first trained token, the reply the trained tokens with their end of turn. At least one token of the reply
    is left, since `row` itself fits.
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
