"""Chat templates: messages to text, and which spans of that text are assistant turns.

The spans come from prefix differences, never from searching for role markers: the prompt that generation
would start from, `render(messages[:k], add_generation_prompt=True)`, must be a prefix of the full text, and
the turn is what follows it, up to and including the end of turn. A template for which that fails is refused.
Rendering is that of transformers (`ImmutableSandboxedEnvironment`), so a saved checkpoint renders the same
text elsewhere. Left out: tools, images, several named templates in one tokenizer.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from posttrain.data.tokenizers import add_tokens, load_tokenizer
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe.schema import Model
from posttrain.types import Message

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "templates"
NAMES = ("tokenizer", "chatml", "llama3", "tulu", "plain")
HEADER = re.compile(r"\{#-? (?:tokens: (?P<tokens>.*?)|(?P<no_bos>no bos)) -?#\}\s*")
"""A template file may begin with the strings that must be one token each, and with `no bos`: its texts have
no begin-of-text token."""
PROBE = "Zq7"
"""The reply by which the end of turn is found."""


@dataclass(frozen=True, slots=True)
class Turn:
    """An assistant turn in a text: content in [begin, content_end), its end of turn in [content_end, end)."""

    begin: int
    content_end: int
    end: int


@dataclass(frozen=True)
class Template:
    """A template bound to a tokenizer, whose special tokens it writes."""

    name: str
    source: str
    tokenizer: Any
    tokens: tuple[str, ...]
    end_of_turn: str
    """What closes an assistant turn, e.g. `<|im_end|>`; generation stops there."""

    @property
    def end_ids(self) -> list[int]:
        """The tokens of the end of turn."""
        return self.tokenizer(self.end_of_turn, add_special_tokens=False)["input_ids"]

    @property
    def stops(self) -> list[int]:
        """The token that generation stops at; empty where the end of turn is several tokens."""
        return self.end_ids if len(self.end_ids) == 1 else []

    def render(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        """The text of a conversation, or of a prompt for the assistant's next turn.

        Raises:
            RowError: template_error, where the template refuses the conversation (for example because its
                roles do not alternate) or does what the sandbox forbids.
        """
        return _render(self.source, self.tokenizer, messages, add_generation_prompt)

    def turns(self, messages: list[Message], last_only: bool = False) -> tuple[str, list[Turn]]:
        """The full text, and the assistant turns in it, or only the last one.

        Raises:
            RequestError: an earlier rendering is not a prefix of a later one, or a turn has no end.
            RowError: template_error.
        """
        text = self.render(messages)
        spoken = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
        turns = []
        for k in spoken[-1:] if last_only else spoken:
            prompt = self.render(messages[:k], add_generation_prompt=True)
            upto = text if k + 1 == len(messages) else self.render(messages[: k + 1])
            self._prefix(prompt, upto, k, "the prompt that generation would start from")
            self._prefix(upto, text, k, "the conversation up to this turn")
            turns.append(self._turn(len(prompt), upto, messages[k]["content"], k))
        return text, turns

    def apply_to(self, tokenizer) -> None:
        """Install the template, so that `save_pretrained` writes it."""
        if self.name != "tokenizer":
            tokenizer.chat_template = self.source

    def missing_tokens(self, tokenizer) -> list[str]:
        """Tokens of the template that `tokenizer` lacks and would split: they have to be added."""
        vocabulary = tokenizer.get_vocab()
        return [token for token in self.tokens if token not in vocabulary]

    def _prefix(self, start: str, text: str, k: int, what: str) -> None:
        if text.startswith(start):
            return
        same = next((i for i, (a, b) in enumerate(zip(start, text, strict=False)) if a != b), None)
        at = min(len(start), len(text)) if same is None else same
        raise RequestError(
            f"template {self.name!r}: at message {k} (assistant), {what} is not a prefix of the text that "
            f"follows, so the trained tokens cannot be found. It continues with {start[at : at + 60]!r}, "
            f"the text with {text[at : at + 60]!r}. Choose another data.template, or set data.train_on: last"
        )

    def _turn(self, begin: int, text: str, content: str, k: int) -> Turn:
        content_end = text.rfind(self.end_of_turn, begin)
        end = content_end + len(self.end_of_turn)
        if content_end < 0 or text[end:].strip():
            raise RequestError(
                f"template {self.name!r}: message {k} (assistant) must end with {self.end_of_turn!r}, "
                f"but ends with {text[max(begin, len(text) - 60) :]!r}"
            )
        if content.strip() not in text[begin:content_end]:
            raise RowError("template_error", f"the template changes the text of message {k}")
        return Turn(begin, content_end, end)


def load_template(name: str, tokenizer) -> Template:
    """The template `name`: `tokenizer`, a built-in one, or a path to a .jinja file.

    Built-in templates and files begin with the tokenizer's begin-of-text token where the tokenizer would add
    one to a raw text and the template neither writes it nor declares `no bos`. A rendered text is therefore
    always tokenised without special tokens.

    Raises:
        RequestError: unknown name, missing or broken file, no template in the tokenizer, no end of turn.
    """
    if name == "tokenizer":
        source = _own_template(tokenizer)
    elif name in NAMES:
        source = _builtin(name)
    else:
        source = _file(name)
    return _build(name, source, tokenizer, tokenizer.bos_token, tokenizer.eos_token)


def own_template(tokenizer: Any) -> Template | None:
    """The chat template of `tokenizer`; None where there is none, or, with a warning, where its end of turn
    is not known."""
    if not tokenizer.chat_template:
        return None
    try:
        return load_template("tokenizer", tokenizer)
    except RequestError as error:
        log.warning("the end of an assistant turn is not known: %s", error)
        return None


@lru_cache(maxsize=8)
def _build(name: str, source: str, tokenizer, bos: str | None, eos: str | None) -> Template:
    tokens: tuple[str, ...] = ()
    adds_bos = bos is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    while declared := HEADER.match(source):
        tokens += tuple((declared["tokens"] or "").split())
        adds_bos = adds_bos and not declared["no_bos"]
        source = source[declared.end() :]
    if adds_bos and name != "tokenizer" and "bos_token" not in source and bos not in source:
        source = "{{- bos_token }}" + source
    probe: list[Message] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": PROBE}]
    try:
        text = _render(source, tokenizer, probe, False)
    except RowError as error:
        raise RequestError(f"template {name!r}: {error.detail}") from error
    end_of_turn = text.rpartition(PROBE)[2].strip()
    if not end_of_turn:
        raise RequestError(
            f"template {name!r}: nothing closes an assistant turn, so a model would never learn to stop; "
            "write an end-of-turn token after it"
        )
    return Template(name, source, tokenizer, tokens, end_of_turn)


def _render(source: str, tokenizer, messages: list[Message], add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        rendered = tokenizer.apply_chat_template(
            [messages],  # a batch of one, because an empty list of messages would be an empty batch
            chat_template=source,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except (TemplateError, TypeError, ValueError, LookupError) as error:
        line = f" (line {error.lineno})" if getattr(error, "lineno", None) else ""
        raise RowError("template_error", f"the template fails: {error}{line}") from error
    return rendered[0]


def _own_template(tokenizer) -> str:
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        others = ", ".join(NAMES[1:])
        raise RequestError(
            "template 'tokenizer': the tokenizer has no chat template; set data.template to one of "
            f"{others}, or to the path of a .jinja file"
        ) from error


@cache
def _builtin(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")


def _file(name: str) -> str:
    path = Path(name).expanduser()
    if path.suffix != ".jinja" and "/" not in name:
        near = did_you_mean(name, NAMES)
        raise RequestError(f"unknown template {name!r}{near}; a .jinja file needs its path")
    try:
        return path.read_text(encoding="utf-8").rstrip("\n")
    except OSError as error:
        siblings = [p.name for p in path.parent.glob("*.jinja")]
        near = did_you_mean(path.name, siblings)
        raise RequestError(f"template {path}: {error.strerror}{near}") from None
    except UnicodeDecodeError:
        raise RequestError(f"template {path}: not UTF-8; convert the file to UTF-8") from None


def load_text(model: Model, template: str, start: str | None) -> tuple[Any, Template]:
    """(tokenizer, template), with every token that `model` or the template adds.

    `start` is where the tokenizer of `model.init` lies; it is used where the recipe names none.
    `model.revision` applies to that tokenizer only, not to one named in `model.tokenizer`. Raises
    `RequestError`, see `load_tokenizer`, `load_template` and `add_tokens`.
    """
    revision = None if model.tokenizer else model.revision
    tokenizer = load_tokenizer(model.tokenizer or str(start), revision, model.trust_remote_code)
    loaded = load_template(template, tokenizer)
    tokens = [*model.add_tokens, *loaded.missing_tokens(tokenizer)]
    if tokens:
        add_tokens(tokenizer, tokens)
    loaded.apply_to(tokenizer)
    return tokenizer, loaded
