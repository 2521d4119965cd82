"""Shows rows as they will be trained on: context dim, trained tokens coloured by segment."""

from __future__ import annotations

import itertools

from rich.console import Console
from rich.text import Text

from posttrain.data.examples import to_example
from posttrain.data.sources import open_rows
from posttrain.data.template import load_template
from posttrain.data.tokenize import RowError, TokenRow, tokenize_example
from posttrain.data.tokenizers import load_tokenizer
from posttrain.recipe import Recipe

COLOURS = (
    "black on bright_cyan",
    "black on bright_yellow",
    "black on bright_green",
    "black on bright_magenta",
)
PLAIN = "black on white"
"""Trained, but in no segment: plain cross-entropy."""


def preview(recipe: Recipe, n: int, console: Console) -> None:
    """Print the first `n` rows of every source. Needs the tokenizer, not the model."""
    tokenizer = load_tokenizer(
        recipe.model.tokenizer or str(recipe.model.init),
        recipe.model.revision,
        recipe.model.trust_remote_code,
    )
    template = load_template(recipe.data.template, tokenizer)
    tokens = [*recipe.model.add_tokens, *template.missing_tokens(tokenizer)]
    if tokens:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": tokens}, replace_extra_special_tokens=False
        )
    template.apply_to(tokenizer)
    loss = getattr(recipe, "loss", None)
    for source in recipe.data.sources:
        console.rule(f"source {source.name}")
        for where, row in itertools.islice(iter(open_rows(source)), n):
            try:
                tokens_of_row = tokenize_example(
                    to_example(row, source, where), tokenizer, recipe.data, loss
                )
            except RowError as error:
                console.print(f"[red]{where}: dropped: {error}")
                continue
            console.print(Text(where, style="dim"))
            console.print(coloured(tokens_of_row, tokenizer))
    legend = Text("context  ", style="dim")
    for i, colour in enumerate(COLOURS[:2], 1):
        legend.append(f" segment {i} ", style=colour)
    console.print(legend.append(" trained, no segment ", style=PLAIN))


def coloured(row: TokenRow, tokenizer) -> Text:
    """One row as text; bytes that make a character only together are shown together."""
    out = Text()
    styles = [
        "dim" if label == -100 else COLOURS[(segment - 1) % len(COLOURS)] if segment else PLAIN
        for label, segment in zip(row.labels, row.segment_ids, strict=True)
    ]
    for style, group in itertools.groupby(
        zip(row.input_ids, styles, strict=True), key=lambda pair: pair[1]
    ):
        ids = [int(token) for token, _ in group]
        out.append(
            tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False),
            style=style,
        )
    trained = int((row.labels != -100).sum())
    out.append(
        f"\n{len(row.input_ids)} tokens, {trained} trained, {int(row.segment_ids.max())} segment(s)",
        style="dim",
    )
    return out
