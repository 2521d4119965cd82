"""Unions of models: attempts spread evenly over several checkpoints, of one run or of several.

Of N attempts each of M models makes N/M, and a problem is solved where any attempt is: 1 - prod_m
(1-p_m)^(N/M) (the ensembles of arXiv 2502.07154). Only problems that every model was asked count, and only
scores that measured the same. Left out: weights other than equal ones; intervals, for which `union` gives the
value of each problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from posttrain.evaluate.metrics import pass_at_k, pooled_pass_at_n
from posttrain.report.differences import Place
from posttrain.report.measured import own_settings
from posttrain.report.numbers import counts, is_exact
from posttrain.rundir.reading import RunData
from posttrain.rundir.scores import halves

Values = dict[int, dict[str, float]]
"""N -> id of a problem -> its value."""


def union(places: Sequence[Place], task: str, ns: Sequence[int]) -> tuple[dict[int, float], Values]:
    """pass@N of N attempts that are spread evenly over the M checkpoints of `places`: the means over problems
    by N, and the values of each problem.

    Exact tasks: as `metrics.pooled_pass_at_n`, for any N; below M each model makes a part of an attempt.
    Sampled tasks: 1 - prod_m C(n_m - c_m, N/M) / C(n_m, N/M) for the N that are multiples of M, over problems
    of which every model has at least N/M judged completions. N without a value are left out; all are where a
    model has no samples, or the tasks differ in problems, options or sampler (the first half of the settings
    hash).
    """
    tables = [_table(place, task) for place in places]
    asked = {halves(p.settings or own_settings(p.run, task))[0] for p in places}
    ids = sorted(set.intersection(*map(set, tables))) if tables else []
    if not ids or len(asked) > 1:
        return {}, {}
    values: Values = {}
    for n in ns:
        found = _exact(tables, ids, n) if isinstance(tables[0][ids[0]], float) else _counted(tables, ids, n)
        if found:
            values[n] = found
    return {n: float(np.mean([*found.values()])) for n, found in values.items()}, values


Table = dict[str, Any]
"""Id of a problem -> the answer's log-probability, a float, or (right, judged) completions."""


def _table(place: Place, task: str) -> Table:
    """Of one checkpoint; exact problems or sampled ones, never both."""
    exact: Table = {}
    counted: Table = {}
    for row in place.run.samples(place.checkpoint, task, place.settings):
        if is_exact(row):
            exact[str(row.get("id"))] = float(row["logp"])
        elif row.get("completions"):
            counted[str(row.get("id"))] = counts(row)
    return exact or counted


def _exact(tables: list[Table], ids: list[str], n: int) -> dict[str, float]:
    logps = np.array([[table[i] for i in ids] for table in tables])
    return dict(zip(ids, pooled_pass_at_n(logps, n).tolist(), strict=True))


def _counted(tables: list[Table], ids: list[str], n: int) -> dict[str, float]:
    each, rest = divmod(n, len(tables))
    ids = [i for i in ids if all(table[i][1] >= each for table in tables)]
    if rest or not ids:
        return {}
    missed = np.ones(len(ids))
    for table in tables:
        right, judged = zip(*(table[i] for i in ids), strict=True)
        missed *= 1.0 - pass_at_k(right, judged, each)
    return dict(zip(ids, (1.0 - missed).tolist(), strict=True))


def pooled(run: RunData, task: str, ns: list[int]) -> tuple[dict[int, float], int]:
    """`union` of the K checkpoints of one run that have samples, and K; empty with fewer than two.

    The start model (step 0) is left out.
    """
    trained = [name for name, metrics in run.rows(task).items() if next(iter(metrics.values())).step > 0]
    places = [place for name in trained if _table(place := Place(run, name), task)]
    values = union(places, task, ns)[0] if len(places) >= 2 else {}
    return (values, len(places)) if values else ({}, 0)


def of_last(last: Sequence[Place], task: str, ks: list[int], problems: int) -> tuple[dict[int, float], str]:
    """The union of the runs of a picture, and what its note says; empty where it has none.

    `problems`: how many were scored.
    """
    values, each = union(last, task, ks) if len(last) > 1 else ({}, {})
    if not values:
        return {}, ""
    fewest = min(map(len, each.values()))
    over = f", over {fewest:,} of {problems:,} problems" if fewest < problems else ""
    return values, f"dashed: union of the {len(last)} runs, the attempts spread evenly over them{over}"
