"""The wire between candidate and tester: values survive, hostile tables are refused."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.rewards.code.sandbox.inside.codec import Encoder, ProtocolError, Side
from posttrain.rewards.code.sandbox.inside.compare import close
from posttrain.rewards.code.sandbox.inside.decode import Decoder


def cross(value):
    encoder = Encoder(Side())
    element = encoder.encode(value)
    element, table = json.loads(json.dumps([element, encoder.table]))
    return Decoder(Side(), table).run().value(element)


atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.complex_numbers(allow_nan=False),
)
hashable = st.recursive(
    atoms, lambda inner: st.one_of(st.tuples(inner, inner), st.frozensets(inner, max_size=3)), max_leaves=8
)
values = st.recursive(
    hashable,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(hashable, inner, max_size=3),
        st.tuples(inner),
        st.sets(hashable, max_size=3),
    ),
    max_leaves=20,
)


def same(a, b):
    """Equal with equal types all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a == b and list(map(type, a)) == list(map(type, b)) and all(same(a[k], b[k]) for k in a)
    return a == b


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(values)
def test_values_survive_with_their_types(value):
    assert same(cross(value), value)


@pytest.mark.parametrize(
    "value",
    [
        10**5000,
        -(2**63),
        2**63 - 1,
        [2**63, 1],
        math.inf,
        Fraction(1, 3),
        Decimal("1.10"),
        date(2020, 1, 2),
        datetime(2020, 1, 2, 3),
        timedelta(1, 2),
        range(3, 9, 2),
        deque([1], maxlen=3),
        bytearray(b"a"),
        Counter("aab"),
        OrderedDict(a=1),
        "\ud800",
        int,
        {(): ()},
        [[]],
        ((),),
        [True, 1, 1.0],
    ],
    ids=lambda v: type(v).__name__,
)
def test_other_values(value):
    got = cross(value)
    assert got == value and type(got) is type(value)
    assert math.isnan(cross([float("nan")])[0])
    assert cross(defaultdict(list, {1: [2]})).default_factory is list


@pytest.mark.slow
def test_sharing_and_cycles_survive():
    a = [1]
    a.append(a)
    b = cross({"x": a, "y": a})
    assert b["x"] is b["y"] and b["x"][1] is b["x"]
    deep = []
    for _ in range(50_000):
        deep = [deep]
    got, depth = cross(deep), 0
    while got:
        got, depth = got[0], depth + 1
    assert depth == 50_000


def test_subclasses_leave_their_methods_behind():
    class L(list):
        def __eq__(self, other):
            return True

        def __iter__(self):
            return iter([7])

    class I(int):  # noqa: E742
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    got = cross([L([1, 2]), I(5)])
    assert type(got[0]) is list and type(got[1]) is int and got == [[1, 2], 5] and got != [[7], 6]


def test_foreign_objects_do_not_cross():
    with pytest.raises(TypeError, match="cannot be sent"):
        cross([object()])


@pytest.mark.parametrize(
    "table, element",
    [
        ([["n", "Judge", []]], [0]),
        ([["h", 0]], [0]),
        ([["?"]], [0]),
        ([["t", [[0]]]], [0]),
        ([["z", [[1]]], ["l", []]], [0]),
        ([["b", "eval"]], [0]),
        ([["x", ["eval", "1"]]], [0]),
        ([["l", [[5]]]], [0]),
        ([], [0]),
        ([["l", 3]], [0]),
        ([[]], [0]),
        ([None], [0]),
        ([["N", "O", [1], [1]]], [0]),
        ([["a", "zz"]], [0]),
        ([["d", [1]]], [0]),
        ([["l", []]], {"i": "x"}),
        ([["l", []]], {"q": 1}),
        ([["l", []]], {}),
        ([["x", ["Fraction", "1", "0"]]], [0]),
        ([["f", [], "eval"]], [0]),
        ([["q", [], "x"]], [0]),
        ([["r", [1, 2, 0]]], [0]),
        ([["s", [[0]]]], [0]),
        ([[["l"], []]], [0]),
    ],
)
def test_hostile_tables_are_refused(table, element):
    with pytest.raises(ProtocolError):
        Decoder(Side(), table).run().value(element)


junk = st.recursive(
    st.one_of(
        st.none(), st.integers(-3, 9), st.text(max_size=2), st.sampled_from(list("ltszdoufqaKVIrNnhkbxv"))
    ),
    lambda i: st.lists(i, max_size=4),
    max_leaves=30,
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(junk, max_size=5), junk)
def test_junk_never_does_anything_but_be_refused(table, element):
    with contextlib.suppress(ProtocolError):
        Decoder(Side(), table).run().value(element)


@pytest.mark.parametrize(
    "got, expected, atol, is_close",
    [
        (1.0, 1.0 + 1e-7, 0.0, True),
        (1.0, 1.1, 0.0, False),
        (1, 1.0, 0.0, True),
        ([1.0], [1.0 + 1e-7], 0.0, True),
        ((1.0,), [1.0], 0.0, False),
        ("1.0", 1.0, 0.0, False),
        (float("nan"), 1.0, 1.0, False),
        (float("nan"), float("nan"), 0.0, True),
        (math.inf, math.inf, 0.0, True),
        (10**400, 1.0, 1.0, False),
        (2, 3, 0.0, False),
        (True, 1, 0.0, True),
        ([1.0, "a"], [1.0, "b"], 0.5, False),
        ([1.0], [1.0, 2.0], 0.5, False),
        (None, 1.0, 0.0, False),
    ],
    ids=lambda v: type(v).__name__,
)
def test_close(got, expected, atol, is_close):
    assert close(got, expected, atol) is is_close
