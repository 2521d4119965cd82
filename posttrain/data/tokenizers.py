"""Tokenizers: from the hub, from a folder, or built in for small models trained from scratch.

`builtin:digits` has one token for each character of arithmetic, `builtin:bytes` one for each byte, so it
loses no text. Both are plain `tokenizers` objects that are saved and loaded like any other. Left out:
training a tokenizer, and slow (Python) tokenizers, which have no character offsets.
"""

from __future__ import annotations

import functools
import json
import logging
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrain.base.loading import why_unloaded
from posttrain.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)
DIGITS = "0123456789+-*/=() .,"
UNICODE_FORMS = ("NFC", "NFKC", "NFD", "NFKD")
"""Forms of a text in Unicode, and normalisers that do nothing but bring it into them."""
PROBES = (
    "Hello, World! It's 12345 + 678.9 =  ?",
    "\n\n  def f(x):\treturn x**2  # naïve café\r\n",
    "日本語 한국어 👍 e\u0301 don't",
)
"""Texts on which two tokenizers differ whose rules for words, digits, spaces or letters do."""


def load_tokenizer(
    name: str, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    """A fast tokenizer with a padding and an end token.

    Raises:
        RequestError: there is no such tokenizer, it has no fast version, it has no end token, or transformers
            loads another one than its tokenizer.json describes.
    """
    if name.startswith("builtin:"):
        if name not in BUILTIN:
            raise RequestError(f"unknown tokenizer {name!r}{did_you_mean(name, BUILTIN)}")
        return BUILTIN[name]()
    tokenizer = _from_pretrained(name, revision, trust_remote_code)
    if not tokenizer.is_fast:
        raise RequestError(f"tokenizer {name} has no fast version, whose character offsets the masks need")
    _refuse_rebuilt(tokenizer, name, revision)
    if tokenizer.eos_token is None:
        raise RequestError(f"tokenizer {name} has no end token (eos_token)")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        log.warning("tokenizer %s has no padding token; %r is used for padding", name, tokenizer.eos_token)
    return tokenizer


def _from_pretrained(name: str, revision: str | None, trust_remote_code: bool):
    from transformers import AutoTokenizer

    path = Path(name).expanduser()
    local = name[:1] in (".", "/", "~") or path.exists()
    if not name.strip() or (local and not path.is_dir()):
        builtin = " or ".join(BUILTIN)
        raise RequestError(f"tokenizer: no such folder: {name!r}; name a folder, a hub id, {builtin}")
    try:
        return AutoTokenizer.from_pretrained(
            str(path) if local else name, revision=revision, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # for a broken tokenizer.json, `tokenizers` raises no class of its own
        if local and not (path / "tokenizer.json").is_file():
            raise RequestError(f"tokenizer: {name} has no tokenizer.json") from error
        if local and _config_fails(path, trust_remote_code, error):  # it is read for the tokenizer's class
            raise RequestError(f"{path / 'config.json'}: {why_unloaded(error)}") from error
        where = "" if local else "there is no such folder here, and as a hub id: "
        raise RequestError(f"tokenizer {name}: {where}{why_unloaded(error)}") from error


def _config_fails(folder: Path, trust_remote_code: bool, error: Exception) -> bool:
    """Whether `error` is that of config.json in `folder`."""
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as own:
        return str(own) == str(error)
    return False


def _refuse_rebuilt(tokenizer: PreTrainedTokenizerFast, name: str, revision: str | None) -> None:
    """transformers chooses the class of a tokenizer by the model's config, and some classes build rules of
    their own around the vocabulary of tokenizer.json (transformers#45920): other tokens for the same text."""
    from tokenizers import Tokenizer
    from transformers.utils import cached_file

    path = Path(name).expanduser()
    file = cached_file(
        str(path) if path.is_dir() else name,
        "tokenizer.json",
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if file is None:
        return
    written = Tokenizer.from_file(file)
    for text in PROBES:
        ours, theirs = (
            t.encode(text, add_special_tokens=False).ids for t in (tokenizer.backend_tokenizer, written)
        )
        if ours != theirs:
            raise RequestError(
                f"tokenizer {name}: transformers loads it as {type(tokenizer).__name__}, which makes "
                f"{len(ours)} tokens of {text!r}, its tokenizer.json {len(theirs)}: whoever uses the model "
                "would read other tokens than it was trained on. Set tokenizer_class to "
                "PreTrainedTokenizerFast in its tokenizer_config.json, or use a model type whose class keeps "
                "these rules"
            )


def backend_rules(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What a fast tokenizer does to a text: vocabulary, merges, normaliser, pre-tokenizer, decoder.

    Without `padding` and `truncation`, which earlier calls leave and which change no row.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: value for key, value in rules.items() if key not in ("padding", "truncation")}


@functools.lru_cache(maxsize=8)
def unicode_form(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """The Unicode form (`NFC`, `NFKC`, `NFD`, `NFKD`) that the tokenizer's normaliser turns a text into, if
    any."""
    normaliser = tokenizer.backend_tokenizer.normalizer
    described = "" if normaliser is None else normaliser.__getstate__().decode()
    found = [form for form in UNICODE_FORMS if f'"{form}"' in described]
    return found[0] if len(found) == 1 else None


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """The number of embedding rows that the tokens need: the largest id + 1.

    `len(tokenizer)` counts tokens, which is less where ids have gaps.
    """
    return max(tokenizer.get_vocab().values()) + 1


def add_tokens(tokenizer: PreTrainedTokenizerFast, tokens: list[str]) -> None:
    """Adds `tokens` as special tokens; those that are there become special ones.

    Raises:
        RequestError: a new token got the id of another one. `tokenizers` numbers new tokens by how many there
            are, so a vocabulary with a gap may have used that id.
    """
    taken = {number: token for token, number in tokenizer.get_vocab().items()}
    tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    for token in tokens:
        number = tokenizer.convert_tokens_to_ids(token)
        if (other := taken.get(number, token)) != token:
            raise RequestError(
                f"the tokens {other!r} and {token!r} would both have id {number}, because the ids of the "
                f"tokenizer have gaps; add {', '.join(map(repr, tokens))} to its files with free ids"
            )


def decode(ids: list[int], tokenizer: PreTrainedTokenizerFast) -> str:
    """The text of `ids`, special tokens included, as the tokenizer's decoder writes it.

    transformers' own `decode` removes spaces before punctuation where a tokenizer is configured so, and walks
    over every id in Python. A byte-level decoder takes the letters of an added token for bytes where all of
    them stand for one ("<réponse>" becomes "<r�ponse>"); such tokens are written as they are.
    """
    table = token_bytes(tokenizer)
    if table is None:
        return tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
    return table.of(ids).decode(errors="replace")


@dataclass(frozen=True)
class TokenBytes:
    """The bytes of each token of a tokenizer with a byte-level decoder, and their number (int64 [V])."""

    table: list[bytes]
    lengths: np.ndarray
    joined: np.ndarray
    """All of `table`, uint8."""
    begins: np.ndarray
    """Where each token begins in `joined`, int64 [V]."""

    def of(self, ids: list[int]) -> bytes:
        """The bytes of `ids`."""
        if len(ids) < 2:
            return b"".join(self.table[i] for i in ids if i < len(self.table))
        try:
            return b"".join(itemgetter(*ids)(self.table))  # in half the time of a loop
        except IndexError:  # a model may have more ids than its tokenizer
            return b"".join([self.table[i] for i in ids if i < len(self.table)])

    def spelt(self, ids: np.ndarray) -> bytes:
        """The same of many ids, which are those of tokens (int [L])."""
        lengths = self.lengths[ids]
        ahead = self.begins[ids] - (np.cumsum(lengths) - lengths)
        return self.joined[np.repeat(ahead, lengths) + np.arange(lengths.sum())].tobytes()


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> TokenBytes | None:
    """None where the decoder is another one."""
    return _token_bytes(tokenizer, len(tokenizer))


@functools.lru_cache(maxsize=8)
def _token_bytes(tokenizer: PreTrainedTokenizerFast, size: int) -> TokenBytes | None:
    """`size` tells of tokens added since."""
    backend = tokenizer.backend_tokenizer
    if (json.loads(backend.to_str()).get("decoder") or {}).get("type") != "ByteLevel":
        return None
    letters, added = _byte_letters(), backend.get_added_tokens_decoder()
    table = [b""] * vocabulary_size(tokenizer)
    for token, i in backend.get_vocab(with_added_tokens=True).items():
        values = [None] if i in added else [letters.get(letter) for letter in token]
        table[i] = token.encode() if None in values else bytes(values)
    lengths = np.fromiter(map(len, table), np.int64, len(table))
    return TokenBytes(table, lengths, np.frombuffer(b"".join(table), np.uint8), np.cumsum(lengths) - lengths)


def _digits() -> PreTrainedTokenizerFast:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocab = {token: index for index, token in enumerate(["<pad>", "<eos>", "<unk>", *DIGITS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrap(tokenizer, unk_token="<unk>")


def _bytes() -> PreTrainedTokenizerFast:
    """Token ids below 256 are byte values."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=_byte_letters(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrap(tokenizer, additional_special_tokens=["<|im_start|>", "<|im_end|>"])


def _byte_letters() -> dict[str, int]:
    """The printable character that stands for each byte in GPT-2 and `tokenizers.ByteLevel` -> the byte."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(b if b in printable else 256 + hidden.index(b)): b for b in range(256)}


def _wrap(tokenizer, **special) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
        **special,
    )


BUILTIN = {"builtin:digits": _digits, "builtin:bytes": _bytes}
