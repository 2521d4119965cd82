"""Rows of sft that are tokens already: `input_ids` with `labels`, or with masks of the names that TRL uses.

Labels are unshifted, as transformers, TRL and axolotl write them: a label is its token, or -100 where the
token is not trained. With masks, what is 1 is trained; without labels and masks everything is, as of plain
text. No template is used, and no proof can be made that the right tokens are trained: such rows are counted
(`tokenised` in mixture.json). Left out: packed rows (several examples in one), other stages than sft.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from posttrain.data.fit import fitted
from posttrain.data.json_rows import described
from posttrain.data.shapes.columns import find_columns, is_tokenised, without_ignored
from posttrain.data.shapes.names import filled
from posttrain.data.shapes.reply import refuse_untrained
from posttrain.data.shapes.rows import probability
from posttrain.data.tokenizers import vocabulary_size
from posttrain.data.tokens import IGNORED, RowError, TokenRow
from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe import schema
from posttrain.types import Example

IDS, LABELS, ATTENTION = "input_ids", "labels", "attention_mask"
MASKS = ("completion_mask", "assistant_masks")
BESIDE = ("token_type_ids", "position_ids", "special_tokens_mask")
"""Lists beside the tokens that change nothing of what is trained."""
PER_TOKEN = re.compile("mask|weight|labels|seq_?lens|num_tokens|advantage|log_?prob|loss", re.IGNORECASE)
"""What names of columns have that say something of each token, or where examples begin."""
SEPARATE = ("chosen_input_ids", "chosen_ids", "prompt_input_ids", "prompt_ids")
"""Columns of pairs and prompts that are tokens already."""


@dataclass(slots=True)
class TokenExample(Example):
    """An example that is tokens: int64 `input_ids` [L], and bool `trained` [L]."""

    input_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    trained: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))


def refuse_both(row: dict[str, Any], source: schema.Source, where: str) -> None:
    """Raises `RequestError` where a row that is read as text also has tokens with labels or masks, as
    `map(tokenize)` leaves them: the text would be trained, and what they leave out with it."""
    if source.format != "auto" or IDS in source.ignore or not filled(row.get(IDS)):
        return
    said = [n for n in (LABELS, *MASKS) if n not in source.ignore and filled(row.get(n))]
    if said:
        raise RequestError(
            f"{where}: the row has text and {IDS!r} with {' and '.join(map(repr, said))}; set format: tokens "
            f"on source {source.name!r} to train the tokens, or ignore: [{', '.join([IDS, *said])}] to train "
            "the text"
        )


def refuse_tokenised(row: dict[str, Any], source: schema.Source, where: str) -> None:
    """Raises `RequestError` where the row of a stage other than sft is tokens already."""
    separate = "chosen" not in row and any(name in row for name in SEPARATE)
    if is_tokenised(row, source) or separate:
        raise RequestError(
            f"{where}: the row is tokenised already, which only stage: sft trains on; give this stage the "
            f"texts of source {source.name!r}"
        )


def read_tokenised(row: dict[str, Any], source: schema.Source, where: str) -> TokenExample:
    """The tokens of `row` without right padding, and which of them are trained.

    Raises:
        RequestError: a flag is neither 0 nor 1, a column is not a list of whole numbers or has another
            length, a label is not its token, a mask has other values than 0 and 1, padding is not at the end,
            the row is packed, a list beside the tokens is not read, the source has a `system` message or
            options.
        RowError: empty (also where a flag says that the row is not trained), no_p.
    """
    for key, value in (("system", source.system), ("options", not source.generator and source.options)):
        if value:
            raise RequestError(
                f"{where}: {key!r} of source {source.name!r} changes texts, but the row is tokenised already"
            )
    row, ignored = without_ignored(row, source)
    # a list under such a name says something of each token, which `_refuse_unread` refuses
    flags = refuse_untrained({k: v for k, v in row.items() if not isinstance(v, list)}, source, where)
    if IDS not in row:
        raise RequestError(f"{where}: source {source.name!r} has no column {IDS!r}{did_you_mean(IDS, row)}")
    read = {name: _numbers(row, name, where) for name in (IDS, LABELS, ATTENTION, *MASKS) if name in row}
    ids = read.pop(IDS)
    for name, values in read.items():
        if len(values) != len(ids):
            raise RequestError(f"{where}: {IDS!r} has {len(ids)} entries, but {name!r} has {len(values)}")
        if name != LABELS and not np.isin(values, (0, 1)).all():
            raise RequestError(f"{where}: {name!r} must be 0 or 1 everywhere, not {_odd(values)}")
    _refuse_packed(row, where)
    other = {k: v for k, v in row.items() if k not in flags and k != source.columns.p}
    _refuse_unread(other, len(ids), where)
    trained = np.ones(len(ids), bool)
    if LABELS in read:
        _check_labels(ids, read[LABELS], where)
        trained = read[LABELS] != IGNORED
    for name in MASKS:
        if name in read:
            trained &= read[name] == 1
    length = _unpadded(read.get(ATTENTION, np.ones(len(ids), np.int64)), where)
    late = np.flatnonzero(trained[length:])
    if len(late) and len(read.keys() - {ATTENTION}):
        named = " and ".join(repr(name) for name in read if name != ATTENTION)
        raise RequestError(
            f"{where}: token {length + int(late[0])} is trained by {named}, but its {ATTENTION!r} is 0; "
            f"padding is cut off: write {IGNORED} into {LABELS!r} (0 into a mask) there"
        )
    found = find_columns(row, source, where, ["p"])
    used = {IDS, *found.values(), *read, *flags}
    return TokenExample(
        where=where,
        p=probability(row, found, where),
        ignored=tuple(sorted(ignored)),
        unused=tuple(key for key, value in row.items() if key not in used and filled(value)),
        input_ids=ids[:length],
        trained=trained[:length],
    )


def fit_tokenised(example: TokenExample, tokenizer: Any, data: schema.Data, loss: schema.Loss) -> TokenRow:
    """The row of an example that is tokens already, at most `data.max_length`.

    With `loss.segment: completion` each run of trained tokens is a segment.

    Raises:
        RowError: overlong, empty.
        RequestError: an id is not one of the tokenizer's, `data.train_on` or `loss.segment` needs the text,
            the row is too long and `data.overlong` is `error`.
    """
    where, ids = example.where, example.input_ids
    if data.train_on != "assistant":
        raise RequestError(
            f"{where}: data.train_on = {data.train_on} cannot choose turns in a row that is tokenised "
            "already: its labels or masks say what is trained; remove data.train_on"
        )
    if loss.segment not in ("token", "completion"):
        raise RequestError(
            f"{where}: loss.segment = {loss.segment} is found in the text, but the row is tokenised already; "
            "choose token or completion"
        )
    size = _size(tokenizer, len(tokenizer))
    foreign = np.flatnonzero((ids < 0) | (ids >= size))
    if len(foreign):
        i = int(foreign[0])
        raise RequestError(
            f"{where}: {IDS}[{i}] = {ids[i]}, but the ids of the tokenizer are 0 to {size - 1}; was the row "
            "tokenised with another tokenizer?"
        )
    trained = example.trained
    begins = trained if loss.segment == "token" else trained & ~np.append(False, trained[:-1])
    ids = ids.astype(np.int32)
    segment_ids = np.cumsum(begins, dtype=np.int32) * trained
    row = fitted(ids, np.where(trained, ids, np.int32(IGNORED)), segment_ids, data, where)
    return replace(row, p=example.p, tokenised=True)


@functools.lru_cache(maxsize=8)
def _size(tokenizer: Any, count: int) -> int:
    """`vocabulary_size`, which walks over every token; `count` tells of tokens added since."""
    return vocabulary_size(tokenizer)


def _numbers(row: dict[str, Any], name: str, where: str) -> np.ndarray:
    """The column `name` as int64 [L]; a null one, or no tokens, drops the row."""
    value, kinds = row[name], (int,) if name in (IDS, LABELS) else (int, bool)
    if value is None or (name == IDS and value == []):
        raise RowError("empty", f"column {name!r} is empty")
    entries = value if isinstance(value, list) else [value]
    other = [each for each in entries if type(each) not in kinds] if entries is value else entries
    if other:
        found = f"{'one with ' if entries is value else ''}{described(other[0])}"
        raise RequestError(f"{where}: {name!r} must be a list of whole numbers, not {found}")
    try:
        return np.array(value, np.int64)
    except OverflowError:
        raise RequestError(f"{where}: {name!r} has a number beyond 64 bits: {max(value, key=abs)}") from None


def _odd(values: np.ndarray) -> str:
    i = int(np.flatnonzero((values != 0) & (values != 1))[0])
    return f"{values[i]} (entry {i})"


def _check_labels(ids: np.ndarray, labels: np.ndarray, where: str) -> None:
    trained = labels != IGNORED
    wrong = np.flatnonzero(trained & (labels != ids))
    if not len(wrong):
        return
    inner = trained[:-1]
    if inner.any() and (labels[:-1][inner] == ids[1:][inner]).all():
        raise RequestError(
            f"{where}: {LABELS!r} are shifted by one: {LABELS}[i] is {IDS}[i + 1]. Write them unshifted, "
            f"{LABELS}[i] = {IDS}[i] or {IGNORED}, as transformers, TRL and axolotl take them"
        )
    i = int(wrong[0])
    raise RequestError(
        f"{where}: {LABELS}[{i}] = {labels[i]}, but {IDS}[{i}] = {ids[i]}; a label is its token, or "
        f"{IGNORED} where it is not trained"
    )


def _unpadded(attention: np.ndarray, where: str) -> int:
    """How many tokens come before the padding, which is at the end."""
    length = int(attention.sum())
    if not length:
        raise RowError("empty", f"{ATTENTION!r} is 0 everywhere")
    if not attention[:length].all():
        raise RequestError(
            f"{where}: {ATTENTION}[{int(np.argmin(attention))}] is 0 before a token that is not padding; "
            "only padding at the end is cut off"
        )
    return length


def _refuse_packed(row: dict[str, Any], where: str) -> None:
    """Raises `RequestError` for several examples in one row, which would attend to each other."""
    positions, parts = row.get("position_ids"), row.get("seq_lengths")
    restarts = isinstance(positions, list) and positions[1:].count(0) > 0
    if restarts or (isinstance(parts, list) and len(parts) > 1):
        name = "position_ids" if restarts else "seq_lengths"
        raise RequestError(
            f"{where}: {name!r} says that the row is packed from several examples; give each its own row "
            "(data.padding_free: true packs them in training)"
        )


def _refuse_unread(row: dict[str, Any], length: int, where: str) -> None:
    """Raises `RequestError` for a column beside the tokens that may be a mask by another name, or may say
    that the row is packed: its name does, or it has an entry for each token."""
    known = (IDS, LABELS, ATTENTION, *MASKS)
    for name, value in row.items():
        if name in (*known, *BESIDE) or not filled(value):
            continue
        entries = sum(len(v) if isinstance(v, list) else 1 for v in value) if isinstance(value, list) else 0
        says = "has an entry for each token" if entries == length else ""
        if PER_TOKEN.search(str(name)) and value != length:
            says = says or "may say by its name what is trained"
        if says:
            raise RequestError(
                f"{where}: column {name!r} {says} and is not read{did_you_mean(name, known)}; rename it, or "
                f"set ignore: [{name}] on the source (under data.sources)"
            )
