"""Objects of the candidate as the tester sees them: proxies that ask over the wire and trust only plain data.

The rule that keeps a verdict from being forged: the candidate never answers an operator that a test applies
between a proxy and a value of the test. `==` with plain data is False; ordering, arithmetic and `in` with
plain data raise TypeError or compare plain data here; two proxies are equal if they are the same object, or
of the same class with equal plain attributes. Operators between two proxies, calls, attributes, `len`, items,
iteration, and conversion to text and numbers are sent to the candidate, since none of them carries an
expected value.
"""

SAME_NAME = str.split("add sub mul truediv floordiv mod pow matmul xor lt le gt ge")
BINARY = {name: name for name in SAME_NAME} | {"and": "and_", "or": "or_"}
"""Special method -> operation of `host`."""
UNARY = str.split("len neg pos abs invert bool int float complex index str repr bytes")
VISIBLE = frozenset(("__name__", "__doc__", "__qualname__", "__annotations__", "__members__", "__version__"))


class Remote:
    """Any object of the candidate."""

    __slots__ = ("_session", "_handle", "_name", "_class")
    __hash__ = object.__hash__

    def __init__(self, session, handle, name, class_handle=None):
        for slot, value in zip(Remote.__slots__, (session, handle, name, class_handle), strict=True):
            object.__setattr__(self, slot, value)

    def __getattr__(self, name):
        if name.startswith("__") and name not in VISIBLE:
            raise AttributeError(name)
        return self._session.ask("get", self._handle, (name,))

    def __setattr__(self, name, value):
        if name.startswith("__"):
            raise AttributeError(name)
        self._session.ask("set", self._handle, (name, value))

    def __call__(self, *args, **kwargs):
        return self._session.ask("call", self._handle, args, kwargs)

    def __eq__(self, other):
        if self is other:
            return True
        if not isinstance(other, Remote) or self._class is None or self._class != other._class:
            return False
        mine, theirs = (s._session.ask("data", s._handle, ()) for s in (self, other))
        return type(mine) is dict and bool(mine) and mine == theirs

    def __ne__(self, other):
        return not self == other

    def __iter__(self):
        got = self._session.ask("iter", self._handle, ())
        return got if isinstance(got, RemoteIterator) else iter(got)

    def __contains__(self, item):
        return any(item is each or item == each for each in self)

    def __enter__(self):
        return self._session.ask("enter", self._handle, ())

    def __exit__(self, *_):
        self._session.ask("exit", self._handle, ())
        return False  # no failed assertion is swallowed

    def __reversed__(self):
        return iter(self._session.ask("reversed", self._handle, ()))

    def __getitem__(self, key):
        return self._session.ask("getitem", self._handle, (key,))

    def __setitem__(self, key, value):
        self._session.ask("setitem", self._handle, (key, value))

    def __delitem__(self, key):
        self._session.ask("delitem", self._handle, (key,))

    def __round__(self, *digits):
        return self._session.ask("round", self._handle, digits)

    def __format__(self, spec):
        return self._session.ask("format", self._handle, (spec,))

    def __instancecheck__(self, value):
        if not isinstance(value, Remote):
            return False
        return self._session.ask("isinstance", self._handle, (value,)) is True


class RemoteIterator(Remote):
    """An iterator or generator of the candidate, read one item at a time because it may be endless."""

    __slots__ = ()

    def __iter__(self):
        return self

    def __next__(self):
        reply = self._session.ask("next", self._handle, ())
        if type(reply) is not tuple or len(reply) != 2:
            raise TypeError("the program's object is not an iterator")
        if reply[0]:
            raise StopIteration
        return reply[1]


def _unary(name):
    def asked(self):
        return self._session.ask(name, self._handle, ())

    return asked


def _binary(name, text):
    def asked(self, other):
        if not isinstance(other, Remote):
            raise TypeError(
                f"the program's object of class {self._name} is not plain data and does not support {text!r}"
            )
        return self._session.ask(name, self._handle, (other,))

    return asked


for _name in UNARY:
    setattr(Remote, f"__{_name}__", _unary(_name))
for _name, _operation in BINARY.items():
    setattr(Remote, f"__{_name}__", _binary(_operation, _name))


def refuse(self, other):
    """A reflected operator: its left side is the test's own value."""
    raise TypeError(f"the program's object of class {self._name} is not plain data")


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"):
    setattr(Remote, f"__r{_name}__", refuse)
