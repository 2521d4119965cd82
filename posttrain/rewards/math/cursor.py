"""A list of tokens and a position in it, for a recursive-descent parser. Left out: the grammar."""

from __future__ import annotations

from posttrain.rewards.math.limits import DEEPEST, TooCostly, Unreadable
from posttrain.rewards.math.tokens import Token

END: Token = ("end", "")


class Cursor:
    """`at` is the position, `depth` the level of nesting, `bars` the number of open `|`."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.bars = 0

    def peek(self) -> Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else END

    def take(self) -> Token:
        token = self.peek()
        self.at += 1
        return token

    def op(self, *which: str) -> bool:
        """Whether the next token is one of these operators."""
        token = self.peek()
        return token[0] == "op" and token[1] in which

    def expect(self, which: str) -> None:
        if not self.op(which):
            raise Unreadable(f"{which!r} is missing")
        self.at += 1

    def deeper(self) -> None:
        """Enters one level; the caller leaves it by reducing `depth`."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise TooCostly(f"more than {DEEPEST} levels of nesting")

    def signs(self) -> bool:
        """Takes one sign, if there is one. Returns whether it is a minus."""
        return self.op("+", "-") and self.take()[1] == "-"
