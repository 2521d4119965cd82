"""Chat templates by name: a tokenizer's own, built-in ones and files, bound to a tokenizer.

FORMS.md says whose forms the built-in ones have. They keep earlier thoughts, so that every rendering is the
beginning of the next one. Left out: rendering (rendering.py), which spans are assistant turns (turns.py),
images, several named templates in one tokenizer.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from posttrain.data.kept import Render, refuse_left_out, refuse_lost, says_all
from posttrain.data.rendering import CALL, PROBE, render, renderer, thinking_switch, unrendered, variables
from posttrain.data.tokenizers import add_tokens, load_tokenizer
from posttrain.data.tokens import RowError
from posttrain.data.turns import Turn, closing, find_turns, opened_by
from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe.schema import Model
from posttrain.types import Example, Message

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "templates"
NAMES = ("tokenizer", "chatml", "llama3", "tulu", "plain")
HEADER = re.compile(r"\{#-? (?:tokens: (?P<tokens>.*?)|(?P<no_bos>no bos)) -?#\}\s*")
"""A template file may begin with the strings that must be one token each, and with `no bos`: its texts have
no begin-of-text token."""
BEGIN = "{{- bos_token }}"
KNOWN_AS = "known_as"
"""Folder of the built-in templates as they were before they rendered tools and reasoning. Both render a
conversation without them alike, so that its tables and scores keep the names that they had."""


@dataclass(frozen=True)
class Template:
    """A template bound to a tokenizer, whose special tokens it writes."""

    name: str
    source: str
    tokenizer: Any
    tokens: tuple[str, ...]
    end_of_turn: str
    """What closes an assistant turn, e.g. `<|im_end|>`; generation stops there."""
    end_of_call: str = ""
    """What closes a turn that calls a tool, where it is something else, e.g. `<|eom_id|>`."""
    options: dict[str, Any] = field(default_factory=dict, compare=False)
    """The defaults of its variables that are written into `source`."""

    @property
    def end_ids(self) -> list[int]:
        """The tokens of the end of turn."""
        return self.tokenizer(self.end_of_turn, add_special_tokens=False)["input_ids"]

    @property
    def stops(self) -> list[int]:
        """The ends of a turn and of a call that are one token, at which generation stops."""
        return (self.end_ids if len(self.end_ids) == 1 else []) + list(self.calls_end)

    @property
    def endings(self) -> list[list[int]]:
        """The end of turn where it is several tokens, behind which generation stops."""
        return [self.end_ids] if len(self.end_ids) > 1 else []

    def render(
        self,
        messages: list[Message],
        add_generation_prompt: bool = False,
        tools: list[dict[str, Any]] | None = None,
        options: dict[str, Any] | None = None,
    ) -> str:
        """The text of a conversation, or of a prompt for the assistant's next turn. Raises `RowError`, see
        `rendering.render`."""
        return render(self.source, self.tokenizer, messages, add_generation_prompt, tools, options)

    def asking(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None = None,
        options: dict[str, Any] | None = None,
    ) -> str:
        """The prompt for the next turn, which says all of `messages`. Raises `RowError`, see
        `rendering.render` and kept.py."""
        rendered = self._renderer(tools, options)
        text = rendered(messages, True)
        if not says_all(messages, text):
            refuse_lost(rendered, messages, asks=True)
            refuse_left_out(messages, text)
        return text

    def turns(
        self,
        messages: list[Message],
        last_only: bool = False,
        tools: list[dict[str, Any]] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[str, list[Turn]]:
        """The full text, and the assistant turns in it that are trained, or only the last one. Raises
        `RequestError` and `RowError`, see `turns.find_turns`. The last trained turn is tokenised apart from
        its prompt, as it is sampled; earlier ones are not, and a token may cross their beginning."""
        ends = (self.end_of_turn, *filter(None, [self.end_of_call]))
        switch = thinking_switch(self.source, {*self.options, *(options or {})})
        return find_turns(self.name, self._renderer(tools, options), ends, messages, last_only, switch)

    def _renderer(self, tools: list[dict[str, Any]] | None, options: dict[str, Any] | None) -> Render:
        return renderer(self.source, self.tokenizer, tools, options)

    def opened(self, asked: list[Message], example: Example) -> str:
        """What the prompt `asked` of `example` opens of a reply, such as `<think>`, so that a reply as it is
        sampled says it only behind this. Raises `RowError`."""
        rendered = self._renderer(example.tools, example.template_options)
        return opened_by(rendered, asked, rendered(asked, True))

    @property
    def calls_end(self) -> dict[int, str]:
        """The token that ends a call where it is not the end of turn -> its text."""
        if not self.end_of_call or self.end_of_turn.endswith(self.end_of_call):
            return {}
        ids = self.tokenizer(self.end_of_call, add_special_tokens=False)["input_ids"]
        return {ids[0]: self.end_of_call} if len(ids) == 1 else {}

    def unrendered(self, example: Example, messages: list[Message]) -> tuple[int | None, str] | None:
        """See `rendering.unrendered`."""
        return unrendered(self.source, self.tokenizer, messages, example.tools, example.template_options)

    def apply_to(self, tokenizer) -> None:
        """Install the template, so that `save_pretrained` writes it."""
        if self.name != "tokenizer" or self.options:
            tokenizer.chat_template = self.source

    def missing_tokens(self, tokenizer) -> list[str]:
        """Tokens of the template that `tokenizer` lacks and would split: they have to be added."""
        vocabulary = tokenizer.get_vocab()
        return [token for token in self.tokens if token not in vocabulary]


def load_template(name: str, tokenizer, options: dict[str, Any] | None = None) -> Template:
    """The template `name`: `tokenizer`, a built-in one, or a path to a .jinja file.

    `options` become defaults of its variables in the source, so that a saved checkpoint renders the same.

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
    written = json.dumps(options, sort_keys=True) if options else "{}"
    special = tokenizer.special_tokens_map  # quicker than both as attributes, and this is asked for every row
    return _build(name, source, tokenizer, special.get("bos_token"), special.get("eos_token"), written)


def own_template(tokenizer: Any) -> Template | None:
    """The chat template of `tokenizer`; None where there is none or, with a warning, no known end."""
    if not tokenizer.chat_template:
        return None
    try:
        return load_template("tokenizer", tokenizer)
    except RequestError as error:
        log.warning("the end of an assistant turn is not known: %s", error)
        return None


def known_as(source: Any) -> Any:
    """What stands for the template `source` in the name of a table or score of conversations without tools,
    tool messages and reasoning: of a built-in one its text in `KNOWN_AS`, of others `source` itself."""
    return _known().get(source, source) if isinstance(source, str) else source


@cache
def _known() -> dict[str, str]:
    found = {}
    for name in NAMES[1:]:
        now, before = (_declared(_builtin(each))[0] for each in (name, f"{KNOWN_AS}/{name}"))
        found |= {begin + now: begin + before for begin in ("", BEGIN)}
    return found


def _declared(source: str) -> tuple[str, tuple[str, ...], bool]:
    """A template's source without its headers, its tokens, and whether it wants no begin-of-text token."""
    tokens: tuple[str, ...] = ()
    no_bos = False
    while declared := HEADER.match(source):
        tokens += tuple((declared["tokens"] or "").split())
        no_bos = no_bos or bool(declared["no_bos"])
        source = source[declared.end() :]
    return source, tokens, no_bos


@lru_cache(maxsize=8)
def _build(
    name: str, source: str, tokenizer, bos: str | None, eos: str | None, options: str = "{}"
) -> Template:
    source, tokens, no_bos = _declared(source)
    adds_bos = bos is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id] and not no_bos
    if adds_bos and name != "tokenizer" and "bos_token" not in source and bos not in source:
        source = BEGIN + source
    chosen = json.loads(options)
    for key, value in chosen.items():
        if key not in variables(source):
            raise RequestError(
                f"data.template_options: template {name!r} has no variable {key!r}"
                f"{did_you_mean(key, variables(source))}"
            )
        source = (
            f"{{%- if {key} is not defined %}}{{%- set {key} = {_literal(value)} %}}{{%- endif %}}{source}"
        )
    probe: list[Message] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": PROBE}]
    try:
        text = render(source, tokenizer, probe)
    except RowError as error:
        raise RequestError(f"template {name!r}: {error.detail}") from error
    end_of_turn = text.rpartition(PROBE)[2].strip()
    if not end_of_turn:
        raise RequestError(
            f"template {name!r}: nothing closes an assistant turn, so a model would never learn to stop; "
            "write an end-of-turn token after it"
        )
    call = _end_of_call(source, tokenizer, tokens)
    other = call if call != end_of_turn else ""
    return Template(name, source, tokenizer, tokens, end_of_turn, other, chosen)


def _end_of_call(source: str, tokenizer, tokens: tuple[str, ...]) -> str:
    """The token, of the tokenizer or of the template's `tokens`, that closes a turn with a call; empty where
    the template renders none."""
    try:
        text = render(source, tokenizer, CALL)
    except RowError:
        return ""
    return closing(text, [*tokenizer.get_added_vocab(), *tokens]) if PROBE in text else ""


def _literal(value: Any) -> str:
    """A value of YAML as Jinja writes it, which for these is as Python does."""
    if value is not None and not isinstance(value, bool | int | float | str):
        raise RequestError(f"data.template_options: {value!r} must be text, a number, true or false")
    return repr(value)


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


def load_text(
    model: Model, template: str, start: str | None, options: dict[str, Any] | None = None
) -> tuple[Any, Template]:
    """(tokenizer, template), with every token that `model` or the template adds.

    `start` is where the tokenizer of `model.init` lies; it is used where the recipe names none.
    `model.revision` applies to that tokenizer only, not to one named in `model.tokenizer`. Raises
    `RequestError`, see `load_tokenizer`, `load_template` and `add_tokens`.
    """
    revision = None if model.tokenizer else model.revision
    tokenizer = load_tokenizer(model.tokenizer or str(start), revision, model.trust_remote_code)
    loaded = load_template(template, tokenizer, options)
    tokens = [*model.add_tokens, *loaded.missing_tokens(tokenizer)]
    if tokens:
        add_tokens(tokenizer, tokens)
    loaded.apply_to(tokenizer)
    return tokenizer, loaded
