"""Generators: arithmetic (right answers, disjoint splits), checked options, functions of one's own."""

from __future__ import annotations

import json
import sys
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.cli import main
from posttrain.data.problems.catalogue import GENERATORS, check, generate
from posttrain.data.sources import open_rows
from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import RequestError
from posttrain.recipe.schema import Data, Loss, Source
from tests.data.tokens import prepare_source


def ids(name="multiplication", **options) -> list[str]:
    return [row["id"] for row in generate(name, options)]


@pytest.mark.slow
def test_the_rows_are_right():
    for row in generate("multiplication", {}):
        a, b = row["id"].split("*")
        assert row["prompt"] == f"{a}*{b}=" and 10 <= int(a) <= 99 and 10 <= int(b) <= 99
        assert row["completion"] == row["answer"] == str(int(a) * int(b)).rjust(4, "0")
    for row in generate("addition", {"digits": 3}):
        a, b = row["id"].split("+")
        assert len(a) == len(b) == 3 and row["prompt"] == f"{a}+{b}="
        assert row["completion"] == str(int(a) + int(b)).rjust(4, "0")


def test_the_defaults_are_3000_and_1000_disjoint_problems():
    train, test = set(ids()), set(ids(split="test"))
    assert (len(train), len(test), len(train & test)) == (3000, 1000, 0)


def test_a_full_split_covers_every_pair():
    train = ids(train_size=7100, test_size=1000)
    test = ids(train_size=7100, test_size=1000, split="test")
    every = {f"{a}*{b}" for a in range(10, 100) for b in range(10, 100)}
    assert sorted(train + test) == sorted(every)


@given(seed=st.integers(0, 2**40), train=st.integers(1, 40), test=st.integers(1, 41))
def test_splits_are_disjoint_and_do_not_move_with_the_other_size(seed, train, test):
    size = {"digits": 1, "seed": seed}
    mine = ids(**size, train_size=train, test_size=test)
    other = ids(**size, train_size=train, test_size=test, split="test")
    assert len(mine) == train and len(set(mine)) == train and len(set(other)) == test
    assert not set(mine) & set(other)
    assert ids(**size, train_size=train, test_size=1) == mine
    assert ids(**size, train_size=1, test_size=test, split="test") == other


def test_the_seed_decides_and_the_numbers_are_the_same_everywhere():
    assert ids(seed=1)[:9] != ids(seed=2)[:9]
    assert ids()[:3] == ["25*60", "31*51", "53*98"]


def completions(name, **options) -> dict[str, str]:
    """Completion by id, over every pair of the size."""
    pairs = (9 * 10 ** (options["digits"] - 1)) ** 2
    rows = generate(name, {"train_size": pairs - 1, "test_size": 1, "worked": True} | options)
    return {row["id"]: row["completion"] for row in rows}


@pytest.mark.slow
def test_worked_completions_by_hand():
    """12*34 = 12*30 + 12*4; 10+90 has no units; 9*9 has one part."""
    two = completions("multiplication", digits=2)
    assert two["12*34"] == "360+48=408" and two["34*12"] == "340+68=408"
    assert two["12*30"] == "360+0=360" and two["99*99"] == "8910+891=9801"
    assert completions("multiplication", digits=1)["9*8"] == "72=72"
    sums = completions("addition", digits=2)
    assert sums["12+34"] == "40+6=46" and sums["95+17"] == "100+12=112"
    assert sums["20+80"] == "100+0=100" and completions("addition", digits=1)["3+4"] == "7=7"
    three = {"digits": 3, "train_size": 20_000, "test_size": 1}
    wide = completions("multiplication", **three)
    for key, text in list(wide.items())[:500]:
        a, b = map(int, key.split("*"))
        assert text == f"{a * (b // 100) * 100}+{a * (b // 10 % 10) * 10}+{a * (b % 10)}={a * b}"


@given(
    name=st.sampled_from(["multiplication", "addition"]),
    digits=st.integers(1, 2),
    split=st.sampled_from(["train", "test"]),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=12, deadline=None)
def test_worked_rows_are_the_same_problems_and_every_chain_is_true(name, digits, split, seed):
    size = {"digits": digits, "split": split, "seed": seed, "train_size": 40, "test_size": 20}
    direct, worked = generate(name, size), generate(name, size | {"worked": True})
    assert generate(name, size | {"worked": False}) == direct
    for plain, row in zip(direct, worked, strict=True):
        assert (row["prompt"], row["id"]) == (plain["prompt"], plain["id"])
        parts, _, answer = row["completion"].rpartition("=")
        assert answer == row["answer"] == str(int(plain["answer"]))
        assert parts.count("+") == digits - 1 and sum(map(int, parts.split("+"))) == int(answer)
        assert all(part == str(int(part)) for part in parts.split("+"))  # no leading zeros


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"worked": 1}, r"worked must be true or false, not 1"),
        ({"wroked": True}, r"unknown option 'wroked' \(did you mean 'worked'\?\)"),
        ({"digit": 2}, r"unknown option 'digit' \(did you mean 'digits'\?\)"),
        ({"digits": "2"}, r"digits must be a whole number, not '2'"),
        ({"seed": True}, r"seed must be a whole number, not true"),
        ({"seed": 1.5}, r"seed must be a whole number, not 1\.5"),
        ({"split": 3}, r"split must be text"),
        ({"split": "tset"}, r"unknown split 'tset' \(did you mean 'test'\?\)"),
        ({"digits": 4}, r"digits must be 1, 2 or 3, not 4"),
        ({"digits": 0}, r"digits must be 1, 2 or 3"),
        ({"train_size": 0}, r"train_size must be at least 1"),
        ({"train_size": 7101}, r"is 8101, but there are 8100 problems"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(RequestError, match=message):
        generate("multiplication", options)


def test_every_registered_generator_gives_the_four_fields():
    assert {"addition", "multiplication"} < set(GENERATORS)
    for name in set(GENERATORS) - {"reasoning_gym"}:
        assert set(generate(name)[0]) == {"prompt", "completion", "answer", "id"}


def test_skipping_gives_the_problems_that_come_next():
    first = generate("multiplication", {"train_size": 30})
    rest = generate("multiplication", {"train_size": 20, "skip": 10})
    assert rest == first[10:]
    test = {row["id"] for row in generate("multiplication", {"split": "test"})}
    later = generate("multiplication", {"train_size": 4100, "skip": 3000})
    assert not test & {row["id"] for row in later}
    for options in ({"skip": -1}, {"skip": 5000}):
        with pytest.raises(RequestError, match="skip = "):
            generate("multiplication", options)


def squares(size: int = 3, start: int = 1, sign: Literal["*", "**"] = "*"):
    """As the docstring of the catalogue and ADDING.md describe one."""
    if start < 0:
        raise ValueError(f"start = {start} must be at least 0")
    for n in range(start, start + size):
        yield {"prompt": f"{n}{sign}{n}=", "completion": str(n * n), "answer": str(n * n)}


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(GENERATORS, "_items", dict(GENERATORS._items))
    assert GENERATORS.register("squares")(squares) is squares


DOTTED = f"{__name__}:squares"


@pytest.fixture
def importable(monkeypatch):
    """This file under the name that a dotted path uses."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules[squares.__module__])


@pytest.mark.parametrize("name", ["squares", DOTTED])
def test_a_plain_function_is_a_generator(name, registered, importable):
    rows = generate(name, {"start": 4})
    assert [row["prompt"] for row in rows] == ["4*4=", "5*5=", "6*6="] and rows[0]["answer"] == "16"
    assert check(name, {}).size == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sise": 3}, r"generator squares: unknown option 'sise' \(did you mean 'size'\?\)"),
        ({"size": "3"}, r"generator squares: size must be a whole number, not '3'"),
        ({"sign": "2"}, r"generator squares: sign = '2'"),
        ({"start": -1}, r"generator squares: start = -1 must be at least 0"),
        ({"size": 0}, r"generator squares: these options give no row"),
    ],
)
def test_wrong_options_of_a_function(options, message, registered):
    with pytest.raises(RequestError, match=message):
        generate("squares", options)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:rows", r"generator 'no_such_module:rows': cannot import no_such_module"),
        (DOTTED + "s", r"has no 'squaress' \(did you mean 'squares'\?\)"),
        (f"{__name__}:DOTTED", r"DOTTED is not a function but str"),
        ("squeres", r"unknown generator 'squeres' \(did you mean 'squares'\?\)"),
    ],
)
def test_a_generator_that_is_not_there(path, message, registered, importable):
    with pytest.raises(RequestError, match=message):
        check(path, {})


def test_functions_that_cannot_be_generators(monkeypatch):
    monkeypatch.setattr(GENERATORS, "_items", {})
    GENERATORS.register("stars")(lambda **options: [])
    GENERATORS.register("texts")(lambda: ["a row"])
    with pytest.raises(RequestError, match="generator stars: parameter 'options' cannot be an option"):
        check("stars", {})
    with pytest.raises(RequestError, match="generator texts: row 0 is str, not a dict of columns"):
        generate("texts")


def test_a_function_is_checked_and_prepared_as_a_source(registered, tmp_path, capfd, monkeypatch):
    """Its rows decide the name of the table: an edited function is not mistaken for the old one."""
    recipe = tmp_path / "squares.yaml"
    recipe.write_text(
        "stage: sft\nname: squares\n"
        "model: {tokenizer: 'builtin:digits', from_config: {model_type: llama}}\n"
        "data: {template: plain, sources: [{name: s, generator: squares, options: {size: 7}}]}\n"
        "train: {learning_rate: 1.0e-3, global_batch_size: 2, max_steps: 1}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["check", str(recipe), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["sources"]["s"]["rows"] == 7
    source = Source(name="s", generator="squares", options={"size": 7})
    data = Data(sources=[], template="plain", max_length=16, cache_dir=str(tmp_path))
    tokenizer = load_tokenizer("builtin:digits")
    table = prepare_source(source, data, Loss(), tokenizer)
    assert len(table) == 7 and tokenizer.decode(table[2].input_ids).startswith("3")
    before = open_rows(source).fingerprint
    monkeypatch.setitem(
        GENERATORS._items, "squares", lambda size=1: [{"prompt": "1", "completion": "2"}] * size
    )
    assert open_rows(source).fingerprint != before
