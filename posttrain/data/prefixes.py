"""The beginnings of a conversation, out of one rendering of the whole.

To find the assistant's turns (turns.py) a conversation is rendered up to each of them, which costs the square
of their number. Here the template's loop over the messages runs once, with a mark behind each message, and
what it reads of the messages is watched. The text up to a mark is that of the shorter conversation if nothing
behind it was read until there. Where this does not hold, the shorter one is rendered by itself, and so is
all where a template has no such loop. Left out: the rendering itself (rendering.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from operator import is_
from typing import Any

from posttrain.types import Message

MARK = "posttrain_mark"
ASKS = "add_generation_prompt"
Render = Callable[[list[Message], bool], str]


class Beginnings:
    """Renders as `plain(messages, add_generation_prompt)` does. The first conversation of several messages
    is rendered once; its beginnings, lists of the same objects, then cost nothing.

    `given(messages, add_generation_prompt)` are the variables for the template `source`, `compiled` by
    transformers, with the messages as the template gets them.
    """

    def __init__(
        self, source: str, compiled: Any, plain: Render, given: Callable[[Any, bool], dict[str, Any]]
    ) -> None:
        self._marked = _marked(source, compiled.environment)
        self._globals, self._plain, self._given = compiled.globals, plain, given
        self._whole: list[Message] = []
        self._variables: dict[str, Any] = {}
        self._text = ""
        self._ends: dict[int, int] = {}
        """Number of messages -> end of the last of them in the text, where it is that of a beginning."""
        self._tails: dict[bool, str | None] = {}
        """What follows the last message, without and with a prompt for a reply."""

    def __call__(self, messages: list[Message], asks: bool) -> str:
        if self._marked is None:
            return self._plain(messages, asks)
        count = len(messages)
        if not self._whole and not asks:
            self._take(messages)
        if count in self._ends and all(map(is_, messages, self._whole)):
            tail = self._tail(asks)
            if tail is not None:
                return self._text[: self._ends[count]] + tail
        return self._plain(messages, asks)

    def _take(self, messages: list[Message]) -> None:
        self._whole, self._variables = messages, self._given(messages, False)
        found = self._run(self._variables)
        if found is not None:
            self._text, self._ends = found
            self._tails[False] = self._text[self._ends[len(messages)] :]

    def _tail(self, asks: bool) -> str | None:
        if asks not in self._tails:
            given = self._variables | {ASKS: asks}
            known, key = self._marked.known_tails, self._marked.key(given)
            tail = known.get(key) if key is not None else None
            if tail is None and (found := self._run(given)) is not None:
                tail = found[0][self._ends[len(self._whole)] :]
            self._tails[asks] = tail
            if key is not None and tail is not None:
                known[key] = tail
        return self._tails[asks]

    def _run(self, given: dict[str, Any]) -> tuple[str, dict[int, int]] | None:
        """The text of the whole, and the ends of its beginnings; None where even that of all messages is not
        known, or the template fails."""
        seen = Watched(given["messages"])
        chunks = seen._chunks
        try:
            variables = {**self._globals, **given, "messages": seen}
            context = self._marked.template.new_context(variables, shared=True)
            for chunk in self._marked.template.root_render_func(context):
                chunks.append(chunk)
        except Exception:  # the plain rendering says what it is
            return None
        lengths = [0, *accumulate(map(len, chunks))]
        ends = {count: lengths[at] for count, at in seen._known_ends().items()}
        return ("".join(chunks), ends) if len(self._whole) in ends else None


class Watched(Sequence):
    """The messages of a conversation for a template, which notes the numbers of messages with which it would
    have seen another conversation. A template reads no name that begins with an underscore."""

    def __init__(self, messages: list[Any]) -> None:
        self._all = messages
        self._numbers = {id(each): number for number, each in enumerate(messages)}
        self._ends: dict[int, int] = {}
        self._told: set[int] = set()
        self._chunks: list[str] = []
        """The pieces of text that are written so far."""
        self._at = 0
        """The message that the loop is at: a conversation that ends with it is not told from the whole."""

    def __bool__(self) -> bool:
        return bool(self._all)

    def __len__(self) -> int:
        self._told.update(range(len(self._all)))
        return len(self._all)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int) and index >= 0:
            self._look(index)
            return self._all[index]
        return self._all[: len(self)][index]

    def __iter__(self) -> Iterator[Any]:
        for number, each in enumerate(self._all):
            if number - 1 not in self._ends:  # `loop.last` looks ahead, or it is another loop
                self._look(number)
            self._at = max(self._at, number)
            yield each

    def _refuse(self, *_: object) -> Any:
        raise TypeError("the messages can only be read one by one")

    __str__ = __repr__ = __hash__ = __eq__ = _refuse

    def _end(self, message: Any) -> None:
        """Notes that a message is written."""
        number = self._numbers.get(id(message))
        if number is not None:
            self._ends[number] = len(self._chunks)

    def _known_ends(self) -> dict[int, int]:
        """Number of messages -> pieces of text that they have, for those that were not told apart."""
        return {number + 1: at for number, at in self._ends.items() if number + 1 not in self._told}

    def _look(self, number: int) -> None:
        """At a message: shorter conversations, but for what lies behind their last message, have none."""
        self._told.update(range(self._at + 1, min(number, len(self._all) - 1) + 1))


@dataclass
class _Marked:
    """A template with a mark behind each message."""

    template: Any
    read: tuple[str, ...] | None
    """What is read behind the loop, all of it variables that are given; None where some is made before."""
    known_tails: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def key(self, given: dict[str, Any]) -> tuple[Any, ...] | None:
        """Of a prompt behind the last message, if that is the same for every conversation."""
        if self.read is None:
            return None
        found = [given.get(name) for name in self.read]
        return tuple(found) if all(isinstance(each, str | bool | None) for each in found) else None


@lru_cache(maxsize=8)
def _marked(source: str, environment: Any) -> _Marked | None:
    """The template with a call of `MARK` behind each message; None where its beginnings cannot be told: it
    has no loop over `messages`, or what stands behind the loop reads more than variables that are given or
    set to a constant, so that it might see what the loop did."""
    from jinja2 import nodes, pass_context

    tree = environment.parse(source)
    body, stored = tree.body, _stored(tree)
    at = [k for k, node in enumerate(body) if isinstance(node, nodes.For) and _name(node.iter) == "messages"]
    if not at or "messages" in stored or next(tree.find_all(nodes.Block), None):
        return None
    loop, before, behind = body[at[0]], nodes.Template(body[: at[0] + 1]), nodes.Template(body[at[0] + 1 :])
    target, read = _name(loop.target), _names(behind)
    if loop.recursive or target is None or target in _stored(nodes.Template(loop.body)):
        return None  # a recursive loop writes into a buffer
    constants = Counter(
        _name(node.target) for node in before.find_all(nodes.Assign) if isinstance(node.node, nodes.Const)
    )
    made = read & {*stored}
    if any(stored[name] > constants[name] for name in made) or "messages" in read or ASKS in _names(before):
        return None
    marking = environment.overlay()
    marking.filters = {**environment.filters, MARK: pass_context(_mark)}
    loop.body.append(nodes.Output([nodes.Filter(nodes.Name(target, "load"), MARK, [], [], None, None)]))
    whole = nodes.Template(body, lineno=1).set_environment(marking)
    return _Marked(marking.from_string(whole), None if made else tuple(sorted(read)))


def _mark(context: Any, message: Any) -> str:
    """The filter behind each message: a function of the template's variables would pass the sandbox, which
    takes longer than all else that is watched."""
    context.parent["messages"]._end(message)
    return ""


def _stored(tree: Any) -> Counter[str]:
    """Name -> how often `tree` gives it a value."""
    from jinja2 import nodes

    names = Counter(node.name for node in tree.find_all(nodes.Name) if node.ctx in ("store", "param"))
    return names + Counter(node.name for node in tree.find_all(nodes.Macro))


def _names(tree: Any) -> set[str]:
    from jinja2 import nodes

    return {node.name for node in tree.find_all(nodes.Name)}


def _name(node: Any) -> str | None:
    return node.name if type(node).__name__ == "Name" else None
