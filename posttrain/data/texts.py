"""All that an example says, as texts: how long it is, and which control tokens it spells.

Both are looked up before the example is rendered: a row of many megabytes would take minutes and gigabytes
to tokenise, and in the rendered text the template's own control tokens could no longer be told apart. Left
out: what the tokens are (tokenize.py), what becomes of the rows (make_table.py).
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe import schema
from posttrain.types import Example

DEEPEST = 100
"""Levels of a call's arguments, of tools and of other keys; templates write them recursively."""


def texts(example: Example) -> list[str]:
    """The texts of the prompt and the completion, of every key of the messages but their roles, and of the
    tools. Raises RowError (bad_call) where calls or tools are nested too deep to be written."""
    found: list[str] = []
    values = [value for turn in example.messages or () for key, value in turn.items() if key != "role"]
    for value in (*values, example.prompt, example.completion, example.tools):
        if isinstance(value, str):
            found.append(value)
        elif value:
            found += _inside(value)
    return found


def _inside(value: Any, depth: int = 0) -> Iterator[str]:
    if depth > DEEPEST:
        raise RowError("bad_call", f"a value is nested deeper than {DEEPEST} levels")
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value:
            yield from _inside(each, depth + 1)
        for each in value.values() if isinstance(value, dict) else ():
            yield from _inside(each, depth + 1)


def check_texts(example: Example, data: schema.Data) -> None:
    """Refuses an example that cannot be tokenised, or only at great cost.

    Raises:
        RowError: too_long_text, where it has more than `data.max_characters` characters; bad_text; bad_call.
        RequestError: it has more, and `data.overlong` is `error`.
    """
    found = texts(example)
    count = sum(map(len, found))
    if count > data.max_characters:
        if data.overlong == "error":
            raise RequestError(
                f"{example.where}: {count:,} characters, more than data.max_characters = "
                f"{data.max_characters:,}; raise it, or set data.overlong: drop"
            )
        raise RowError("too_long_text", f"{count:,} characters, more than {data.max_characters:,}")
    try:
        "".join(found).encode()
    except UnicodeEncodeError as error:
        raise RowError("bad_text", "a text contains half a character (a lone surrogate)") from error


def control_tokens(example: Example, tokenizer: Any) -> tuple[str, ...]:
    """The special tokens of `tokenizer` that the texts of `example` spell and become, sorted."""
    spelt = _spelt(tokenizer, len(tokenizer))
    if spelt is None:
        return ()
    heads, pattern = spelt
    said = "\0".join(texts(example))  # no token spans two texts
    for head in heads:
        if head in said:
            return tuple(sorted(set(pattern.findall(said))))
    return ()


@functools.lru_cache(maxsize=8)
def _spelt(tokenizer: Any, size: int) -> tuple[list[str], re.Pattern[str]] | None:
    """What special tokens begin with, of which a text without any has none; and what matches each of them.
    `size` tells of tokens added since. Where one begins like another, the longer one is found, as the
    tokenizer finds it."""
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    special = sorted({token.content for token in added if token.special} - {""})
    if not special:
        return None
    alike = [list(tokens) for _, tokens in groupby(special, lambda token: token[0])]
    return [os.path.commonprefix(tokens) for tokens in alike], re.compile(_any_of(set(special)))


def _any_of(words: set[str]) -> str:
    """A pattern of `words` that branches letter by letter. With one alternative for each word, `re` would try
    hundreds of them at every `<`."""
    heads: dict[str, set[str]] = {}
    for word in words - {""}:
        heads.setdefault(word[0], set()).add(word[1:])
    options = [re.escape(head) + _any_of(rest) for head, rest in sorted(heads.items())]
    if "" in words:
        return f"(?:{'|'.join(options)})?" if options else ""
    return f"(?:{'|'.join(options)})" if len(options) > 1 else options[0]
