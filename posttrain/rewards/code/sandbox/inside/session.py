"""The tester's end of the conversation with the candidate: asks, decodes, raises what the program raised."""

import builtins

from .codec import Encoder, ProtocolError, Side
from .decode import Decoder
from .proxies import Remote, RemoteIterator
from .wire import Gone, TooLarge, receive, send

MOST_CALLBACKS = 1_000_000


class CannotCross(Exception):
    """A test passes an object that cannot be sent: the test's fault, not the program's."""


class Session(Side):
    """One candidate over `fd`. `namespace` is where the tests run; its classes travel by their attributes."""

    def __init__(self, fd, namespace):
        self.fd, self.namespace = fd, namespace
        self.known, self.kinds, self.callbacks, self.keys = {}, {}, [], {}
        self.shared = frozenset()
        self.calls = 0

    # ---- what is not plain

    def foreign(self, value):
        if isinstance(value, Remote):
            return ["h", value._handle]
        for name, kind in self.kinds.items():
            if value is kind:
                return ["h", name]
        if callable(value) or hasattr(type(value), "__next__"):
            key = self.keys.setdefault(id(value), len(self.callbacks))
            if key == len(self.callbacks):
                self.callbacks.append(value)
            return ["k", key]
        name = type(value).__name__
        if type(value).__module__ == "tests":
            raise CannotCross(
                f"a test passes an object of its own class {name}, which cannot be sent to the program"
            )
        raise TypeError(f"an object of class {name} cannot be sent to the program")

    def attributes(self, value):
        kind = type(value)
        if kind.__name__ in self.shared and self.namespace.get(kind.__name__) is kind:
            found = {n: getattr(value, n) for n in getattr(kind, "__slots__", ()) if hasattr(value, n)}
            return kind.__name__, found | getattr(value, "__dict__", {})
        return None

    def instance(self, name):
        kind = self.namespace.get(name)
        if name not in self.shared or not isinstance(kind, type):
            raise ProtocolError(f"unknown class {name!r}")
        return object.__new__(kind)

    def build(self, entry):
        if entry[0] == "k" and len(entry) == 2:
            return self.callbacks[entry[1]]
        if entry[0] != "h" or type(entry[1]) is not int:
            raise ProtocolError("unknown tag")
        key, *rest = entry[1:]
        if key not in self.known:
            kind, name = str(rest[0]), str(rest[1])[:200]
            if kind == "e":
                self.known[key] = self.exception(key, name, str(rest[2]))
            elif kind == "i":
                self.known[key] = RemoteIterator(self, key, name)
            else:
                self.known[key] = Remote(self, key, name, rest[2] if kind == "o" else None)
        return self.known[key]

    def exception(self, key, name, base):
        """A local class for an exception class of the program, so that tests can catch it."""
        if key not in self.kinds:
            self.kinds[key] = type(name, (builtin_exception(base),), {"__str__": lambda e: e._text})
        return self.kinds[key]

    # ---- asking

    def ask(self, what, handle, args, kwargs=None):
        """The value of one operation.

        Raises what the program raised, with an attribute `of_the_program`.
        """
        encoder = Encoder(self)
        first, second = encoder.encode(tuple(args)), encoder.encode(kwargs or {})
        table = encoder.table
        try:
            send(self.fd, {"do": what, "h": handle, "t": table, "a": first, "k": second})
        except TooLarge as error:
            raise TypeError(str(error)) from None  # it may have come from the program
        reply = self.wait()
        self.calls += 1
        if "exc" in reply:
            raise self.raised(reply)
        changed, new = reply.get("m"), reply.get("t")
        if type(new) is not list or not (changed is None or type(changed) is list):
            raise Gone("an answer that breaks the format")
        if changed is not None and len(changed) != len(table):
            raise Gone("an answer that breaks the format")
        whole = (table if changed is None else changed) + new
        if not whole:
            return Decoder(self, whole).value(reply.get("v"))
        given = {index: value for value, index in encoder.memo.values()}
        settled = len(table) if changed is None else 0
        for index, entry in enumerate(table):
            if changed is not None and (type(changed[index]) is not list or changed[index][:1] != entry[:1]):
                raise Gone("an answer that breaks the format")
        try:
            return Decoder(self, whole, given, settled).run().value(reply.get("v"))
        except ProtocolError as error:
            raise Gone(f"an answer that breaks the format: {error}") from None

    def wait(self):
        """The reply. Serves the calls that the program makes in the meantime."""
        while True:
            message = receive(self.fd)
            if "callback" not in message:
                return message
            if len(self.keys) + self.calls > MOST_CALLBACKS:
                raise Gone("too many calls")
            send(self.fd, self.called(message))

    def called(self, message):
        encoder = Encoder(self)
        try:
            decoder = Decoder(self, message["t"]).run()
            args, kwargs = decoder.value(message["a"]), decoder.value(message["k"])
            target = self.callbacks[message["callback"]]
            if message["do"] == "next":
                stop = object()
                value = next(target, stop)
                value = (True, None) if value is stop else (False, value)
            else:
                value = target(*args, **kwargs)
            return {"v": encoder.encode(value), "t": encoder.table}
        except Exception as error:
            return {"exc": [type(error).__name__, str(error)[:200]], "t": [], "v": None}

    def raised(self, reply):
        """The program's exception, as one of ours."""
        try:
            name, base, text, key = reply["exc"]
            name, text = str(name)[:200], str(text)
            kind = builtin_exception(base) if type(key) is not int else self.exception(key, name, base)
            error = kind.__new__(kind)
            if type(key) is int:
                error._text = text
            args = Decoder(self, reply.get("t") or []).run().value(reply["v"]) if reply.get("v") else (text,)
            error.args = args if type(args) is tuple else (text,)
        except (ProtocolError, KeyError, TypeError, ValueError) as wrong:
            raise Gone(f"an exception that breaks the format: {wrong}") from None
        error.of_the_program = f"{name}: {text}" if text else name
        if base not in ("Exception", name) and not issubclass(kind, Exception):
            raise Gone("an exception that breaks the format")
        return error

    def load(self, payload, names, more, shared):
        """Runs the program. Returns {name: value} of those `names` and `more` that it defines.

        Raises:
            SyntaxError: no block parses. Gone: the program ended. Otherwise what the program raised.
        """
        try:
            return self.loaded(payload, names, more, shared)
        except MemoryError as error:  # caused by what the program sent, not by the setup
            error.of_the_program = getattr(error, "of_the_program", "MemoryError")
            raise

    def loaded(self, payload, names, more, shared):
        self.shared = frozenset(shared)
        send(
            self.fd,
            {
                "do": "load",
                "blocks": payload["blocks"],
                "prompt": payload.get("prompt") or "",
                "names": names,
                "more": more,
                "shared": list(shared),
            },
        )
        reply = self.wait()
        if "exc" in reply:
            raise self.raised(reply)
        if "syntax" in reply:
            raise SyntaxError(str(reply["syntax"])[:300])
        try:
            decoder = Decoder(self, reply["t"]).run()
            return {str(n): decoder.value(e) for n, e in reply["names"].items()}
        except (ProtocolError, LookupError, AttributeError, TypeError, ValueError) as error:
            raise Gone(f"an answer that breaks the format: {error}") from None


def builtin_exception(name):
    """The built-in exception class of a name; exits and interrupts of the program become RuntimeError."""
    kind = getattr(builtins, str(name), None)
    silent = (StopIteration, StopAsyncIteration)  # from a call, they would end a `map` of the test
    if isinstance(kind, type) and issubclass(kind, Exception) and kind not in silent:
        return kind
    return RuntimeError
