"""The tables and samples of a report as plain values, shared by the page, the Markdown and the terminal.

Left out: scores (`score_tables.py`), pictures (`plots.py`), sentences (`findings.py`), and any markup.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from posttrain.base.files import number
from posttrain.base.printable import printable
from posttrain.recipe import flatten
from posttrain.report.text import both_ends
from posttrain.rundir.reading import RunData
from posttrain.rundir.rollouts import RolloutRow, pick

TEXT_SHOWN = 900
"""Characters of a prompt or completion that the page shows."""
REASON_SHOWN = 200
"""Characters shown of the reason of one component of a reward, or of a dropped row."""
VALUE_SHOWN = 60
"""Characters of the value of one setting in a title or a sentence."""
DROPS_SHOWN = 3
"""Dropped rows shown of each source and reason."""
ABSENT = "–"
PROVENANCE = {
    "status": "Status",
    "error": "Error",
    "stage": "Stage",
    "parent": "Parent",
    "started": "Started",
    "ended": "Ended",
    "seconds": "Seconds",
    "steps": "Steps",
    "command": "Command",
    "commit": "Commit",
    "engine": "Engine",
    "world_size": "Processes",
    "hardware": "Hardware",
    "versions": "Versions",
    "recipe_hash": "Recipe hash",
    "data_fingerprint": "Data fingerprint",
}
"""Keys of run.json that a report shows, and their titles."""


def mixture_rows(run: RunData) -> list[dict[str, Any]]:
    """One row a source: counts as text, drops with their reasons, shares as numbers or None."""
    rows = []
    sources = run.mixture.get("sources")
    for source in sources if isinstance(sources, list) else []:
        if not isinstance(source, dict):
            continue
        dropped = source.get("dropped")
        dropped = dropped if isinstance(dropped, dict) else {}
        dropped = {str(reason): n for reason, n in dropped.items() if isinstance(n, int) and n}
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in dropped.items())
        rows.append(
            {
                "name": printable(source.get("name", "?")),
                "path": str(source.get("path") or source.get("generator") or ""),
                "read": count(source.get("rows_read")),
                "kept": count(source.get("rows_kept")),
                "dropped": f"{sum(dropped.values()):,}" + (f" ({reasons})" if reasons else ""),
                "tokens": count(source.get("tokens")),
                "trained": count(source.get("trained_tokens")),
                "asked": number(source.get("share_asked")),
                "realised": number(source.get("share_realised")),
                "seen": count(source.get("examples_seen")),
                "repeats": count(source.get("repeats")),
            }
        )
    return rows


def dropped_rows(run: RunData) -> list[tuple[str, str, str, str]]:
    """(source, reason, where, detail) of dropped and truncated rows, each on one line.

    mixture.json names a few rows of each reason; runs of older versions name none.
    """
    found = []
    sources = run.mixture.get("sources")
    for source in sources if isinstance(sources, list) else []:
        examples = source.get("dropped_examples") if isinstance(source, dict) else None
        for reason, rows in examples.items() if isinstance(examples, dict) else ():
            named = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
            for row in named[:DROPS_SHOWN]:
                texts = (source.get("name", "?"), reason, row.get("where") or "", row.get("detail") or "")
                found.append(tuple(short(" ".join(str(text).split()), REASON_SHOWN) for text in texts))
    return found


def count(value: Any) -> str:
    """A number with separators; `–` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ABSENT
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def recipe_difference(runs: list[RunData]) -> list[tuple[str, list[str]]]:
    """Recipe keys in which the runs differ: (key, one value per run). Name and output_dir are left out."""
    flat = [{k: v for k, v in flatten(run.recipe).items() if k} for run in runs]
    keys = [k for k in dict.fromkeys(k for f in flat for k in f) if k not in ("name", "output_dir")]
    rows = []
    for key in keys:
        values = [f.get(key, ...) for f in flat]
        if any(v != values[0] or type(v) is not type(values[0]) for v in values[1:]):
            rows.append((key, [ABSENT if v is ... else plain(v) for v in values]))
    return rows


def plain(value: Any) -> str:
    """A value on one line, spelt as in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items()) or ABSENT
    if isinstance(value, list):
        return ", ".join(plain(v) for v in value) or "[]"
    return str(value)


@dataclass(slots=True)
class Sample:
    """A completion to look at: `mark` is right | wrong | cut | failed | none, `note` is what was measured."""

    id: str
    prompt: str
    answer: str
    text: str
    mark: str
    note: str


def sample_groups(run: RunData, task: str, each: int = 3) -> tuple[str, list[tuple[str, list[Sample]]]]:
    """(checkpoint, groups) of the last checkpoint that has samples.

    Exact tasks: highest and lowest probability. Sampled tasks: right, wrong, cut off and unjudged
    completions, each problem at most once in a group.
    """
    for checkpoint in reversed(run.rows(task)):
        rows = run.samples(checkpoint, task)
        if rows:
            exact = [r for r in rows if isinstance(r.get("logp"), (int, float))]
            groups = _by_probability(exact, each) if exact else _by_verdict(rows, each)
            return checkpoint, [(title, found) for title, found in groups if found]
    return "", []


def _by_probability(rows: list[dict[str, Any]], each: int) -> list[tuple[str, list[Sample]]]:
    order = sorted(rows, key=lambda r: -r["logp"])
    groups = [("Most probable answers", order[:each])]
    if len(order) > each:
        groups.append(("Least probable answers", order[: each - 1 : -1][:each]))
    return [(title, [_exact(row) for row in part]) for title, part in groups]


def _exact(row: dict[str, Any]) -> Sample:
    greedy = row.get("greedy")
    right = greedy is not None and str(greedy).strip() == str(row.get("answer")).strip()
    mark = "none" if greedy is None else "right" if right else "wrong"
    text = "" if greedy is None else str(greedy)
    return _sample(row, text, mark, f"p = {math.exp(min(row['logp'], 0.0)):.3g}")


def _by_verdict(rows: list[dict[str, Any]], each: int) -> list[tuple[str, list[Sample]]]:
    groups: dict[str, list[Sample]] = {"Right": [], "Wrong": [], "Cut off": [], "Not judged": []}
    marks = {"Right": "right", "Wrong": "wrong", "Cut off": "cut", "Not judged": "none"}
    for row in rows:
        seen = set()
        for c in row.get("completions") or []:
            value = c.get("value")
            title = "Not judged" if value is None else "Right" if value >= 1.0 else "Wrong"
            title = "Cut off" if c.get("finish") == "length" else title
            if title in seen or len(groups[title]) >= each:
                continue
            seen.add(title)
            note = [str(c.get("status") or ""), str(c.get("reason") or "")]
            note += [f"{c['tokens']} tokens"] if "tokens" in c else []
            note += [f"value {value:g}"] if value is not None and title == "Cut off" else []
            text = ", ".join(part for part in note if part and part != "scored")
            groups[title].append(_sample(row, str(c.get("text", "")), marks[title], text))
        if all(len(found) >= each for found in groups.values()):
            break
    return list(groups.items())


def _sample(row: dict[str, Any], text: str, mark: str, note: str) -> Sample:
    prompt, answer = str(row.get("prompt", "")), str(row.get("answer", ""))
    return Sample(str(row.get("id", "")), short(prompt), short(answer), short(text), mark, note)


def rollout_groups(run: RunData) -> list[tuple[str, list[Sample]]]:
    """Examples from the last rollout files, with the verdict of each component of the reward."""
    return [(title, [_rollout(c) for c in found]) for title, found in pick(run.rollouts)]


def _rollout(c: RolloutRow) -> Sample:
    mark = "none" if c.success is None else "right" if c.success else "cut" if c.cut else "wrong"
    mark = "failed" if mark == "none" and c.failed else mark
    at = [] if c.step is None else [f"{'step' if 'advantage' in c.raw else 'chunk'} {c.step}"]
    where = " · ".join([*at, c.place] if c.place else at)
    note = " · ".join([*c.notes, *(both_ends(part.line, REASON_SHOWN) for part in c.components)])
    answer = ABSENT if c.answer is None else short(c.answer)
    text = both_ends(c.text, TEXT_SHOWN)
    return Sample(printable(where), short(c.prompt), answer, text, mark, note)


def short(text: str, most: int = TEXT_SHOWN) -> str:
    """`text`, or its first `most` characters and how many more there are."""
    if len(text) <= most:
        return printable(text)
    return f"{printable(text[:most])} … ({len(text) - most:,} more characters)"


def told(value: Any) -> str:
    """A value in a sentence: on one line, shortened where it is long."""
    return " ".join(short(plain(value), VALUE_SHOWN).split())


def described(differs: dict[str, Any]) -> str:
    """`temperature 1.5, limit 100`: settings and their values; `no limit` where there is none."""
    return ", ".join(f"no {k}" if v is None else f"{k} {told(v)}" for k, v in differs.items())


def provenance(runs: list[RunData]) -> list[tuple[str, list[str]]]:
    """Where each run comes from: (what, one value per run); rows that are unknown for every run are left
    out."""
    rows = [("Directory", [run.path.name for run in runs])]
    for key, title in PROVENANCE.items():
        values = [run.run.get(key) for run in runs]
        if any(v not in (None, "", {}) for v in values):
            rows.append((title, [ABSENT if v is None else plain(v) for v in values]))
    if any(run.checkpoints for run in runs):
        rows.append(("Checkpoints", [checkpoint_line(run) for run in runs]))
    return rows


def checkpoint_line(run: RunData) -> str:
    """`step-000300, step-000600 (partial)`; a partial one lacks the marker COMPLETE and cannot be loaded."""
    names = [c.name + ("" if c.complete else " (partial)") for c in run.checkpoints]
    return ", ".join(names) or ABSENT
