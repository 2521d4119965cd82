"""Whether the files of a source have rows of one form, by the first row of each.

A form is what a row is made of: messages, a prompt, plain text, chosen and rejected, tokens. Columns that are
not read may differ, and so may the spelling of those that are. Left out: which column means what
(shapes/columns.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from posttrain.data.opening import File
from posttrain.data.shapes.columns import (
    FORMS,
    PARTS,
    USUAL,
    column,
    form_of,
    is_tokenised,
    without_ignored,
)
from posttrain.data.shapes.entries import as_list
from posttrain.data.shapes.pairs import SIDES
from posttrain.errors import RequestError
from posttrain.recipe import schema

SHOWN = 3
"""Files named for each form."""
WORDS = {"messages": "messages", "prompt_completion": "a prompt", "text": "text"}
"""Form of a row -> what it is called."""


def check_forms(source: schema.Source, firsts: Iterable[tuple[File, dict[str, Any]]]) -> None:
    """Raises `RequestError` with the files of each form unless there is one that all first rows have."""
    found: dict[frozenset[str], list[File]] = {}
    columns: dict[frozenset[str], str] = {}
    for file, row in firsts:
        forms = forms_of(row, source)
        found.setdefault(forms, []).append(file)
        columns.setdefault(forms, ", ".join(map(str, row)))
    if not found or frozenset.intersection(*found):
        return
    listed = []
    for forms, files in found.items():
        names = ", ".join(map(str, files[:SHOWN])) + (", ..." if len(files) > SHOWN else "")
        listed.append(f"{len(files)} with {' or '.join(sorted(forms))} ({names}; columns {columns[forms]})")
    raise RequestError(
        f"source {source.name!r}: {source.path} has files of several shapes: {'; '.join(listed)}. "
        "Make one source of each"
    )


def forms_of(row: dict[str, Any], source: schema.Source) -> frozenset[str]:
    """The forms under which a row can be read: the one that `shapes.rows` takes, and that of a pair."""
    row, _ = without_ignored(row, source)
    if is_tokenised(row, source):
        return frozenset({"tokens" if "input_ids" in row else "other columns"})
    has = {what for what in FORMS if column(row, source, what) in row}
    if source.format != "auto" and PARTS[source.format][0] in has:
        return frozenset({WORDS[source.format]})
    form = WORDS.get(form_of(has, replace(source, format="auto")))
    pair = all(column(row, source, side) in row for side in SIDES)
    pair = pair or any(isinstance(as_list(row.get(name)), list) for name in USUAL["replies"])
    if pair and (form is None or (form == WORDS["prompt_completion"] and "completion" not in has)):
        return frozenset({"chosen and rejected"})
    if form is None:
        form = "tokens" if "input_ids" in row else "other columns"
    return frozenset({form, "chosen and rejected"} if pair else {form})
