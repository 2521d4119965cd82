"""The mixture: which row of which source is example i of a run, for any i, as a pure function.

`m[i] -> (source, row)`. Every prefix realises the weights to within one example per source (order.py),
whatever the number of ranks, workers or restarts: global batch k of size G is positions kG .. kG + G - 1, and
the state of a run is one integer, the position. Proportional weights, the default, show every row once per
epoch. Left out: reading rows (table.py), splitting positions over ranks (the trainer's sampler).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from posttrain.data.order import integer_weights, key_of, permute, permute_array, schedule
from posttrain.errors import RequestError

CODE = 1
"""Raise this when the same inputs give another order: it is part of the fingerprint."""


@dataclass(frozen=True)
class MixedSource:
    """What a mixture needs to know of one source."""

    name: str
    """Unique; part of the seed, so that a source keeps its order when others are added or removed."""
    rows: int
    weight: float | None = None
    """Share of the mixture relative to the others. None on all: proportional to the (capped) rows."""
    cap: int | None = None
    """At most this many rows, a seeded choice. None: all."""
    max_repeats: float | None = None
    """`Mixture.check` refuses a run that shows the source more often than this. None: no limit."""
    mean_tokens: float | None = None
    """Trained tokens of a row on average; needed if `weighting` is "tokens"."""
    fingerprint: str = ""
    """Of the source's contents."""


class Mixture:
    """`sources` in the order of the recipe, mixed. Its lists run over the sources.

    weighting    what a weight counts: "examples", or "tokens" (trained ones)
    temperature  T > 0: weights become w^(1/T)

    Memory: 8 bytes for each row of capped sources; none for the rows of the others.

    Raises RequestError naming the key, e.g. data.sources[1].weight.
    """

    def __init__(
        self,
        sources: Sequence[MixedSource],
        *,
        seed: int,
        shuffle: bool = True,
        weighting: Literal["examples", "tokens"] = "examples",
        temperature: float = 1.0,
    ) -> None:
        _check(sources, weighting, temperature)
        self.names, self.seed, self.shuffle = [s.name for s in sources], seed, shuffle
        self.weighting, self.temperature = weighting, temperature
        self.max_repeats = [s.max_repeats for s in sources]
        self.sizes = [s.rows if s.cap is None else min(s.rows, s.cap) for s in sources]
        """Rows of each source that are used."""
        self._chosen = [
            _choose(used, s.rows, key_of(seed, s.name, "cap")) if used < s.rows else None
            for used, s in zip(self.sizes, sources, strict=True)
        ]
        self._unit = [s.mean_tokens or 1.0 if weighting == "tokens" else 1.0 for s in sources]
        given = [s.weight for s in sources if s.weight is not None]  # all of them or none
        wanted = self._wanted(given)
        self.weights = [w / math.fsum(wanted) for w in wanted]
        """Normalised shares asked, temperature applied, in units of `weighting`."""
        self.rounding = 0.0
        """The largest change of a source's share of the examples by rounding to whole numbers."""
        counted = tuple(self.sizes)
        if given or temperature != 1.0:
            counted, self.rounding = integer_weights([w / u for w, u in zip(wanted, self._unit, strict=True)])
        self._schedule = schedule(counted)
        self.fingerprint = self._fingerprint(sources)

    def _wanted(self, given: list[float]) -> list[float]:
        """Shares asked, in units of `weighting`, not yet normalised."""
        wanted = given or [n * u for n, u in zip(self.sizes, self._unit, strict=True)]
        if self.temperature == 1.0:
            return wanted
        # Divided by the largest first, because powers of large weights overflow and those of shares do not.
        return [(w / max(wanted)) ** (1 / self.temperature) for w in wanted]

    def __len__(self) -> int:
        """Examples of one epoch: the (capped) rows of the sources whose weight is not 0."""
        return sum(n for n, w in zip(self.sizes, self._schedule.weights, strict=True) if w)

    def __getitem__(self, i: int) -> tuple[int, int]:
        """(source, row) of position i >= 0; from len(self) on in later epochs."""
        s, k = self._schedule[i]
        times, j = divmod(k, self.sizes[s])
        if self.shuffle:
            j = permute(j, self.sizes[s], _pass_key(self.seed, self.names[s], times))
        chosen = self._chosen[s]
        return s, j if chosen is None else int(chosen[j])

    @property
    def shares(self) -> list[float]:
        """Shares of the examples over a long run."""
        return [w / self._schedule.period for w in self._schedule.weights]

    def counts(self, i: int) -> list[int]:
        """Examples of each source among the first i positions."""
        return self._schedule.counts(i)

    def repeats(self, i: int) -> list[float]:
        """How often each source is shown in the first i positions: 1.0 is every row once."""
        return [c / n for c, n in zip(self.counts(i), self.sizes, strict=True)]

    def realised(self, i: int) -> list[float]:
        """Shares of the first i positions in units of `weighting`, to compare with `weights`."""
        seen = [c * u for c, u in zip(self.counts(i), self._unit, strict=True)]
        total = math.fsum(seen)
        return [x / total if total else 0.0 for x in seen]

    def check(self, total: int) -> None:
        """Raises RequestError if a run of `total` examples exceeds the `max_repeats` of a source."""
        problems = []
        for s, count in enumerate(self.counts(total)):
            limit, size = self.max_repeats[s], self.sizes[s]
            if limit is not None and count > limit * size:
                problems.append(
                    f"data.sources[{s}].max_repeats: {total} examples would show source {self.names[s]!r} "
                    f"{count / size:.4g} times ({count} examples of {size} rows), but the limit is "
                    f"{limit:g}. Lower its weight, train for fewer examples, or raise the limit"
                )
        if problems:
            raise RequestError("\n".join(problems))

    def _fingerprint(self, sources: Sequence[MixedSource]) -> str:
        """Identifies the order of the examples and, by the fingerprints of the sources, their contents."""
        described = {
            "code": CODE,
            "names": self.names,
            "rows": [s.rows for s in sources],
            "used": self.sizes,
            "sources": [s.fingerprint for s in sources],
            "weights": self._schedule.weights,
            "weighting": self.weighting,
            "temperature": self.temperature,
            "seed": self.seed,
            "shuffle": self.shuffle,
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _choose(k: int, n: int, key: int) -> np.ndarray:
    """k of n rows, chosen by seed, in file order: int64 [k]."""
    return np.sort(permute_array(np.arange(k), n, key))


@lru_cache(maxsize=1024)
def _pass_key(seed: int, name: str, times: int) -> int:
    """The key of the order of a source in its `times`-th pass."""
    return key_of(seed, name, "pass", times)


def _check(sources: Sequence[MixedSource], weighting: str, temperature: float) -> None:
    """Refuses what cannot be mixed."""
    if not sources:
        raise RequestError("data.sources is empty; name at least one source")
    names = [s.name for s in sources]
    for i, s in enumerate(sources):
        if names.index(s.name) != i:
            raise RequestError(f"data.sources[{i}].name = {s.name!r} is used twice")
        if s.rows < 1:
            raise RequestError(f"data.sources[{i}]: source {s.name!r} has no rows to train on")
        if s.cap is not None and s.cap < 1:
            raise RequestError(f"data.sources[{i}].max_examples = {s.cap} must be at least 1")
    _check_weights(sources)
    if not (math.isfinite(temperature) and temperature > 0):
        raise RequestError(f"data.temperature = {temperature} must be above 0")
    means = [s.mean_tokens for s in sources]
    if weighting == "tokens" and not all(mean and mean > 0 for mean in means):
        raise RequestError(f"data.weighting = tokens needs trained tokens in every source; means: {means}")


def _check_weights(sources: Sequence[MixedSource]) -> None:
    for i, s in enumerate(sources):
        if s.weight is not None and not (math.isfinite(s.weight) and s.weight >= 0):
            raise RequestError(
                f"data.sources[{i}].weight = {s.weight} must be a number of at least 0 (source {s.name!r})"
            )
    given = [s.weight for s in sources]
    known = [weight for weight in given if weight is not None]
    if known and len(known) < len(given):
        raise RequestError(
            f"data.sources[{given.index(None)}].weight is not set, but other sources have a weight; "
            "set all or none"
        )
    if known and sum(known) == 0:
        raise RequestError("data.sources: every weight is 0, so nothing would be trained on")
