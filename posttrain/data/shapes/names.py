"""Usual names of keys of a message and of columns that say the same; when a name is almost another, or may
be a flag; when a value has content, or is text.

Left out: the names of columns (columns.py), what the values mean (messages.py, reply.py).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection
from typing import Any

from posttrain.data.json_rows import described
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Usual keys of what an assistant thinks before it answers."""
FLAGS = ("weight", "train", "training", "loss", "trained")
"""Usual keys that say whether an assistant's turn is trained."""
SPELT = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": False, "true": True}
"""How texts spell a flag, for CSV has nothing else; pandas writes a column with gaps as 1.0."""
CALLS = ("tool_calls", "function_call")
"""Usual keys of the calls of an assistant."""
LINKS = ("tool_call_id", "name", "id")
"""Keys that tie a tool's answer to its call. Many templates say it by the order alone, so that none has to be
rendered."""
MASKS = {"mask", "masks", "masked"}
"""Words of a name that may say what is trained, alone or beside the words below. A `face_mask` is none."""
TRAINING = {
    *("train", "training", "trained", "trainable", "loss", "label", "labels", "target"),
    *("assistant", "completion", "reply", "response", "answer", "output"),
}
"""Words of what is trained, one of which makes such a mask of any name with a word of `MASKS`."""
NOT_TRAINING = {"attention", "special", "pad", "padding"}
"""Words of masks that say nothing of it."""
BESIDE_FLAGS = {
    *("is", "be", "do", "to", "on", "should", "use", "trainable"),
    *("assistant", "completion", "reply", "response", "turn", "message", "row", "sample", "example", "token"),
}
"""Words that a name may have beside a flag, and still be one."""
ALMOST = 0.86
"""Likeness of two names (difflib's ratio) from which one is taken for a misspelling of the other."""


def almost(name: object, known: Collection[str]) -> str | None:
    """The one of `known` that `name` is almost: in other case, with the letters behind the first in another
    order, or by likeness. Many words are like a flag (`gloss`, `strain`): of those only a plural is."""
    word = str(name).casefold()
    if len(word) < 2:
        return None
    letters = sorted(word)
    for each in known:
        plural = each in FLAGS and word == f"{each}s"
        if plural or (word[0] == each[0].casefold() and letters == sorted(each.casefold())):
            return each
    near = difflib.get_close_matches(str(name), [each for each in known if each not in FLAGS], 1, ALMOST)
    return near[0] if near else None


def like_a_flag(name: object) -> bool:
    """Whether a key or a column may say what is trained, and is none of `FLAGS`: `almost` one (`weigth`), a
    mask (`loss_mask`), or a flag among words that go with it (`is_trained`, `sample_weight`).

    Weights are among them whatever they are, for one of 0 may be in any row, and other weights than 0 and 1
    are not trained with: a source has to say that it leaves them out. Other words make another thing of it:
    `weight_decay`, `training_step`, `loss_scale`, `face_mask`; `gloss` and `strain` are words of their own.
    """
    if name in FLAGS:
        return False
    words = {word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", str(name))}
    if words & MASKS:
        return not words & NOT_TRAINING and (bool(words & TRAINING) or words <= MASKS | BESIDE_FLAGS)
    flag = bool(words & {*FLAGS, "trainable", "weights"}) and words <= {*FLAGS, "weights", *BESIDE_FLAGS}
    return flag or almost(name, FLAGS) is not None


def as_flag(value: Any) -> Any:
    """`value`, of which a text may spell a flag."""
    return SPELT.get(value.strip().lower(), value) if isinstance(value, str) else value


def filled(value: Any) -> bool:
    """Whether a value of a row or of a message has content. NaN has none, which pandas writes where a number
    is missing, nor has an object of nulls: columns of objects fill up what is missing."""
    if isinstance(value, float):
        return not math.isnan(value)
    if not isinstance(value, dict):
        return value is not None and value not in ("", [])
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            left += each.values()
        elif each is not None:
            return True
    return False


def says(value: Any) -> bool:
    """Whether a column has content, of which white space is none."""
    return filled(value) and not (isinstance(value, str) and not value.strip())


def unzipped(columns: dict[str, Any]) -> list[dict[str, Any]] | None:
    """A list of objects, of an object of lists of one length; None where it is another object. Nulls are no
    lists of it."""
    lists = {key: each for key, each in columns.items() if each is not None}
    if not all(isinstance(each, list) for each in lists.values()):
        return None
    if len({len(each) for each in lists.values()}) > 1:
        return None
    return [dict(zip(lists, each, strict=True)) for each in zip(*lists.values(), strict=True)]


def checked_text(value: Any, where: str, column: str) -> str:
    """`value`, which is text that can be encoded.

    Raises:
        RequestError: it is not text.
        RowError: bad_text.
    """
    if not isinstance(value, str):
        raise RequestError(f"{where}: {column!r} must be text, not {described(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError("bad_text", f"{column!r} contains half a character (a lone surrogate)") from error
    return value
