"""Sweeps as they are written: values between commas, names of runs, the YAML."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import RequestError
from posttrain.recipe import load
from posttrain.recipe.bounds import folder_name
from posttrain.recipe.build import Problems
from posttrain.recipe.reading import parsed
from posttrain.recipe.sweep import load_sweep, override_of, seeds_of_text, split, sweep_of_words
from posttrain.recipe.sweep_names import PLAIN, Naming, short_keys, spelt, value_text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,16,256", ["1", "16", "256"]),
        (" 1 , 2 ", ["1", "2"]),
        ("[1,8]", ["[1,8]"]),
        ("[1,8],[1, 64]", ["[1,8]", "[1, 64]"]),
        ("{a: [1,2], b: 3},{a: 1}", ["{a: [1,2], b: 3}", "{a: 1}"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ('"a,\\"b",c', ['"a,\\"b"', "c"]),
        ("'it''s, it',b", ["'it''s, it'", "b"]),
        ("it's,b's", ["it's", "b's"]),
        ("['a],',b],c", ["['a],',b]", "c"]),
        ("${oc.env:A,b},c", ["${oc.env:A,b}", "c"]),
        ("a],b", ["a]", "b"]),
        ("(a],b),c", ["(a],b)", "c"]),
        ("1,,2", ["1", "", "2"]),
        ("", [""]),
    ],
)
def test_values_are_split_at_commas_outside_brackets_and_quotes(text, parts):
    assert split(text) == parts


QUOTE = '"'


@pytest.mark.parametrize(
    ("text", "mark"),
    [("[1,2", "["), ("1,[2", "["), ("[1,2}", "["), ("{a: [1,2]", "{"), ("f(x,y", "("), ("'a,b", "'")]
    + [("1,'b", "'"), ('"a,b', '"'), ("[1,'a]", "'"), ("{a: 'b}", "'"), ("'it''s", "'")],
)
def test_what_is_not_closed_takes_no_values_after_it(text, mark):
    with pytest.raises(RequestError) as caught:
        sweep_of_words("r.yaml", [f"loss.n={text}"])
    end = {"[": "]", "{": "}", "(": ")"}.get(mark, mark)
    assert str(caught.value) == (
        f"{f'loss.n={text}'!r} opens a {mark} that is not closed; close it with {end}, or put text that has "
        f"it in {'single' if mark == QUOTE else 'double'} quotes"
    )
    quote = "'" if mark == QUOTE else QUOTE
    assert sweep_of_words("r.yaml", [f"k={quote}a {mark} b{quote},c"]).keys[0].values == [f"a {mark} b", "c"]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(-1e6, 1e6)
    | st.text("ab,'\"[]{}: ~", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=4))
def test_values_survive_the_command_line_and_the_override(values):
    """What a sweep YAML lists, written with commas on the command line, is the same, and so is what a run
    gets of it."""
    text = ",".join(override_of("k", value).removeprefix("k=") for value in values)
    assert [parsed(part) for part in split(text)] == values
    assert sweep_of_words("r.yaml", [f"k={text}"]).keys[0].values == values


@pytest.mark.parametrize(
    ("keys", "short"),
    [
        (["loss.n", "train.learning_rate"], ["n", "learning_rate"]),
        (["a.k", "b.k"], ["a.k", "b.k"]),
        (["a.b.k", "c.b.k", "k"], ["a.b.k", "c.b.k", "k"]),
        (["data.sources.0.weight", "data.sources.1.weight"], ["sources.0.weight", "sources.1.weight"]),
        (["evaluate.tasks.0"], ["tasks.0"]),
        (["data.sources.0.options.seed"], ["options.seed"]),
        (["model.options.odd key"], ["odd-key-"]),
    ],
)
def test_a_key_is_called_by_its_shortest_ending_that_no_other_has(keys, short):
    found = list(short_keys(keys).values())
    assert [name[: len(s)] for name, s in zip(found, short, strict=True)] == short
    assert all(len(name) in (len(s), len(s) + 6) for name, s in zip(found, short, strict=True))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (16, "16"),
        (16.0, "16"),
        (3e-4, "0.0003"),
        (1e-5, "1e-5"),
        (1e20, "1e20"),
        (0.1 + 0.2, "0.30000000000000004"),
        (-0.5, "-0.5"),
        (True, "true"),
        (None, "null"),
        ("pkpo", "pkpo"),
        ([1, 8], "1-8"),
    ],
)
def test_short_values_stand_in_the_name(value, text):
    assert value_text(value) == text


def test_odd_values_end_in_a_hash_that_tells_them_apart():
    paths = ["data/a rows.jsonl", "data/b/rows.jsonl", "data/a,rows.jsonl", "x" * 80, "", "..", "ß", "[1, 8]"]
    texts = [value_text(value) for value in [*paths, [1, [8]], {"a": 1}, {"a": 2}]]
    assert [text[:-7] for text in texts[:4]] == ["a-rows.jsonl", "b-rows.jsonl", "a-rows.jsonl", "x" * 16]
    assert len(set(texts)) == len(texts)
    assert all(PLAIN.fullmatch(text) and len(text) <= 24 for text in texts)
    assert texts == [value_text(value) for value in [*paths, [1, [8]], {"a": 1}, {"a": 2}]]


def test_names():
    naming = Naming(("loss.n", "train.learning_rate"), True)
    values = {"loss.n": 16.0, "train.learning_rate": 3e-4}
    assert naming.name("", values, 1) == "n-16_learning_rate-0.0003_seed-1"
    assert naming.name("sft", {"loss.n": 1}, 0) == "sft_n-1_seed-0"
    assert Naming(("loss.n",), False).name("", {"loss.n": 1}, 5) == "n-1"
    long = [Naming(tuple(f"a.key_number_{i}" for i in range(8)), True)] * 2
    names = {naming.name("", dict.fromkeys(naming.keys, 1), seed) for seed, naming in enumerate(long)}
    assert len(names) == 2 and all(len(name) <= 100 for name in names)


@settings(deadline=None)
@given(st.lists(VALUES, min_size=2, max_size=2), st.integers(0, 9))
def test_every_name_is_a_folder_and_a_word_of_a_shell(values, seed):
    name = Naming(("a.x", "b.x"), True).name("", dict(zip(("a.x", "b.x"), values, strict=True)), seed)
    problems = Problems()
    folder_name("name", name, problems)
    assert not problems and PLAIN.fullmatch(name)


def test_seeds():
    assert seeds_of_text("3") == 3 and seeds_of_text("0,5,9") == [0, 5, 9] and seeds_of_text("5,") == [5]
    for text in ("", "x", "-1", "1.5", ",", "1,,2"):
        with pytest.raises(RequestError, match="must be a number of seeds, such as 3, or a list"):
            seeds_of_text(text)


SWEEP = """\
sweep: ns
recipe: small.yaml
keys:
  - {key: loss.n, values: [1, 16]}
  - {key: evaluate.tasks.0.k, values: [[1, 8], '${train.seed}']}
seeds: [0, 1]
parallel: 2
"""


@pytest.fixture
def sweep(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    return path


def test_a_file_says_what_the_command_line_does(sweep):
    """Interpolations in values are left to the recipe."""
    found = load_sweep(sweep, ["parallel=3"])
    assert (found.sweep, found.recipe, found.seeds) == ("ns", str(sweep.parent / "small.yaml"), [0, 1])
    assert (found.parallel, found.output_dir) == (3, None)
    words = sweep_of_words("x", ["loss.n=1,16", "evaluate.tasks.0.k=[1,8],${train.seed}"])
    assert found.keys == words.keys


NEAR = "(did you mean 'parallel'?)"
WRONG = {
    "a misspelt key": ("parallel: 2", "paralel: 2", f":7: unknown key 'paralel' {NEAR}"),
    "values that are no list": (
        "[1, 16]",
        "16",
        ":4: keys[0].values must be a list of values, not 16; write [16]",
    ),
    "no values": ("[1, 16]", "[]", ": loss.n has no values; list at least one"),
    "a key twice": ("evaluate.tasks.0.k", "loss.n", ": loss.n is given twice; list all its values once"),
    "seeds of text": ("[0, 1]", "three", ":6: seeds must be a whole number, not 'three'"),
    "no seeds": ("[0, 1]", "0", ": seeds = 0 asks for no run; give at least one seed"),
    "an empty list": ("[0, 1]", "[]", ": seeds = [] asks for no run; give at least one seed"),
    "a seed twice": ("[0, 1]", "[0, 0]", ": seed 0 is listed twice; each run needs its own"),
    "a seed too large": ("[0, 1]", "[4294967296]", ": seed 4294967296 must be from 0 to 4,294,967,295"),
    "nothing at a time": ("parallel: 2", "parallel: 0", ":7: parallel = 0 must be above 0"),
    "an empty recipe": (
        "small.yaml",
        "''",
        ":2: recipe is empty; it takes the path of a recipe or a pipeline",
    ),
    "an empty key": ("loss.n", "''", ": keys[0].key is empty; write a key of the recipe, such as loss.n"),
    "no recipe": ("recipe: small.yaml\n", "", ": recipe is missing; it takes text"),
    "a name with a slash": ("sweep: ns", "sweep: a/b", ":1: sweep = 'a/b' cannot be a folder name: "),
}


@pytest.mark.parametrize(
    ("text", "overrides", "place", "at"),
    [
        ("", ["train.max_steps=5"], "command line", "train.max_steps"),
        ("", ["sft.loss.n=5"], "command line", "sft.loss.n"),
        ("", ["stage=sft"], "command line", "stage"),
        ("train: {max_steps: 5}\n", [], "FILE:8", "train.max_steps"),
    ],
)
def test_keys_of_the_recipe_stand_below_keys(sweep, text, overrides, place, at):
    sweep.write_text(SWEEP + text)
    with pytest.raises(RequestError) as caught:
        load_sweep(sweep, overrides)
    assert str(caught.value) == (
        f"{place.replace('FILE', str(sweep))}: {at} is no key of a sweep (sweep, recipe, keys, seeds, "
        f"parallel, output_dir); keys of the recipe stand below keys, as {{key: {at}, values: [...]}}"
    )


@pytest.mark.parametrize("key", ["paralel", "name", "train"])
def test_other_keys_are_told_from_those_of_a_sweep(sweep, key):
    with pytest.raises(RequestError, match=f"^command line: .*{key}"):
        load_sweep(sweep, [f"{key}=3"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (16.0, "16"),
        (1e-5, "1e-5"),
        ("sgd", "sgd"),
        ("true", "'true'"),
        ("", "''"),
        ([None, True, 1, "a b"], "[null, true, 1, a b]"),
        ({"a": None, "b": [False]}, "{a: null, b: [false]}"),
        ("x" * 200, "x" * 200),
        ("a\nb", '"a\\nb"'),
    ],
)
def test_values_are_listed_as_yaml_has_them(value, text):
    assert spelt(value) == text and "\n" not in text
    assert isinstance(value, float) or parsed(text) == value


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_file_is_one_sentence(sweep, case):
    before, after, sentence = WRONG[case]
    sweep.write_text(SWEEP.replace(before, after))
    with pytest.raises(RequestError) as caught:
        load_sweep(sweep, [])
    (line,) = str(caught.value).splitlines()
    expected = f"{sweep}{sentence}"
    assert line == expected or (sentence.endswith(": ") and line.startswith(expected))


def test_other_commands_say_that_it_is_a_sweep(sweep):
    sweep.write_text(SWEEP.replace(", '${train.seed}'", ""))
    with pytest.raises(RequestError, match=f"{sweep} is a sweep; start it with posttrain sweep {sweep}"):
        load(sweep)
