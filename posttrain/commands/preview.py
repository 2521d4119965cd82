"""Shows rows as they will be trained on: context dim, trained tokens coloured by segment.

Without colours (NO_COLOR, a pipe, a dumb terminal) brackets stand around what is trained. Left out: the model.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.text import Text

from posttrain.data.shapes.catalogue import SHAPES
from posttrain.data.shapes.pairs import SIDES
from posttrain.data.sources import open_rows
from posttrain.data.template import load_text
from posttrain.data.tokens import IGNORED, RowError, TokenRow
from posttrain.recipe import Recipe
from posttrain.recipe.plan import shape_of
from posttrain.recipe.schema import Loss

COLOURS = (
    "black on bright_cyan",
    "black on bright_yellow",
    "black on bright_green",
    "black on bright_magenta",
)
PLAIN = "black on white"
"""Trained, but in no segment: plain cross-entropy."""
Span = tuple[str, int | None]
"""A piece of text and its segment: None where it is context, 0 where it is trained in no segment."""


def preview(recipe: Recipe, start: str, n: int, console: Console) -> list[dict[str, Any]]:
    """Print the first `n` rows of every source, and return them; needs the tokenizer, not the model.

    `start` is the place that `model.init` stands for; its tokenizer is used where the recipe names none.
    A returned row is {"source", "where"} and either {"dropped": reason} or {"tokens", "trained", "segments",
    "spans": [[text, segment]]}, with segments as in `Span`; of a preference pair one for each `side`, of a labelled reply its
    label as `side`.
    """
    tokenizer, _ = load_text(recipe.model, recipe.data.template, start)
    shape, labelled = SHAPES[shape_of(recipe)], shape_of(recipe) == "labelled"
    loss = getattr(recipe, "loss", Loss())
    data = replace(recipe.data, train_on="last") if recipe.stage == "dpo" else recipe.data
    coloured = console.color_system is not None and not console.no_color
    shown = []
    for source in recipe.data.sources:
        console.rule(Text(f"source {source.name}"))
        for where, row in itertools.islice(iter(open_rows(source)), n):
            console.print(Text(where, style="dim"))
            try:
                examples = shape.read(row, source, where)
                rows = [shape.tokenize(example, tokenizer, data, loss) for example in examples]
            except RowError as error:
                shown.append({"source": source.name, "where": where, "dropped": str(error)})
                console.print(Text(f"dropped: {error}", style="red"))
                continue
            sides = SIDES if len(rows) == 2 else ("",)
            if labelled:
                sides = ("good",) if rows[0].p else ("bad",)
            for side, tokenized in zip(sides, rows, strict=True):
                facts: dict[str, Any] = {"source": source.name, "where": where}
                facts |= {
                    **({"side": side} if side else {}),
                    "tokens": len(tokenized.input_ids),
                    "trained": int((tokenized.labels != IGNORED).sum()),
                    "segments": int(tokenized.segment_ids.max()),
                    "spans": spans(tokenized, tokenizer),
                }
                shown.append(facts)
                console.print((painted if coloured else bracketed)(facts["spans"]))
                counts = "{tokens} tokens, {trained} trained, {segments} segment(s)".format(**facts)
                console.print(Text(f"{side}: {counts}" if side else counts, style="dim"))
    console.print(_legend(coloured))
    return shown


def spans(row: TokenRow, tokenizer) -> list[Span]:
    """One row as text, cut where the segment changes; bytes of one character stay together."""
    marks = [
        None if label == IGNORED else int(segment)
        for label, segment in zip(row.labels, row.segment_ids, strict=True)
    ]
    out = []
    for mark, group in itertools.groupby(zip(row.input_ids, marks, strict=True), key=lambda pair: pair[1]):
        ids = [int(token) for token, _ in group]
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        out.append((text, mark))
    return out


def painted(found: list[Span]) -> Text:
    """Spans in colours."""
    return Text.assemble(*((text, _colour(segment)) for text, segment in found))


def bracketed(found: list[Span]) -> Text:
    """Spans with `[[1: ...]]` around segment 1 and `[[...]]` around what is trained in no segment."""
    out = Text()
    for text, segment in found:
        number = f"{segment}: " if segment else ""
        out.append(text if segment is None else f"[[{number}{text}]]")
    return out


def _colour(segment: int | None) -> str:
    if segment is None:
        return "dim"
    return COLOURS[(segment - 1) % len(COLOURS)] if segment else PLAIN


def _legend(coloured: bool) -> Text:
    if not coloured:
        return Text("[[1: trained, segment 1]] [[trained, no segment]], the rest is context")
    names = (("context", None), (" segment 1 ", 1), (" segment 2 ", 2), (" trained, no segment ", 0))
    return Text(" ").join(Text(name, style=_colour(segment)) for name, segment in names)
