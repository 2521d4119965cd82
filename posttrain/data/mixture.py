"""The mixture: which row of which source is example i of a run, for any i, as a pure function.

`m[i] -> (source, row)`. Every prefix realises the weights to within one example a source (order.py), whatever
the number of ranks, workers or restarts: global batch k of size G is positions kG .. kG + G - 1, and the state
of a run is one integer, the position. Proportional weights, the default, show every row once an epoch.
Left out: reading rows (table.py), splitting positions over ranks (the trainer's sampler).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from posttrain.data.order import integer_weights, key_of, permute, permute_array, schedule
from posttrain.errors import RequestError

CODE = 1
"""Raise this when the same inputs give another order: it is part of the fingerprint."""


class Mixture:
    """Sources of `sizes` rows each, mixed. Lists run over the sources, in the recipe's order.

    sizes         rows of each source
    names         their names, each once; part of the seed, so a source keeps its order when others come and go
    weights       shares asked, relative to each other; None: proportional to the (capped) sizes. 0 leaves a source out
    caps          at most so many rows of a source, a seeded choice; None: all
    max_repeats   `check` refuses a run that shows a source more often than this; None: no limit
    weighting     what a weight counts: "examples", or "tokens" (trained ones; then `mean_tokens` a row is needed)
    temperature   T > 0: weights become w^(1/T)
    fingerprints  of the sources' contents

    Memory: 8 bytes a row of capped sources; nothing a row of the others.

    Raises RequestError naming the key, e.g. data.sources[1].weight.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        names: Sequence[str],
        weights: Sequence[float | None] | None = None,
        *,
        seed: int,
        shuffle: bool = True,
        caps: Sequence[int | None] | None = None,
        max_repeats: Sequence[float | None] | None = None,
        weighting: Literal["examples", "tokens"] = "examples",
        mean_tokens: Sequence[float] | None = None,
        temperature: float = 1.0,
        fingerprints: Sequence[str] = (),
    ) -> None:
        none: list[None] = [None] * len(sizes)
        self.names, self.seed, self.shuffle = list(names), seed, shuffle
        self.weighting, self.temperature = weighting, temperature
        self.max_repeats = list(max_repeats or none)
        caps = list(caps or none)
        _check(sizes, self.names, list(weights or none), caps, temperature)
        if weights is not None and weights[0] is None:
            weights = None
        self.sizes = [min(n, n if c is None else c) for n, c in zip(sizes, caps, strict=True)]
        """Rows of each source that are used."""
        self._chosen = [
            _choose(used, n, key_of(seed, name, "cap")) if used < n else None
            for used, n, name in zip(self.sizes, sizes, self.names, strict=True)
        ]
        self.mean_tokens = list(mean_tokens or [1.0] * len(sizes))
        """Trained tokens a row, or 1 where they are not known."""
        if weighting == "tokens" and (not mean_tokens or min(mean_tokens) <= 0):
            raise RequestError(f"data.weighting = tokens needs trained tokens; means: {mean_tokens}")
        self._unit = self.mean_tokens if weighting == "tokens" else [1.0] * len(sizes)
        wanted = self._wanted(weights)
        self.weights = [w / math.fsum(wanted) for w in wanted]
        """Normalised shares asked, temperature applied, in units of `weighting`."""
        self.rounding = 0.0
        """The largest change of a source's share of the examples by rounding to whole numbers."""
        counted = tuple(self.sizes)
        if weights is not None or temperature != 1.0:
            counted, self.rounding = integer_weights([w / u for w, u in zip(wanted, self._unit, strict=True)])
        self._schedule = schedule(counted)
        self.fingerprint = self._fingerprint(sizes, fingerprints)

    def _wanted(self, weights: Sequence[float | None] | None) -> list[float]:
        """Shares asked, in units of `weighting`, not yet normalised."""
        if weights is None:
            wanted = [n * u for n, u in zip(self.sizes, self._unit, strict=True)]
        else:
            wanted = [w for w in weights if w is not None]  # all of them, as checked
        if self.temperature == 1.0:
            return wanted
        # Divided by the largest first: powers of large weights overflow, those of shares do not.
        return [(w / max(wanted)) ** (1 / self.temperature) for w in wanted]

    def __len__(self) -> int:
        """Examples of one epoch: the (capped) rows of the sources that have a weight."""
        return sum(n for n, w in zip(self.sizes, self._schedule.weights, strict=True) if w)

    def __getitem__(self, i: int) -> tuple[int, int]:
        """(source, row) of position i >= 0; i may lie beyond len(self), in a later epoch."""
        s, k = self._schedule[i]
        times, j = divmod(k, self.sizes[s])
        if self.shuffle:
            j = permute(j, self.sizes[s], _pass_key(self.seed, self.names[s], times))
        chosen = self._chosen[s]
        return s, j if chosen is None else int(chosen[j])

    @property
    def shares(self) -> list[float]:
        """Shares of the examples, as they are realised in the long run."""
        return [w / self._schedule.period for w in self._schedule.weights]

    def counts(self, i: int) -> list[int]:
        """Examples of each source among the first i positions, without walking through them one by one."""
        return self._schedule.counts(i)

    def repeats(self, i: int) -> list[float]:
        """How often each source has been shown in the first i positions: 1.0 is every row once."""
        return [c / n for c, n in zip(self.counts(i), self.sizes, strict=True)]

    def realised(self, i: int) -> list[float]:
        """Shares of the first i positions in units of `weighting`, to compare with `weights`."""
        seen = [c * u for c, u in zip(self.counts(i), self._unit, strict=True)]
        total = math.fsum(seen)
        return [x / total if total else 0.0 for x in seen]

    def check(self, total: int) -> None:
        """Raises RequestError where a run of `total` examples shows a source more often than its `max_repeats`."""
        problems = []
        for s, count in enumerate(self.counts(total)):
            limit, size = self.max_repeats[s], self.sizes[s]
            if limit is not None and count > limit * size:
                problems.append(
                    f"data.sources[{s}].max_repeats: {total} examples would show source {self.names[s]!r} "
                    f"{count / size:.4g} times ({count} examples of {size} rows), the limit is {limit:g}. "
                    "Lower its weight, train for fewer examples, or raise the limit"
                )
        if problems:
            raise RequestError("\n".join(problems))

    def _fingerprint(self, sizes: Sequence[int], fingerprints: Sequence[str]) -> str:
        """Names the order of the examples, and with the sources' fingerprints their contents."""
        described = {
            "code": CODE,
            "names": self.names,
            "rows": list(sizes),
            "used": self.sizes,
            "sources": list(fingerprints),
            "weights": self._schedule.weights,
            "weighting": self.weighting,
            "temperature": self.temperature,
            "seed": self.seed,
            "shuffle": self.shuffle,
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _choose(k: int, n: int, key: int) -> np.ndarray:
    """k of n rows, by seed, in file order: int64 [k]."""
    return np.sort(permute_array(np.arange(k), n, key))


@lru_cache(maxsize=1024)
def _pass_key(seed: int, name: str, times: int) -> int:
    """The order of a source in its `times`-th pass."""
    return key_of(seed, name, "pass", times)


def _check(
    sizes: Sequence[int],
    names: list[str],
    weights: list[float | None],
    caps: list[int | None],
    temperature: float,
) -> None:
    """Refuses what cannot be mixed."""
    if not names:
        raise RequestError("data.sources is empty; name at least one source")
    for s, (n, name, cap) in enumerate(zip(sizes, names, caps, strict=True)):
        if names.index(name) != s:
            raise RequestError(f"data.sources[{s}].name = {name!r} stands twice")
        if n < 1:
            raise RequestError(f"data.sources[{s}]: source {name!r} has no rows to train on")
        if cap is not None and cap < 1:
            raise RequestError(f"data.sources[{s}].max_examples = {cap} must be at least 1")
    for s, w in enumerate(weights):
        if w is not None and not (math.isfinite(w) and w >= 0):
            raise RequestError(
                f"data.sources[{s}].weight = {w} must be a number of at least 0 (source {names[s]!r})"
            )
    given = [w for w in weights if w is not None]
    if given and len(given) < len(weights):
        s = weights.index(None)
        raise RequestError(
            f"data.sources[{s}].weight is not set, but other sources have a weight; set all or none"
        )
    if given and sum(given) == 0:
        raise RequestError("data.sources: every weight is 0, so nothing would be trained on")
    if not (math.isfinite(temperature) and temperature > 0):
        raise RequestError(f"data.temperature = {temperature} must be above 0")
