"""The candidate's process: runs the program and answers the tester's calls with plain data.

The tester trusts nothing here: the program may rewrite this module and gains nothing by it, because all that
leaves is data that it could have returned. Neither tests nor expected values are ever in this process.
"""

import builtins
import linecache
import operator
import sys
import types
from collections import deque

from .codec import BUILTINS, Encoder, ProtocolError, Side
from .decode import Decoder
from .program import choose
from .wire import Gone, TooLarge, receive, send

FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.LambdaType)


class Callback:
    """A function or iterator of the tester."""

    def __init__(self, host, key):
        self._host, self._key = host, key

    def __call__(self, *args, **kwargs):
        return self._host.callback(self._key, "call", args, kwargs)

    def __iter__(self):
        return self

    def __next__(self):
        done, value = self._host.callback(self._key, "next", (), {})
        if done:
            raise StopIteration
        return value


class Host(Side):
    """Serves one program over `fd`."""

    def __init__(self, fd):
        self.fd, self.handles, self.ids, self.module, self.shared = fd, [], {}, None, frozenset()
        self.made = set()

    # ---- what is not plain

    def handle(self, value):
        key = id(value)
        if key not in self.ids:
            self.ids[key] = len(self.handles)
            self.handles.append(value)
        return self.ids[key]

    def foreign(self, value):
        if type(value) is Callback:
            return ["k", value._key]
        kind = type(value)
        if isinstance(value, type):
            if issubclass(value, BaseException):
                return ["h", self.handle(value), "e", value.__name__, base_name(value)]
            return ["h", self.handle(value), "c", value.__name__]
        if isinstance(value, FUNCTIONS):
            return ["h", self.handle(value), "f", str(getattr(value, "__name__", "?"))]
        if hasattr(kind, "__next__"):
            return ["h", self.handle(value), "i", kind.__name__]
        return ["h", self.handle(value), "o", kind.__name__, self.handle(kind)]

    def opaque(self, value):
        return self.ids.get(id(value)) in self.made

    def attributes(self, value):
        kind = type(value)
        if kind.__name__ in self.shared and getattr(self.module, kind.__name__, None) is kind:
            return kind.__name__, attributes_of(value)
        return None

    def build(self, entry):
        if entry[0] == "h":
            return self.handles[entry[1]]
        if entry[0] == "k":
            return Callback(self, entry[1])
        raise ProtocolError("unknown tag")

    def instance(self, name):
        found = getattr(self.module, name, None)
        if not isinstance(found, type):
            found = type(name, (), {})
            setattr(self.module, name, found)
        return object.__new__(found)

    # ---- the conversation

    def serve(self):
        while True:
            try:
                request = receive(self.fd)
            except Gone:
                return
            self.answer(request)

    def answer(self, request):
        try:
            reply = self.load(request) if request["do"] == "load" else self.do(request)
        except Gone:
            raise
        except BaseException as error:
            reply = self.failure(error)
        try:
            send(self.fd, reply)
        except (TooLarge, MemoryError, ValueError, RecursionError) as error:
            send(self.fd, {"exc": ["MemoryError", "MemoryError", str(error)[:200], None]})

    def do(self, request):
        table = request["t"]
        decoder = Decoder(self, table).run()
        args, kwargs = decoder.value(request["a"]), decoder.value(request["k"])
        target = None if request["h"] is None else self.handles[request["h"]]
        value = perform(request["do"], target, args, kwargs)
        if isinstance(target, type) and type(value) is target and behaves(target):
            self.made.add(self.handle(value))
        encoder = Encoder(self)
        encoder.table = [None] * len(table)
        for index, known in decoder.values.items():
            encoder.reserve(index, known)
        changed = None
        for index, entry in enumerate(table):
            if entry[0] in ("h", "k", "b"):
                encoder.table[index] = entry
            else:
                encoder.table[index] = encoder.entry(decoder.values[index])
        encoder.drain()
        if encoder.table != table:
            changed = encoder.table[: len(table)]
        element = encoder.encode(value)
        return {"v": element, "t": encoder.table[len(table) :], "m": changed}

    def failure(self, error):
        try:
            kind = type(error)
            encoder, args = Encoder(self), None
            if all(type(a) in (str, int, float, bool, type(None)) for a in error.args):
                args = encoder.encode(tuple(error.args))
            key = None if kind in BUILTINS else self.handle(kind)
            text = str(error)[:2000]
            return {"exc": [kind.__name__, base_name(kind), text, key], "t": encoder.table, "v": args}
        except BaseException:  # an exception that cannot be described
            return {"exc": ["Exception", "Exception", "", None]}

    def callback(self, key, what, args, kwargs):
        encoder = Encoder(self)
        elements = [encoder.encode(tuple(args)), encoder.encode(dict(kwargs))]
        send(self.fd, {"callback": key, "do": what, "t": encoder.table, "a": elements[0], "k": elements[1]})
        reply = receive(self.fd)
        while "do" in reply:  # the tester's function calls the program
            self.answer(reply)
            reply = receive(self.fd)
        decoder = Decoder(self, reply["t"]).run()
        if reply.get("exc"):
            raise getattr(builtins, reply["exc"][0], Exception)(reply["exc"][1])
        return decoder.value(reply["v"])

    def load(self, request):
        """Runs the program. Returns those names of the tests that it defines."""
        codes, source, wrong = choose(request["blocks"], request["prompt"], request["names"])
        if codes is None:
            return {"syntax": wrong}
        self.module = types.ModuleType("solution")
        sys.modules["solution"] = self.module
        self.shared = frozenset(request["shared"])
        remember(source)
        for code in codes:
            exec(code, self.module.__dict__)
        encoder, names = Encoder(self), {}
        for name in [*request["names"], *request["more"]]:
            if name in self.module.__dict__ and not isinstance(self.module.__dict__[name], types.ModuleType):
                names[name] = encoder.encode(self.module.__dict__[name])
        return {"names": names, "t": encoder.table}


def perform(what, target, args, kwargs):
    """One operation of the tester on an object of the program."""
    if what == "call":
        return target(*args, **kwargs)
    if what == "get":
        return getattr(target, *args)
    if what == "set":
        return setattr(target, *args)
    if what == "data":
        return attributes_of(target)
    if what == "next":
        try:
            return (False, next(target))
        except StopIteration:
            return (True, None)
    if what == "isinstance":
        return isinstance(args[0], target)
    if what == "enter":
        return type(target).__enter__(target)
    if what == "exit":
        return type(target).__exit__(target, None, None, None)
    return OPERATIONS[what](target, *args)


OPERATIONS = {
    name: getattr(operator, name)
    for name in str.split(
        "getitem setitem delitem index neg pos abs invert "
        "add sub mul truediv floordiv mod pow matmul and_ or_ xor lt le gt ge"
    )
}
OPERATIONS |= {
    f.__name__: f for f in (len, iter, reversed, str, repr, bool, int, float, complex, round, bytes, format)
}


def behaves(kind):
    """Whether a class is a container with its own methods, such as `class LRUCache(OrderedDict)`."""
    return issubclass(kind, (list, dict, set, deque)) and any(
        callable(v) and not n.startswith("_")
        for base in kind.__mro__
        if base.__module__ == "solution"
        for n, v in vars(base).items()
    )


def attributes_of(value):
    """Instance attributes by name, slots included."""
    found = {}
    for base in reversed(type(value).__mro__):
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(value, name):
                found[name] = getattr(value, name)
    found |= {
        k: v for k, v in getattr(value, "__dict__", {}).items() if type(k) is str and not k.startswith("__")
    }
    return found


def base_name(kind):
    """The nearest built-in class of an exception class."""
    for base in kind.__mro__:
        if getattr(builtins, base.__name__, None) is base and issubclass(base, BaseException):
            return base.__name__
    return "Exception"


def remember(source):
    """Lets `inspect.getsource` and tracebacks find the program."""
    linecache.cache["solution.py"] = (len(source), None, source.splitlines(True), "solution.py")
