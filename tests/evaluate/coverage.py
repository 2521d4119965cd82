"""How often a nominal 95 % interval holds the true mean: `python -m tests.evaluate.coverage` prints a table.

Values of a problem, a cluster and a seed are tied by a Gaussian copula, so that every design has the same
distributions. The old method, the percentile bootstrap over clusters, stands beside ours. Left out: values of
other than proportions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import beta

from posttrain.evaluate.intervals import Interval, interval, paired
from posttrain.evaluate.seeds import over_seeds, seeds_difference

POINTS = 20_000
U = (np.arange(POINTS) + 0.5) / POINTS
QUANTILES: dict[str, np.ndarray] = {
    "uniform": U,
    "beta(.3, .3)": beta.ppf(U, 0.3, 0.3),
    "beta(.2, 1.2)": beta.ppf(U, 0.2, 1.2),
    "beta(1.2, .2)": beta.ppf(U, 1.2, 0.2),
    "0 or 1, .1": (U > 0.9) * 1.0,
    "0 or 1, .5": (U > 0.5) * 1.0,
    "0 or 1, .9": (U > 0.1) * 1.0,
    "half 0, some 1": np.clip((U - 0.5) / 0.3, 0.0, 1.0),
}
"""Name -> quantiles of one problem's value: pass@k of many samples, or right and wrong."""
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Design:
    """What an experiment draws: `kind` is score, pair, recipe or recipes; `size` counts problems or clusters
    (of `problems` problems each, or 1 to twice as many), `seeds` the seeds of a recipe.

    `alike`: correlation within a cluster, of normal scores; `between`: standard deviation of a seed's shift.
    """

    kind: str
    size: int
    problems: int = 1
    unequal: bool = False
    alike: float = 0.0
    seeds: int = 1
    between: float = 0.0

    def __str__(self) -> str:
        if self.seeds > 1:
            what = "a recipe" if self.kind == "recipe" else "two recipes"
            return (
                f"{what}, {self.seeds} seeds, {'no effect' if not self.between else f'sd {self.between:g}'}"
            )
        what = {"score": "score", "pair": "difference"}[self.kind]
        if self.problems == 1:
            return f"{what}, {self.size} problems"
        sizes = f"1..{2 * self.problems}" if self.unequal else f"{self.problems}"
        return f"{what}, {self.size} clusters of {sizes}, r {self.alike:g}"

    @property
    def sizes(self) -> np.ndarray:
        if not self.unequal:
            return np.full(self.size, self.problems)
        return 1 + (np.arange(self.size) * 7) % (2 * self.problems)

    @property
    def of(self) -> np.ndarray:
        return np.repeat(np.arange(self.size), self.sizes)


SHIFT = 0.2
"""Of b against a in normal scores, so that the true difference is not 0."""
SCORES = [
    *(Design("score", n) for n in (10, 30, 100, 300, 1000)),
    *(
        Design("score", n, 5, unequal, alike)
        for alike in (0.3, 1.0)
        for unequal in (False, True)
        for n in (10, 30, 100)
    ),
    Design("score", 1000, 2, True, 0.3),
]
PAIRS = [
    *(Design("pair", n) for n in (10, 30, 100, 300, 1000)),
    *(Design("pair", n, 5, unequal, 0.5) for unequal in (False, True) for n in (10, 30, 100)),
    Design("pair", 1000, 2, True, 0.5),
]
SEEDS = [
    Design(kind, 100, seeds=seeds, between=between)
    for kind in ("recipe", "recipes")
    for between in (0.0, 0.15)
    for seeds in (3, 5, 10)
]


def draw(design: Design, runs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Normal scores of a and b [runs, seeds, M]: b is drawn for pair and recipes only.

    A problem of a cluster shares `alike` of its variance with it. a and b have .75 of a problem's in common;
    with several seeds a fifth of all variance is what one seed does at one problem.
    """
    of, alike = design.of, design.alike
    m = len(of)

    def problem() -> np.ndarray:
        cluster = rng.standard_normal((runs, design.size))[:, of]
        return np.sqrt(alike) * cluster + np.sqrt(1 - alike) * rng.standard_normal((runs, m))

    shared, sides = problem(), []
    for _ in range(1 if design.kind in ("score", "recipe") else 2):
        own = shared if design.kind == "score" else np.sqrt(0.75) * shared + np.sqrt(0.25) * problem()
        z = own[:, None]
        if design.seeds > 1:
            noise = rng.standard_normal((runs, design.seeds, m))
            shift = design.between * rng.standard_normal((runs, design.seeds, 1))
            z = np.sqrt(0.8) * z + np.sqrt(0.2) * noise + shift
        sides.append(z)
    return sides[0], sides[-1] + SHIFT


def ranks(z: np.ndarray) -> np.ndarray:
    """Which of the `POINTS` quantiles a normal score stands for."""
    return np.minimum((ndtr(z) * POINTS).astype(np.int32), POINTS - 1)


def truth(design: Design, quantiles: np.ndarray) -> float:
    """The true mean, or difference of means, over problems and seeds."""
    scores = ndtri(U) * np.sqrt(1 + design.between**2)
    a = float(quantiles[ranks(scores)].mean())
    return a if design.kind in ("score", "recipe") else float(quantiles[ranks(scores + SHIFT)].mean()) - a


def judge(design: Design) -> Callable[[np.ndarray, np.ndarray], Interval]:
    groups = None if design.problems == 1 else [str(i) for i in design.of]
    return {
        "score": lambda a, b: interval(a[0], groups),
        "pair": lambda a, b: paired(a[0], b[0], groups),
        "recipe": lambda a, b: over_seeds(a, groups),
        "recipes": lambda a, b: seeds_difference(a, b, groups),
    }[design.kind]


def coverage(
    design: Design, names: Sequence[str], runs: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Distribution -> share of `runs` experiments whose interval holds the truth: ours, and the bootstrap."""
    one = design.kind in ("score", "recipe")
    first, second = (ranks(z) for z in draw(design, runs, np.random.default_rng(seed)))
    starts, counts, ours = np.cumsum(design.sizes) - design.sizes, resamples(design.size), judge(design)
    shares = {}
    for name in names:
        a, b = QUANTILES[name][first], QUANTILES[name][second]
        found = [ours(x, y) for x, y in zip(a, b, strict=True)]
        sums = np.add.reduceat((a if one else b - a).mean(1), starts, axis=1)
        old = np.quantile(sums @ counts / (design.sizes @ counts), [0.025, 0.975], axis=1)
        bounds = np.array([[f.low for f in found], [f.high for f in found]], dtype=np.float64)
        true = truth(design, QUANTILES[name])
        shares[name] = tuple(
            float(((low - 1e-9 <= true) & (true <= high + 1e-9)).mean()) for low, high in (bounds, old)
        )
    return shares


@lru_cache
def resamples(size: int) -> np.ndarray:
    """How often each unit is in each resample [size, RESAMPLES]; the experiments share them."""
    rng = np.random.default_rng(1)
    return rng.multinomial(size, np.full(size, 1 / size), RESAMPLES).T.astype(np.float64)


def one_recipe(comparisons: int, between: float, seeds: int = 3, seed: int = 0) -> tuple[float, float]:
    """Share of comparisons of two sets of seeds of one recipe that differ by more than their noise; and the
    standard deviation of a seed's mean of pass@256, which is about .9, over 1,000 problems."""
    rng = np.random.default_rng(seed)
    quantiles = beta.ppf(U, 0.45, 0.05)
    called, spreads = 0, []
    for _ in range(comparisons):
        problem = rng.standard_normal(1000)
        shift = between * rng.standard_normal((2 * seeds, 1))
        z = np.sqrt(0.8) * problem + np.sqrt(0.2) * rng.standard_normal((2 * seeds, 1000)) + shift
        v = quantiles[ranks(z)]
        spreads.append(v.mean(1).std(ddof=1))
        found = seeds_difference(v[:seeds], v[seeds:])
        called += not found.low <= 0.0 <= found.high
    return called / comparisons, float(np.sqrt(np.mean(np.square(spreads))))


def row(design: Design, runs: int) -> str:
    shares = coverage(design, [*QUANTILES], runs).values()
    return f"| {design} | " + " | ".join("{:.3f} ({:.2f})".format(*share) for share in shares) + " |"


def main(runs: int) -> None:
    print(f"Coverage of nominal 95 % intervals in {runs} experiments; in brackets that of the bootstrap.\n")
    print("| design | " + " | ".join(QUANTILES) + " |\n|---|" + "---|" * len(QUANTILES))
    designs = [*SCORES, *PAIRS, *SEEDS]
    with ProcessPoolExecutor() as pool:
        for line in pool.map(row, designs, [runs] * len(designs)):
            print(line, flush=True)
    for seeds in (3, 5):
        for between in (0.0, 0.15):
            called, sd = one_recipe(runs, between, seeds)
            print(f"\nOne recipe, {seeds} seeds twice, sd of a seed's mean {sd:.3f}: {called:.3f} called")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
