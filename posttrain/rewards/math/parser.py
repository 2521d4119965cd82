r"""Tokens to a tree: a recursive-descent parser for LaTeX and plain mathematics.

Products bind as they are read, `1/2x` is (1/2)x; `-x^2` is -(x^2); `2\frac12` and `2 1/2` are mixed numbers;
a function without brackets takes the factors that follow (`\sin 2x`). Left out, and therefore refused:
integrals, sums, products, limits, derivatives, sequences, anything that would have to be solved before it is
an answer.
"""

from __future__ import annotations

from fractions import Fraction

from posttrain.rewards.math.cursor import END, Cursor
from posttrain.rewards.math.limits import Unreadable
from posttrain.rewards.math.tokens import tokenize
from posttrain.rewards.math.tree import Tree, add, inverse, mul, negative, num

CLOSERS = {"(": ")", "[": "]", "{": "}"}
STARTS = ("num", "sym", "const", "fn", "cmd", "text")
HALF = num(Fraction(1, 2))
ALIASES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "log10", "log": "ln"}
UNKNOWN_FUNCTIONS = ("f", "g")


def parse(text: str) -> Tree:
    """The tree of one cleaned expression.

    Raises:
        Unreadable: it is not an expression.
        TooCostly: it is nested more than 100 levels deep, or a number is too large.
    """
    return _Parser(tokenize(text)).whole()


class _Parser(Cursor):
    def whole(self) -> Tree:
        tree = self.sum()
        if self.peek() is not END:
            raise Unreadable(f"{self.peek()[1]!r} is out of place")
        return tree

    def sum(self) -> Tree:
        self.deeper()
        parts = [self.product()]
        while self.op("+", "-"):
            minus = self.take()[1] == "-"
            part = self.product()
            parts.append(negative(part) if minus else part)
        self.depth -= 1
        return add(parts)

    def product(self) -> Tree:
        minus = self.signs()
        parts = [self.power()]
        while True:
            if self.op("*", "/"):
                over = self.take()[1] == "/"
                inner = self.signs()
                part = self.power()
                parts.append(inverse(part) if over else part)
                minus ^= inner
            elif self.starts():
                if self.peek()[0] == "num":
                    self.mixed(parts)
                else:
                    parts.append(self.power())
            else:
                break
        tree = mul(parts)
        return negative(tree) if minus else tree

    def mixed(self, parts: list[Tree]) -> None:
        """`2 1/2`: a number after a number can only be the fraction of a mixed number."""
        whole = self.tokens[self.at - 1]
        if whole[0] != "num" and (parts[-1][0] == "pow" or whole[1] in (")", "}", "]", "!")):
            parts.append(self.power())
            return
        top = self.take()
        if whole[0] != "num" or len(parts) != 1 or not self.op("/"):
            raise Unreadable("two numbers side by side")
        self.take()
        bottom = self.take()
        if bottom[0] != "num":
            raise Unreadable("two numbers side by side")
        parts[:] = [self.mixed_value(whole[1], top[1], bottom[1])]

    @staticmethod
    def mixed_value(whole: Fraction, top: Fraction, bottom: Fraction) -> Tree:
        if not (whole.denominator == top.denominator == bottom.denominator == 1 and 0 < top < bottom):
            raise Unreadable("two numbers side by side")
        return num(whole + top / bottom)

    def starts(self) -> bool:
        """Whether the next token can begin a factor."""
        token = self.peek()
        if token[0] == "cmd":
            return token[1] not in ("rfloor", "rceil")
        return token[0] in STARTS or self.op("(", "[", "{", "∞") or (self.op("|") and not self.bars)

    def power(self) -> Tree:
        """A factor with what follows it: `!`, `%`, degrees, an exponent."""
        before = self.at
        tree = self.primary()
        if self.tokens[before][0] == "num" and self.at == before + 1:
            tree = self.mixed_frac(tree)
        return self.postfix(tree)

    def postfix(self, tree: Tree, powers: bool = True) -> Tree:
        for _ in range(4):
            if self.op("!"):
                self.take()
                double = self.op("!")
                self.at += double
                tree = ("fn", "factorial2" if double else "factorial", (tree,))
            elif self.op("%"):
                self.take()
                tree = mul([tree, num(Fraction(1, 100))])
            elif self.op("°"):
                self.take()
                tree = mul([tree, ("const", "pi"), num(Fraction(1, 180))])
            elif self.op("^") and powers:
                self.take()
                return self.postfix(("pow", tree, self.exponent()), False)
            else:
                return tree
        raise Unreadable("too many marks after a value")

    def mixed_frac(self, tree: Tree) -> Tree:
        r"""`2\frac{1}{2}` of two numbers is a sum."""
        if self.peek() != ("cmd", "frac") or tree[1].denominator != 1:
            return tree
        start = self.at
        self.take()
        top, bottom = self.argument(), self.argument()
        values = [tree[1], *(t[1] for t in (top, bottom) if t[0] == "num")]
        if len(values) == 3 and all(v.denominator == 1 for v in values) and 0 < values[1] < values[2]:
            return num(values[0] + values[1] / values[2])
        self.at = start
        return tree

    def exponent(self) -> Tree:
        self.deeper()
        minus = self.signs()
        tree = self.group() if self.op("{") else self.primary()
        if self.op("^"):
            self.take()
            tree = ("pow", tree, self.exponent())
        elif self.op("!"):
            raise Unreadable("a factorial after an exponent without brackets")
        self.depth -= 1
        return negative(tree) if minus else tree

    def group(self) -> Tree:
        opener = self.take()[1]
        bars, self.bars = self.bars, 0
        tree = self.sum()
        self.expect(CLOSERS[opener])
        self.bars = bars
        return tree

    def argument(self) -> Tree:
        r"""The argument of a LaTeX command: a group or one token; of a number, one digit (`\frac12`)."""
        if self.op("{"):
            return self.group()
        token = self.peek()
        if token[0] == "num" and token[2].isdigit() and len(token[2]) > 1:
            head, rest = token[2][0], token[2][1:]
            self.tokens[self.at] = ("num", Fraction(int(rest)), rest)
            return num(int(head))
        if token[0] == "op" and token[1] in "+-":
            raise Unreadable("a sign as an argument")
        return self.primary()

    def primary(self) -> Tree:
        kind, value, *_ = token = self.take()
        if kind == "num":
            return num(value)
        if kind == "const":
            return ("const", value)
        if kind == "sym":
            return self.symbol(value)
        if kind == "fn":
            return self.function(value)
        if kind == "cmd":
            return self.command(value)
        if kind == "op" and value in CLOSERS:
            self.at -= 1
            return self.group()
        if kind == "op" and value == "∞":
            return ("inf",)
        if kind == "op" and value == "|" and not self.bars:
            self.bars += 1
            tree = self.sum()
            self.expect("|")
            self.bars -= 1
            return ("fn", "abs", (tree,))
        raise Unreadable(f"{token[1]!r} is out of place" if token is not END else "an unfinished expression")

    def symbol(self, name: str) -> Tree:
        if self.op("_"):
            self.take()
            name += "_" + self.subscript()
        while self.op("'"):
            self.take()
            name += "'"
        if name in UNKNOWN_FUNCTIONS and self.op("("):
            return ("fn", name + "()", (self.group(),))
        return ("sym", name)

    def subscript(self) -> str:
        if not self.op("{"):
            return str(self.take()[1])
        self.take()
        depth, inside = 1, []
        while depth:
            token = self.take()
            if token is END:
                raise Unreadable("'}' is missing")
            depth += (token == ("op", "{")) - (token == ("op", "}"))
            inside.append(str(token[1]))
        return "".join(inside[:-1])

    def function(self, name: str) -> Tree:
        base = exponent = None
        while self.op("_", "^"):
            if self.take()[1] == "_":
                base = self.argument_whole()
            else:
                exponent = self.exponent()
        if name == "sqrt":
            return self.root()
        inverted = exponent == num(-1) and name in ("sin", "cos", "tan")
        if name in ("max", "min", "gcd", "lcm", "binomial") or (base is not None and name != "log"):
            raise Unreadable(f"the function {name}")
        if name == "log" and base is not None:
            tree: Tree = ("fn", "logb", (self.operand(), base))
        else:
            tree = ("fn", "arc" + name if inverted else ALIASES.get(name, name), (self.operand(),))
        return tree if exponent is None or inverted else ("pow", tree, exponent)

    def argument_whole(self) -> Tree:
        return self.group() if self.op("{") else self.primary()

    def operand(self) -> Tree:
        """The argument of a function: a bracket, or the factors up to the next operator or function."""
        self.deeper()
        if self.op("(", "[", "{") or (self.op("|") and not self.bars):
            tree = self.primary()
        else:
            minus = self.signs()
            if self.peek()[0] == "fn":
                parts = [self.power()]
            else:
                parts = [self.power()]
                while self.starts() and self.peek()[0] not in ("fn", "num") and not self.op("(", "["):
                    parts.append(self.power())
            tree = negative(mul(parts)) if minus else mul(parts)
        self.depth -= 1
        return tree

    def root(self) -> Tree:
        degree = self.group() if self.op("[") else None
        tree = self.argument_whole()
        if degree is None:
            return ("pow", tree, HALF)
        return ("fn", "root", (tree, degree))

    def command(self, name: str) -> Tree:
        if name == "frac":
            return mul([self.argument(), inverse(self.argument())])
        if name == "binom":
            return ("fn", "binomial", (self.argument(), self.argument()))
        if name == "sqrt":
            return self.root()
        if name in ("lfloor", "lceil"):
            bars, self.bars = self.bars, 0
            tree = self.sum()
            if self.take() != ("cmd", "r" + name[1:]):
                raise Unreadable(f"\\r{name[1:]} is missing")
            self.bars = bars
            return ("fn", name[1:], (tree,))
        raise Unreadable(f"\\{name} is out of place")
