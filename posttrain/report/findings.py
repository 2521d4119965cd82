"""What the numbers of one or several runs show, in sentences computed from them, and what they do not show.

A sentence names the checkpoints that it compares and the interval of the difference (`comparison.py` has the
sentences about several runs, `chains.py` those about a stage and its start). Left out: what the intervals do
not cover, which `caveats` states.
"""

from __future__ import annotations

from posttrain.report import chains
from posttrain.report.comparison import comparisons
from posttrain.report.control_words import remains
from posttrain.report.differences import unpaired
from posttrain.report.facts import SAMPLING, headline
from posttrain.report.measured import apart, beside, measured, renderings
from posttrain.report.numbers import curves
from posttrain.report.sides import Side, sides
from posttrain.report.story import SMALL_CHANGE, Story, mean_curves, story
from posttrain.report.swept import run_names, strangers
from posttrain.report.text import loss_name, share, shared, signed, span, unknown
from posttrain.rundir.reading import RunData

MOST_UNREAD = 3
"""Rows and files of a run that are named where they cannot be read; more are counted."""
UNCLEAR = f", within noise, which does not exclude a fall of {share(SMALL_CHANGE)}"


def findings(runs: list[RunData]) -> list[str]:
    """The headline sentences: for each task one per side, then one per comparison; then runs without scores.
    Never empty.

    A run that starts from another one is described by what it changed, and compared only with runs that start
    from the same run in the same kind of stage.
    """
    return [text for text, _ in _found(runs)]


def headlines(runs: list[RunData]) -> list[str]:
    """Those of the findings that compare; empty where there is nothing to compare."""
    return [text for text, compares in _found(runs) if compares]


def each(runs: list[RunData]) -> list[str]:
    """Those of the findings that speak of one side, or of one run."""
    return [text for text, compares in _found(runs) if not compares]


def _found(runs: list[RunData]) -> list[tuple[str, bool]]:
    """(sentence, whether it compares)."""
    every = sides(runs)
    names = {id(run): side.label for side in every for run in side.runs}
    groups = measured(runs)
    found: list[tuple[str, bool]] = []
    for group in groups:
        prefix = f"{group.title}: " if len(groups) > 1 else ""
        told = [s for side in _within(every, group.runs) if (s := story(side, group.task))]
        found += [(prefix + _told(s, runs, names), False) for s in told]
        families: dict[object, list[Story]] = {}
        for s in told:
            parent = chains.parent_of(s.run, runs)
            families.setdefault(parent and (names[id(parent[0])], s.run.stage), []).append(s)
        for family in families.values():
            found += [(prefix + text, True) for text in [*comparisons(family), *remains(family)]]
    found += [(text, True) for text in apart(groups)]
    left = [run for run in runs if not run.scores] if found else runs
    return found + [(_loss_only(run, names[id(run)]), False) for run in left]


def _within(every: list[Side], runs: list[RunData]) -> list[Side]:
    """The sides, without the seeds that are not among `runs`, or have not ended where others have."""
    inside = {id(run) for run in runs}
    kept = [Side(side.label, [run for run in side.runs if id(run) in inside]) for side in every]
    return [side.settled for side in kept if side.runs]


def _told(s: Story, runs: list[RunData], names: dict[int, str]) -> str:
    link = chains.chain(s, runs)
    if link is None:
        return describe(s)
    return chains.sentence(link, names[id(link.parent[0])] if link.parent else None)


def describe(s: Story) -> str:
    """The sentence about one side: a run, or the mean over the seeds of a recipe."""
    big, one = f"pass@{s.large}", f"pass@{s.small}"
    last, best = f"step {s.last.step:,}", f"step {s.best.step:,}"
    two = s.small != s.large
    beside = f" ({one} {share(s.last_small.value)})" if two else ""
    if s.verdict == "single":
        return f"{s.label}: {big} {share(s.last.value)}{beside} at {last}, the only scored checkpoint."
    if s.verdict == "unranked":
        why = "checks failed on other problems than at other checkpoints, so that no best one is named"
        return f"{s.label}: {big} {share(s.last.value)}{beside} at {last}; {why}."
    if s.verdict == "peaks last":
        noise = "" if s.gain.clear else ", within noise" if s.gain.low is not None else unknown(s.gain)
        rise = f"{share(s.gain.a)} → {share(s.gain.b)} ({signed(s.gain.mean)}{span(s.gain)}{noise})"
        beside = "" if s.gain.left_out else beside  # of all problems
        return f"{s.label}: {big} {rise} from step {s.first.step:,} to {last}, its best{beside}."
    if s.verdict in ("keeps", "unclear"):
        how = {"keeps": f"keeps {big} at", "unclear": f"{big} ends at"}[s.verdict]
        noise = "" if s.verdict == "keeps" else UNCLEAR if s.change.low is not None else unknown(s.change)
        small = s.last_small.value if s.change_small is None else s.change_small.b
        return (
            f"{s.label}: {how} {share(s.change.b)} (best {share(s.change.a)} at {best};"
            f" {share(s.change.mean)}{span(s.change)}{noise})"
            + (f", with {one} {share(small)}." if two else ".")
        )
    move = f"{share(s.change.a)} → {share(s.change.b)} ({share(s.change.mean)}{span(s.change)})"
    small = s.change_small
    if not two or small is None or not small.known:
        return f"{s.label}: {big} falls {move} from its best at {best} to {last}."
    on = shared(small) if small.problems != s.change.problems else ""
    return (
        f"{s.label}: {one} {share(small.a)} → {share(small.b)}{on} while {big} falls"
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
    found = strangers(runs)
    if any(s.low is not None for run in runs for s in run.scores):
        found.append(_intervals(sides(runs)))
    found += _entropy(sides(runs)) + _uneven(sides(runs)) + renderings(runs)
    for run, name in zip(runs, run_names(runs), strict=True):
        if run.status not in ("finished", "unknown"):
            ended, step = UNENDED.get(run.status, run.status), _progress(run)
            found.append(f"{name}: {ended if step else ended.rstrip(',')}{step}{_rest(run)}.")
        for task in run.tasks:
            found += [f"{name}: {text}" for text in [*beside(run, task), *unpaired(run, task)]]
            cut = next(reversed(run.rows(task).values()), {}).get("truncated")
            if cut is not None and cut.value > 0.05:
                found.append(f"{name}: {cut.value:.0%} of the {task} completions hit the length limit.")
        found += [f"{name}: {text}." for text in run.run.get("changed_rewards") or ()]
        found += [f"{name}: {text}" for text in run.unread[:MOST_UNREAD]]
        if (more := len(run.unread) - MOST_UNREAD) > 0:
            found.append(
                f"{name}: {more:,} more {'rows or files' if more > 1 else 'row or file'} cannot be read."
            )
    return found


def _uneven(every: list[Side]) -> list[str]:
    """Sides whose seeds were scored up to different steps."""
    found = []
    for side in [side.settled for side in every]:
        for task in side.runs[0].tasks:
            ends = [[*curves(run, task).values()][-1:] for run in side.runs]
            steps = [next(iter(end[0].values())).step for end in ends if end]
            common = [next(iter(points.values())).step for points in mean_curves(side.runs, task).values()]
            if len(set(steps)) > 1:
                last = f"step {common[-1]:,}, the last that all have, is" if common else ""
                last = last or "no step is in all of them, and none is"
                found.append(
                    f"{side.title}: its seeds were scored on {task} up to different steps"
                    f" ({', '.join(f'{step:,}' for step in steps)}); {last} compared."
                )
    return found


def _entropy(every: list[Side]) -> list[str]:
    """Which of several sides are cross-entropy under another name."""
    called = [(side, str(side.runs[0].section("loss").get("name", ""))) for side in every]
    plain = [side.label for side, name in called if loss_name(side.runs[0]) != name]
    if not plain or len(every) < 2:
        return []
    return [
        f"The confidence-limited loss with N = 1 is cross-entropy, and compared as such: {'; '.join(plain)}."
    ]


def _intervals(every: list[Side]) -> str:
    """What the intervals of the page cover."""
    several = [side for side in every if len(side.runs) > 1]
    if not several:
        over = "over the test problems, not over training seeds: every curve is one training run"
    elif len(several) == len(every):
        over = "over the test problems; where a sentence names seeds, over problems and seeds"
    else:
        over = "over the test problems; where a sentence names seeds on both sides, over problems and seeds"
    over += ", those of two sides as independent" if several else ""
    return (
        f"Brackets are 95 % intervals {over}; paired where two checkpoints are compared. A best"
        " checkpoint is chosen on the problems it is shown on, which flatters it a little."
    )


def _progress(run: RunData) -> str:
    lines = run.metrics.get("train")
    total = run.run.get("steps")
    return f" at step {lines[-1]['step']:,} of {total:,}" if lines and isinstance(total, int) else ""
