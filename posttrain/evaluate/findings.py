"""What the numbers of one or several runs say, in sentences computed from them, and what they do not say.

A sentence names the checkpoints it compares and the interval of the difference (`comparison.py` has those between
runs). Left out: any judgement over training seeds; `caveats` says that too.
"""

from __future__ import annotations

from posttrain.evaluate.comparison import comparisons
from posttrain.evaluate.rundata import RunData
from posttrain.evaluate.stories import Story, labels, share, signed, span, story


def findings(runs: list[RunData]) -> list[str]:
    """The headline sentences: per task one a run, then one a comparison. Never empty."""
    names = labels(runs)
    tasks = list(dict.fromkeys(task for run in runs for task in run.tasks))
    found: list[str] = []
    for task in tasks:
        prefix = f"{task}: " if len(tasks) > 1 else ""
        told = [s for run, name in zip(runs, names, strict=True) if (s := story(run, name, task))]
        found += [prefix + describe(s) for s in told]
        found += [prefix + text for text in comparisons(told)]
    return found or [_loss_only(run, name) for run, name in zip(runs, names, strict=True)]


def describe(s: Story) -> str:
    """The sentence on one run."""
    big, one = f"pass@{s.large}", f"pass@{s.small}"
    last, best = f"step {s.last.step:,}", f"step {s.best.step:,}"
    two = s.small != s.large
    beside = f" ({one} {share(s.last_small.value)})" if two else ""
    if s.verdict == "single":
        return (
            f"{s.label}: {big} {share(s.last.value)}{beside} at {last}, the only scored checkpoint."
        )
    if s.verdict == "peaks last":
        rise = (
            f"{share(s.first.value)} → {share(s.last.value)} ({signed(s.gain.mean)}{span(s.gain)})"
        )
        return f"{s.label}: {big} {rise} from step {s.first.step:,} to {last}, its best{beside}."
    if s.verdict == "keeps":
        return (
            f"{s.label}: keeps {big} at {share(s.last.value)} (best {share(s.best.value)} at {best};"
            f" {share(s.change.mean)}{span(s.change)})"
            + (f", with {one} {share(s.last_small.value)}." if two else ".")
        )
    move = f"{share(s.best.value)} → {share(s.last.value)} ({share(s.change.mean)}{span(s.change)})"
    if not two or s.best_small is None:
        return f"{s.label}: {big} falls {move} from its best at {best} to {last}."
    return (
        f"{s.label}: {one} {share(s.best_small.value)} → {share(s.last_small.value)} while {big} falls"
        f" {move}, from its best at {best} to {last}."
    )


def _loss_only(run: RunData, name: str) -> str:
    """No pass@k at all: the other scores in brief, else what the loss did."""
    if run.scores:
        last = max(run.scores, key=lambda s: s.step)
        rows = [s for s in run.scores if s.checkpoint == last.checkpoint][:4]
        listed = ", ".join(f"{s.task} {s.metric} {s.value:.4g}" for s in rows)
        return f"{name}: {listed} at step {last.step:,}."
    lines = [row for row in run.metrics.get("train", []) if isinstance(row.get("loss"), float)]
    if not lines:
        return f"{name}: no checkpoint scored and no step logged yet (status: {run.status})."
    return (
        f"{name}: no checkpoint scored yet; training loss {lines[0]['loss']:.3g} →"
        f" {lines[-1]['loss']:.3g} from step {lines[0]['step']:,} to {lines[-1]['step']:,}."
    )


def caveats(runs: list[RunData]) -> list[str]:
    """What the headlines must not be read as."""
    found = []
    names = labels(runs)
    if any(s.low is not None for run in runs for s in run.scores):
        found.append(
            "Bands and brackets are 95 % intervals over the test problems (of the paired difference where two"
            " checkpoints are compared), not over training seeds: every curve is one training run. A best"
            " checkpoint is chosen on the problems it is shown on, which flatters it a little."
        )
    for run, name in zip(runs, names, strict=True):
        if run.status not in ("finished", "unknown"):
            found.append(
                f"{name}: the run is {run.status}{_progress(run)}; its last checkpoint is not its end."
            )
        for task, hashes in run.settings.items():
            if len(hashes) > 1:
                found.append(
                    f"{name}: {task} was scored under {len(hashes)} settings; rows may not compare."
                )
        for task in run.tasks:
            cut = next(reversed(run.rows(task).values()), {}).get("truncated")
            if cut is not None and cut.value > 0.05:
                found.append(
                    f"{name}: {cut.value:.0%} of the {task} completions hit the length limit."
                )
        found += [f"{name}: {text}" for text in run.unread[:3]]
    return found


def _progress(run: RunData) -> str:
    lines = run.metrics.get("train")
    total = run.run.get("steps")
    return (
        f" at step {lines[-1]['step']:,} of {total:,}" if lines and isinstance(total, int) else ""
    )
