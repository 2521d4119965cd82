"""What the numbers of one or several runs show, in sentences computed from them, and what they do not show.

A sentence names the checkpoints that it compares and the interval of the difference (`comparison.py` has the
sentences about several runs, `chains.py` those about a stage and its start). Left out: any judgement across
training seeds, which `caveats` states.
"""

from __future__ import annotations

from posttrain.report import chains
from posttrain.report.comparison import comparisons
from posttrain.report.facts import SAMPLING, headline
from posttrain.report.measured import beside
from posttrain.report.story import Story, story
from posttrain.report.text import labels, share, signed, span
from posttrain.rundir.reading import RunData


def findings(runs: list[RunData]) -> list[str]:
    """The headline sentences: for each task one per run, then one per comparison; then runs without scores.
    Never empty.

    A run that starts from another one is described by what it changed, and compared only with runs that start
    from the same run in the same kind of stage.
    """
    names = dict(zip(map(id, runs), labels(runs), strict=True))
    tasks = list(dict.fromkeys(task for run in runs for task in run.tasks))
    found: list[str] = []
    for task in tasks:
        prefix = f"{task}: " if len(tasks) > 1 else ""
        told = [s for run in runs if (s := story(run, names[id(run)], task))]
        found += [prefix + _told(s, runs, names) for s in told]
        families: dict[object, list[Story]] = {}
        for s in told:
            parent = chains.parent_of(s.run, runs)
            families.setdefault(parent and (id(parent[0]), s.run.stage), []).append(s)
        for family in families.values():
            found += [prefix + text for text in comparisons(family)]
    if not found:
        return [_loss_only(run, names[id(run)]) for run in runs]
    return found + [_loss_only(run, names[id(run)]) for run in runs if not run.scores]


def _told(s: Story, runs: list[RunData], names: dict[int, str]) -> str:
    link = chains.chain(s, runs)
    if link is None:
        return describe(s)
    return chains.sentence(link, names[id(link.parent[0])] if link.parent else None)


def describe(s: Story) -> str:
    """The sentence about one run."""
    big, one = f"pass@{s.large}", f"pass@{s.small}"
    last, best = f"step {s.last.step:,}", f"step {s.best.step:,}"
    two = s.small != s.large
    beside = f" ({one} {share(s.last_small.value)})" if two else ""
    if s.verdict == "single":
        return f"{s.label}: {big} {share(s.last.value)}{beside} at {last}, the only scored checkpoint."
    if s.verdict == "peaks last":
        rise = f"{share(s.first.value)} → {share(s.last.value)} ({signed(s.gain.mean)}{span(s.gain)})"
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
    """For a run without pass@k: its other scores in brief, or else what the loss did."""
    if run.scores:
        last = max(run.scores, key=lambda s: s.step)
        rows = [s for s in run.scores if s.checkpoint == last.checkpoint][:4]
        listed = ", ".join(f"{s.task} {s.metric} {s.value:.4g}" for s in rows)
        return f"{name}: {listed} at step {last.step:,}."
    told = headline(run, name)
    if told is not None:
        return told
    lines = [row for row in run.metrics.get("train", []) if isinstance(row.get("loss"), float)]
    if not lines:
        return f"{name}: no checkpoint scored and no step logged yet (status: {run.status})."
    return (
        f"{name}: no checkpoint scored yet; training loss {lines[0]['loss']:.3g} →"
        f" {lines[-1]['loss']:.3g} from step {lines[0]['step']:,} to {lines[-1]['step']:,}."
    )


UNENDED = {
    "running": "the run has not ended, or was killed,",
    "stopped": "the run was stopped",
    "failed": "the run failed",
}
"""Status -> the beginning of a sentence."""


def _rest(run: RunData) -> str:
    """What follows for its last checkpoint."""
    steps = [c.step for c in run.checkpoints if c.complete]
    total = run.run.get("steps")
    if run.stage in SAMPLING or not steps or (isinstance(total, int) and max(steps) >= total):
        return ""
    return "; its last checkpoint is not its end"


def caveats(runs: list[RunData]) -> list[str]:
    """What a reader must not conclude from the headlines."""
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
            found.append(f"{name}: {UNENDED.get(run.status, run.status)}{_progress(run)}{_rest(run)}.")
        for task in run.tasks:
            found += [f"{name}: {text}" for text in beside(run, task)]
            cut = next(reversed(run.rows(task).values()), {}).get("truncated")
            if cut is not None and cut.value > 0.05:
                found.append(f"{name}: {cut.value:.0%} of the {task} completions hit the length limit.")
        found += [f"{name}: {text}." for text in run.run.get("changed_rewards") or ()]
        found += [f"{name}: {text}" for text in run.unread[:3]]
    return found


def _progress(run: RunData) -> str:
    lines = run.metrics.get("train")
    total = run.run.get("steps")
    return f" at step {lines[-1]['step']:,} of {total:,}" if lines and isinstance(total, int) else ""
