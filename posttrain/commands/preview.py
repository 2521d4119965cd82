"""Shows rows as they will be trained on, for `posttrain check --rows`.

Context is dim, trained tokens are coloured, by segment where the loss has segments. Without colours
(NO_COLOR, a pipe, a dumb terminal) trained text is in brackets. Of a prompt, of which nothing is trained, the
answer that rewards see is shown. A row that a run would refuse is named, and those behind it are shown, too.
Control characters are spelt out. Left out: the model; only its tokenizer is loaded.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.text import Text

from posttrain.base.files import counted
from posttrain.base.printable import printable
from posttrain.data.readers import Broken
from posttrain.data.shapes.catalogue import SHAPES
from posttrain.data.shapes.pairs import SIDES
from posttrain.data.shapes.prompts import columns_of, reward_example
from posttrain.data.sources import open_rows
from posttrain.data.template import load_text
from posttrain.data.tokenizers import decode
from posttrain.data.tokens import IGNORED, RowError, TokenRow, without_place
from posttrain.errors import RequestError
from posttrain.recipe import Recipe
from posttrain.recipe.plan import shape_of
from posttrain.recipe.schema import Loss, Source

COLOURS = (
    "black on bright_cyan",
    "black on bright_yellow",
    "black on bright_green",
    "black on bright_magenta",
)
PLAIN = "black on white"
"""Trained but in no segment: plain cross-entropy."""
Span = tuple[str, int | None]
"""A piece of text and its segment: None for context, 0 where it is trained in no segment."""


def preview(recipe: Recipe, start: str, n: int, console: Console) -> list[dict[str, Any]]:
    """Prints the first `n` rows of every source and returns them; needs the tokenizer, not the model.

    `start` is the model that `model.init` stands for; its tokenizer is used where the recipe names none. A
    returned row is {"source", "where"} with one of {"refused": sentence}, {"dropped": reason} and {"tokens",
    "trained", "segments", "control_tokens", "unused": [column], "spans": [[text, segment]]}, the segments as
    in `Span`. A preference pair gives one row for each `side`; a labelled reply has its label as `side`; a
    prompt has the `answer` that rewards see.
    """
    tokenizer, _ = load_text(recipe.model, recipe.data.template, start, recipe.data.template_options)
    coloured = console.color_system is not None and not console.no_color
    prompts, numbered = shape_of(recipe) == "prompts", _has_segments(getattr(recipe, "loss", Loss()))
    shown: list[dict[str, Any]] = []
    for source in recipe.data.sources:
        console.rule(Text(f"source {source.name}"))
        unused: dict[str, None] = {}
        for where, row in itertools.islice(iter(open_rows(replace(source, on_error="skip"))), n):
            console.print(Text(printable(where), style="dim"))
            facts = {"source": source.name, "where": where}
            try:
                rows, columns = _tokenized(recipe, row, source, where, tokenizer)
                if prompts:
                    facts["answer"] = reward_example(columns_of(row, source), where).answer
            except (RowError, RequestError) as error:
                what = "dropped" if isinstance(error, RowError) or source.on_error == "skip" else "refused"
                said = _said(error, where, what)
                shown.append(facts | {what: str(error) if what == "refused" else said})
                console.print(Text(printable(f"{what}: {said}"), style="red"))
                continue
            unused |= dict.fromkeys(columns)
            facts["unused"] = columns
            for side, tokenized in rows:
                shown.append(facts | ({"side": side} if side else {}) | _counts(tokenized, tokenizer))
                safe = [(printable(text), mark) for text, mark in spans(tokenized, tokenizer, numbered)]
                console.print((painted if coloured else bracketed)(safe))
                counts = _counted(shown[-1], prompts, numbered)
                console.print(Text(printable(f"{side}: {counts}" if side else counts), style="dim"))
                if spelt := ", ".join(tokenized.control_tokens):
                    console.print(Text(printable(f"its text spells {spelt} and becomes it"), style="yellow"))
        if unused:
            console.print(Text(printable(f"not used: {', '.join(unused)}"), style="yellow"))
    if not prompts:
        console.print(_legend(coloured, numbered))
    return shown


def refuse_shown(shown: list[dict[str, Any]]) -> None:
    """Raises `RequestError` where a run would refuse one of the rows that `preview` gave."""
    found = [row["refused"] for row in shown if "refused" in row]
    if len(found) > 1:
        others = counted(len(found) - 1, "other row")
        found[0] += f"\n{others} of these {'is' if len(found) == 2 else 'are'} refused, too"
    if found:
        raise RequestError(found[0])


def _has_segments(loss: Loss) -> bool:
    """Whether the parts of a reply that the loss takes together are worth showing: under plain cross-entropy,
    and where each token is a part, they are not."""
    return loss.segment != "token" and (loss.name, loss.segment) != ("cross_entropy", "completion")


def _said(error: RowError | RequestError, where: str, what: str) -> str:
    """Reason and detail, as they are counted; the place of the row stands above."""
    if isinstance(error, RowError):
        return ": ".join(filter(None, (error.reason, without_place(where, error.detail))))
    said = without_place(where, str(error))
    return said if what == "refused" else f"unreadable: {said}"


def _counted(facts: dict[str, Any], prompt: bool, numbered: bool) -> str:
    if prompt:
        answer = facts["answer"]
        return f"prompt of {counted(facts['tokens'], 'token')}; " + (
            "no answer for the rewards" if answer is None else f"the answer that rewards see: {answer}"
        )
    counts = f"{counted(facts['tokens'], 'token')}, {facts['trained']} trained"
    return f"{counts}, {counted(facts['segments'], 'segment')}" if numbered else counts


def _tokenized(
    recipe: Recipe, row: dict[str, Any], source: Source, where: str, tokenizer: Any
) -> tuple[list[tuple[str, TokenRow]], list[str]]:
    """(side, tokens) of what one row is trained as, and its columns that nothing reads. Raises `RowError`
    where the row is dropped, `RequestError` where it is refused."""
    if isinstance(row, Broken):
        raise RequestError(row.error)
    kind = shape_of(recipe)
    loss = getattr(recipe, "loss", Loss())
    read = SHAPES[kind].read(row, source, where)
    unused = [*dict.fromkeys(name for example in read for name in example.unused)]
    rows = [
        SHAPES[kind].tokenize(example, tokenizer, recipe.data, loss)
        for example in SHAPES[kind].parts(read, recipe.data)
    ]
    sides = SIDES if kind == "pairs" else ("",) * len(rows)
    if kind == "labelled":
        sides = ("good",) if rows[0].p else ("bad",)
    return list(zip(sides, rows, strict=True)), unused


def _counts(row: TokenRow, tokenizer: Any) -> dict[str, Any]:
    return {
        "tokens": len(row.input_ids),
        "trained": int((row.labels != IGNORED).sum()),
        "segments": int(row.segment_ids.max()),
        "control_tokens": list(row.control_tokens),
        "spans": spans(row, tokenizer),
    }


def spans(row: TokenRow, tokenizer, numbered: bool = True) -> list[Span]:
    """One row as text, cut where the segment changes; the bytes of one character stay together. Not
    `numbered`: all that is trained has segment 0."""
    marks = [
        None if label == IGNORED else int(segment) * numbered
        for label, segment in zip(row.labels, row.segment_ids, strict=True)
    ]
    out = []
    for mark, group in itertools.groupby(zip(row.input_ids, marks, strict=True), key=lambda pair: pair[1]):
        ids = [int(token) for token, _ in group]
        text = decode(ids, tokenizer)
        out.append((text, mark))
    return out


def painted(found: list[Span]) -> Text:
    """Spans in colours."""
    return Text.assemble(*((text, _colour(segment)) for text, segment in found))


def bracketed(found: list[Span]) -> Text:
    """Spans with `[[1: ...]]` around segment 1 and `[[...]]` around text that is trained in no segment."""
    out = Text()
    for text, segment in found:
        number = f"{segment}: " if segment else ""
        out.append(text if segment is None else f"[[{number}{text}]]")
    return out


def _colour(segment: int | None) -> str:
    if segment is None:
        return "dim"
    return COLOURS[(segment - 1) % len(COLOURS)] if segment else PLAIN


def _legend(coloured: bool, numbered: bool) -> Text:
    if not coloured:
        known = "[[1: trained, segment 1]] [[trained, no segment]]" if numbered else "[[trained]]"
        return Text(f"{known}, the rest is context")
    names = [("context", None), (" trained ", 0)]
    if numbered:
        names = [("context", None), (" segment 1 ", 1), (" segment 2 ", 2), (" trained, no segment ", 0)]
    return Text(" ").join(Text(name, style=_colour(segment)) for name, segment in names)
