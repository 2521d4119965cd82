"""What `posttrain prepare` prints about the rows of a run: sources, drops with their remedies, lengths.

Drawn from the facts that `--json` prints and nothing else. Text of rows, names and files is spelt out where a
terminal would act on it. Left out: preparing the rows (stages/account.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain.base.files import counted
from posttrain.base.printable import printable
from posttrain.data.reasons import REASONS
from posttrain.report.tables import short

WIDEST = 100
"""Columns that a histogram takes at most."""
PLACES = 3
"""Dropped rows named for each reason."""
DETAIL = 300
"""Characters of the detail of a dropped row. The remedy is at its end, so it is rarely cut."""
GAP = 2
"""Columns between two columns of a table."""
LEAST = 16
"""Characters of a place that are always shown."""
UNITS = {"rows": "row", "pairs": "pair", "labelled": "row", "prompts": "prompt"}
"""Shape -> what one of its rows is called."""


def show(facts: dict[str, Any], out: Console, refused: bool) -> None:
    """Prints `facts`, see `account`; the closing line only if the rows are not `refused`."""
    _print_table(out, _source_table(facts))
    for line in _beside(facts):
        out.print(Text(printable(line)))
    lost = list(_lost(_sources(facts)))
    if lost:
        out.print()
        _print_table(out, _drop_table(lost, out.width))
        out.print()
        _print_table(out, _reason_table(dict.fromkeys(reason for _, reason, *_ in lost)))
    for source in _sources(facts):
        if source["lengths"] is None:
            continue
        out.print()
        for line in histogram(facts, source, min(out.width, WIDEST), out.encoding.startswith("utf")):
            out.print(Text(printable(line)))
    out.print()
    if not refused:
        out.print(Text(printable(closing(facts))))
        out.print(Text(printable(f"the run finds them in {facts['cache']}")))


def closing(facts: dict[str, Any]) -> str:
    """`prepared: 7,473 rows, 1.2 M tokens (of which 300 k trained), 234 steps`."""
    trained = facts["trained_tokens"]
    parts = [
        counted(facts["rows"], _unit(facts)),
        f"{amount(facts['tokens'])} tokens" + (f" (of which {amount(trained)} trained)" if trained else ""),
        counted(facts["steps"], "step")
        if facts["samples"] is None
        else f"{counted(facts['examples_total'], 'prompt')} x {facts['samples']} completions to sample",
    ]
    return f"prepared: {', '.join(parts)}"


def histogram(facts: dict[str, Any], source: dict[str, Any], width: int, blocks: bool) -> list[str]:
    """A heading and at most 14 bars of `width` columns: the line of data.max_length is marked, and below it
    stand the rows that were longer. `blocks`: whether the terminal has block characters."""
    found, limit = source["lengths"], facts["max_length"]
    mark = f" <- data.max_length {limit:,}"
    unit = "side of pairs" if facts["shape"] == "pairs" else _unit(facts)
    head = f"lengths of {source['name']}: {counted(found['count'], unit)}, {found['shortest']:,} to "
    head += f"{found['longest']:,} tokens, median {found['median']:,.0f}"
    longer = [
        (n, words)
        for n, words in (
            (source["dropped"].get("overlong", 0), "dropped"),
            (source["truncated"], "cut, counted above"),
        )
        if n
    ]
    labels = [f"{a:,}-{b:,}" if b > a else f"{a:,}" for a, b, _ in found["bins"]]
    every = [*(n for *_, n in found["bins"]), *(n for n, _ in longer)]
    left = max(map(len, [*labels, f"{'> ' if longer else ''}{limit:,}"]))
    right = max(len(f"{n:,}") for n in every)
    room = max(1, width - left - right - 4 - len(mark))
    full, least = ("█", "▏") if blocks else ("#", ".")

    def drawn(label: str, n: int) -> str:
        bar = full * round(room * n / max(every)) or (least if n else "")
        return f"  {label:>{left}} {f'{n:,}':>{right}} {bar}"

    lines = [head]
    inside = False
    for label, (low, high, n) in zip(labels, found["bins"], strict=True):
        line = drawn(label, n)
        if low <= limit <= high:
            inside, line = True, f"{line:<{left + right + 4 + room}}{mark}"
        lines.append(line.rstrip())
    if not inside:
        lines.append(f"  {limit:>{left},} {'':>{right}} <- data.max_length")
    return lines + [f"{drawn(f'> {limit:,}', n)} {words}" for n, words in longer]


def amount(n: int) -> str:
    """`n` in at most seven characters: 45,678, 456 k, 1.2 M, 34 G."""
    if n < 100_000:
        return f"{n:,}"
    scaled, unit = next((n / s, u) for s, u in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")) if n >= s)
    return f"{scaled:.1f} {unit}" if scaled < 10 else f"{scaled:.0f} {unit}"


def _rows_kept(source: dict[str, Any]) -> int:
    return source["rows_read"] - sum(source["dropped"].values())


def _several(facts: dict[str, Any]) -> bool:
    """Whether rows are trained as several examples each (`data.train_on: each`)."""
    return any(source["rows_kept"] != _rows_kept(source) for source in _sources(facts))


def _unit(facts: dict[str, Any]) -> str:
    """What `rows_kept`, `rows` and `examples` count."""
    return "example" if _several(facts) else UNITS[facts["shape"]]


def _sources(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The sources of the mixture, then the held-out one of its own, which has no share."""
    own = facts["heldout_source"]
    return [*facts["sources"], *([own] if own else [])]


def _source_table(facts: dict[str, Any]) -> Table:
    trained, several = facts["trained_tokens"] > 0, _several(facts)
    # without a source that is asked for, shares are not those of the recipe
    mixed = all("share_asked" in s for s in facts["sources"])
    head = ["source", "read", "kept", *(["examples"] if several else []), "tokens"]
    head += ["trained"] if trained else []
    table = _table([*head, *(["share asked", "share", "repeats"] if mixed else [])])
    for s in _sources(facts):
        cells = [s["name"], f"{s['rows_read']:,}", f"{_rows_kept(s):,}"]
        cells += [f"{s['rows_kept']:,}"] if several else []
        cells += [amount(s["tokens"]), *([amount(s["trained_tokens"])] if trained else [])]
        if mixed and "share_asked" in s:
            cells += [f"{s['share_asked']:.1%}", f"{s['share_realised']:.1%}", f"{s['repeats']:.2f}"]
        elif mixed:
            cells += ["held out"]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


BESIDE = {"ignored": "ignored", "unused": "unused", "control_tokens": "texts spell and become"}
"""Counts of a source that are shown below the table -> their words."""


def _beside(facts: dict[str, Any]) -> Iterable[str]:
    """Lines on what is not used of the rows of a source, on control tokens in their texts, and on held-out
    rows."""
    for source in _sources(facts):
        for what, words in BESIDE.items():
            if source[what]:
                counts = ", ".join(f"{key} ({counted(n, 'row')})" for key, n in source[what].items())
                yield f"{source['name']}: {words} {counts}"
        if source["tokenised"]:
            yield f"{source['name']}: tokenised already ({counted(source['tokenised'], 'row')})"
    if held := facts.get("heldout"):
        parts = ", ".join(f"{part['name']} {part['examples']:,}" for part in held["sources"])
        yield f"held out, never trained on: {counted(held['examples'], _unit(facts))} ({parts})"


def _lost(sources: list[dict[str, Any]]) -> Iterable[tuple[str, str, int, float, list[dict[str, str]]]]:
    """(source, reason, rows, their share, the first of them) of what was dropped or truncated."""
    for source in sources:
        counts = dict(source["dropped"]) | ({"truncated": source["truncated"]} if source["truncated"] else {})
        for reason, n in counts.items():
            first = (source["dropped_examples"] or {}).get(reason, [])
            yield source["name"], reason, n, n / max(source["rows_read"], 1), first[:PLACES]


def _drop_table(lost: list[tuple[str, str, int, float, list[dict[str, str]]]], width: int) -> Table:
    """`width` of the terminal: places are cut so that they do not fold."""
    table = _table(["dropped from", "reason", "rows", "share", "first"], texts=(0, 1, 4))
    names, reasons = (max(len(printable(each[k])) for each in lost) for k in (0, 1))
    names = max(12, min(names, width // 5))  # as wide as its heading
    table.columns[0].max_width = names
    counts = max(len(f"{n:,}") for _, _, n, *_ in lost)
    room = width - names - max(6, reasons) - max(4, counts) - 7 - 4 * GAP
    for name, reason, n, share, first in lost:
        places = "\n".join(_place(one, max(LEAST, room)) for one in first)
        cells = (name, reason, f"{n:,}", f"{share:.2%}", places)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _place(one: dict[str, str], room: int) -> str:
    """Where and why, the place cut in the middle to `room` characters with its colon."""
    where, said = printable(one["where"]), short(" ".join(one["detail"].split()), DETAIL)
    if len(where) >= room:
        head = (room - 2) // 3
        where = f"{where[:head]}…{where[-(room - 2 - head) :]}"
    return f"{where}: {said}" if said else where


def _reason_table(reasons: Iterable[str]) -> Table:
    table = _table(["reason", "the row", "what to do"], texts=(0, 1, 2))
    for reason in reasons:
        if reason in REASONS:
            about = REASONS[reason]
            cells = (reason, about.meaning, about.remedy)
            table.add_row(*(Text(printable(cell.replace("`", ""))) for cell in cells))
    return table


def _table(head: list[str], texts: tuple[int, ...] = (0,)) -> Table:
    """`texts`: columns that fold; the others are numbers on the right."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for i, title in enumerate(head):
        if i in texts:
            table.add_column(title, overflow="fold", no_wrap=title == "reason")
        else:
            table.add_column(title, justify="right", no_wrap=True)
    return table


def _print_table(out: Console, table: Table) -> None:
    out.print(table, soft_wrap=False)  # cells fold
