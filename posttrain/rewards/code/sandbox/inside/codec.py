"""Plain data as JSON: exact built-in types in a flat table, which keeps sharing and cycles at any depth.

A value is an element: None, a bool, a small int, a float and a str are written as they are; `{"i": hex}` is a
big int, `{"b": hex}` bytes, `{"c": [re, im]}` complex, `[k]` entry k of the table. An entry is `[tag, ...]`.
Subclasses of the built-in containers are sent as that built-in, without their methods. A decoder builds only
the types named here, so that no code arrives. Left out: pickles, and values of classes that neither side
knows; `Side` turns those into handles.
"""

import datetime
import decimal
import fractions
from collections import Counter, OrderedDict, defaultdict, deque

SMALL = 1 << 63
INTS = frozenset((int,))
PLAIN = frozenset((type(None), bool, str, float))
MOST_ENTRIES = 2_000_000

FROZEN = ("t", "z", "x")
"""Tags of values that need their parts when they are built; all others are created empty and then filled."""
BUILTINS = {
    o: n
    for n, o in vars(__import__("builtins")).items()
    if isinstance(o, type)
    or n in ("abs", "len", "min", "max", "sum", "sorted", "ord", "chr", "pow", "round", "print")
}
BY_NAME = {n: o for o, n in BUILTINS.items() if n not in ("type", "super", "__loader__")}


class ProtocolError(Exception):
    """What arrived breaks the format."""


class Side:
    """How one process treats what is not plain data: overridden by the host and by the tester's session."""

    def foreign(self, value):
        """The entry for a value of another class, without references to other entries."""
        raise TypeError(f"an object of class {type(value).__name__} cannot be sent to the program")

    def attributes(self, value):
        """(class name, {attribute: value}) for classes that are sent by their attributes, otherwise None."""
        return None

    def opaque(self, value):
        """Whether a value that could be sent as its items is `foreign` nevertheless."""
        return False

    def build(self, entry):
        """The value of an entry that `foreign` made."""
        raise ProtocolError(f"unknown tag {entry[0]!r}")

    def instance(self, name):
        """An empty instance of a class that is sent by its attributes."""
        raise ProtocolError(f"unknown class {name!r}")


class Encoder:
    """Values to one table. `memo` maps objects that have an entry already: id -> (object, index)."""

    def __init__(self, side):
        self.side, self.table, self.memo, self.todo = side, [], {}, []

    def reserve(self, index, value):
        """Binds `value` to entry `index`, which the caller fills."""
        self.memo[id(value)] = (value, index)

    def element(self, value):
        """The element of `value`; a promised entry is filled by `drain`."""
        kind = type(value)
        if kind in PLAIN:
            return value
        if kind is int:
            return value if -SMALL < value < SMALL else {"i": hex(value)}
        if kind is bytes:
            return {"b": value.hex()}
        if kind is complex:
            return {"c": [value.real, value.imag]}
        found = self.memo.get(id(value))
        if found is None:
            index = len(self.table)
            if index >= MOST_ENTRIES:
                raise OverflowError("a value with too many parts")
            self.memo[id(value)] = (value, index)
            self.table.append(None)
            self.todo.append((index, value))
        else:
            index = found[1]
        return [index]

    def drain(self):
        """Fills the entries that `element` promised."""
        while self.todo:
            index, value = self.todo.pop()
            self.table[index] = self.entry(value)

    def encode(self, value):
        """The element of `value`, with its entries in `table`."""
        element = self.element(value)
        self.drain()
        return element

    def many(self, values):
        values = list(values)
        kinds = set(map(type, values))
        small = kinds == INTS and min(values) > -SMALL and max(values) < SMALL
        if small or kinds <= PLAIN:
            return values
        return [self.element(v) for v in values]

    def pairs(self, value):
        items = OrderedDict.items if isinstance(value, OrderedDict) else dict.items
        return [e for k, v in items(value) for e in (self.element(k), self.element(v))]

    def entry(self, value):
        kind = type(value)
        if kind is list:
            return ["l", self.many(value)]
        if kind is dict:
            return ["d", self.pairs(value)]
        if kind is tuple:
            return ["t", self.many(value)]
        if kind.__module__ == "numpy" or kind.__name__ == "ndarray":
            return self.array(value)
        stdlib = scalar(value)
        if stdlib is not None:
            return ["x", stdlib]
        if isinstance(value, (BaseException, type)):
            return self.builtin(value)
        shared = self.side.attributes(value)
        if shared is not None:
            return ["n", shared[0], [e for k, v in shared[1].items() for e in (k, self.element(v))]]
        if self.side.opaque(value):
            return self.side.foreign(value)
        for base, tag in ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "z")):
            if isinstance(value, base):
                return [tag, self.many(base.__iter__(value))]
        if isinstance(value, dict):
            if isinstance(value, defaultdict):
                factory = BUILTINS.get(value.default_factory) if value.default_factory else None
                return ["f", self.pairs(value), factory]
            tag = "o" if isinstance(value, OrderedDict) else "u" if isinstance(value, Counter) else "d"
            return [tag, self.pairs(value)]
        if isinstance(value, deque):
            return ["q", self.many(deque.__iter__(value)), value.maxlen]
        if isinstance(value, bytearray):
            return ["a", bytes(value).hex()]
        for base in (bool, int, float, str, bytes, complex):
            if isinstance(value, base) and not hasattr(kind, "_member_map_"):
                plain = base(value) if base is complex else base.__getnewargs__(value)[0]
                return ["v", self.element(plain)]
        if kind is range:
            return ["r", [self.element(value.start), self.element(value.stop), self.element(value.step)]]
        if kind in (type({}.keys()), type({}.values())):
            return ["K" if kind is type({}.keys()) else "V", self.many(value)]
        if kind is type({}.items()):
            return ["I", [e for k, v in value for e in (self.element(k), self.element(v))]]
        return self.builtin(value)

    def builtin(self, value):
        try:
            name = BUILTINS.get(value)
        except TypeError:  # no hash
            name = None
        return ["b", name] if name else self.side.foreign(value)

    def array(self, value):
        kind = type(value)
        try:
            if kind.__name__ == "ndarray" and value.dtype.kind in "biufcUS":
                return ["N", value.dtype.str, list(value.shape), self.many(value.ravel().tolist())]
            if kind.__module__ == "numpy" and hasattr(kind, "dtype"):
                return ["N", value.dtype.str, None, [self.element(value.item())]]
        except Exception:  # an object that only looks like an array
            pass
        return self.side.foreign(value)


def scalar(value):
    """The parts of a value of a standard-library class, or None."""
    kind = type(value)
    if kind is fractions.Fraction:
        return ["Fraction", hex(value.numerator), hex(value.denominator)]
    if kind is decimal.Decimal:
        return ["Decimal", str(value)]
    if kind in (datetime.datetime, datetime.date, datetime.time) and getattr(value, "tzinfo", None) is None:
        return [kind.__name__, value.isoformat()]
    if kind is datetime.timedelta:
        return ["timedelta", value.days, value.seconds, value.microseconds]
    return None


def unscalar(parts):
    """The value of what `scalar` returned."""
    name, *rest = parts
    if name == "Fraction":
        return fractions.Fraction(int(rest[0], 16), int(rest[1], 16))
    if name == "Decimal":
        return decimal.Decimal(rest[0])
    if name in ("datetime", "date", "time"):
        return getattr(datetime, name).fromisoformat(rest[0])
    if name == "timedelta":
        return datetime.timedelta(*rest)
    raise ProtocolError(f"unknown scalar {name!r}")
