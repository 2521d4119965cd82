"""The one table of columns: what comes first, in every shape and where the forms of files are compared."""

from __future__ import annotations

import pytest

from posttrain.data.forms import forms_of
from posttrain.data.shapes.catalogue import SHAPES
from posttrain.data.shapes.columns import EXAMPLE, PARTS, SAID, USUAL, column, form_of, is_tokenised
from posttrain.errors import RequestError
from posttrain.recipe.schema import Columns, Source

WHERE = "rows.jsonl:7"
IDS = [10, 20]


def source(format="auto", ignore=(), **named) -> Source:
    return Source(name="s", path="rows.jsonl", format=format, ignore=[*ignore], columns=Columns(**named))


def read(shape, row, **more):
    return SHAPES[shape].read(row, source(**more), WHERE)


ORDER = {
    "messages": ["messages", "conversations", "conversation"],
    "prompt": ["prompt", "instruction", "question", "problem", "query"],
    "completion": ["completion", "output", "response", "solution", "answer", "answers"],
    "text": ["text"],
    "system": ["system", "system_prompt"],
    "answer": ["answer"],
    "p": ["p"],
    "tools": ["tools", "functions"],
    "template_options": ["chat_template_kwargs"],
    "reasoning": ["reasoning_content", "reasoning", "thinking"],
    "calls": ["tool_calls", "function_call"],
    "trained": ["weight", "train", "training", "loss", "trained"],
    "chosen": ["chosen"],
    "rejected": ["rejected"],
    "replies": ["completions", "responses"],
    "rating": ["overall_score", "rating", "score"],
    "ratings": ["ratings", "scores"],
    "label": ["label"],
    "tokens": ["input_ids"],
}
"""Written once more by hand: a name that moves changes what recipes train that name no columns."""


@pytest.mark.parametrize("what", ORDER)
def test_the_named_column_then_the_first_usual_name_that_is_there(what):
    names = ORDER[what]
    row = dict.fromkeys(("mine", *reversed(names)), "")
    assert column({"mine": "x"}, source(), what) is None
    for k, name in enumerate(names):
        assert column(dict.fromkeys(reversed(names[k:]), ""), source(), what) == name
    if what in Columns.__dataclass_fields__:
        assert column(row, source(**{what: "mine"}), what) == "mine"
        del row["mine"]
        assert column(row, source(**{what: "mine"}), what) == "mine", "no usual name stands in for it"


def test_of_several_meanings_a_named_one_comes_first():
    row = {"prompt": "p", "messages": "m", "talk": "t"}
    assert column(row, source(), "prompt", "messages") == "prompt"
    assert column(row, source(messages="talk"), "prompt", "messages") == "talk"
    assert column(row, source(messages="talk", prompt="messages"), "prompt", "messages") == "messages"


def test_every_meaning_is_one_of_an_example_a_reply_a_pair_or_tokens():
    others = {"chosen", "rejected", "replies", "rating", "ratings", "label", "trained", "tokens"}
    assert {*EXAMPLE, *SAID, *others} == set(USUAL) == set(ORDER) and {
        p for ps in PARTS.values() for p in ps
    } < {*EXAMPLE}


@pytest.mark.parametrize(
    ("has", "more", "form"),
    [
        # columns that are found: messages, a prompt, a text, and only then a completion
        (["messages", "prompt", "completion", "text"], {}, "messages"),
        (["prompt", "completion", "text"], {}, "prompt_completion"),
        (["text", "completion"], {}, "text"),
        (["completion"], {}, "prompt_completion"),
        ([], {}, None),
        # columns that are named: before all others, and a completion before a text
        (["messages", "prompt", "text"], {"text": "t"}, "text"),
        (["messages", "prompt", "text"], {"prompt": "p", "text": "t"}, "prompt_completion"),
        (["messages", "completion", "text"], {"completion": "c", "text": "t"}, "prompt_completion"),
        (["messages", "prompt", "text"], {"messages": "m", "prompt": "p"}, "messages"),
        (["prompt"], {"text": "t"}, "prompt_completion"),  # named, but not there
        (["messages"], {"format": "text"}, "text"),
    ],
)
def test_what_decides_the_form(has, more, form):
    assert form_of(has, source(**more)) == form


@pytest.mark.parametrize(
    ("row", "more", "form", "turns"),
    [
        ({"t": "x", "c": "y", "prompt": "p"}, {"text": "t", "completion": "c"}, "a prompt", ("p", "y")),
        ({"text": "x", "output": "y"}, {}, "text", ("", "x")),
        ({"t": "x", "prompt": "p", "completion": "c"}, {"text": "t"}, "text", ("", "x")),
    ],
)
def test_files_are_compared_by_the_form_that_is_trained(row, more, form, turns):
    """A completion that is named comes before a text that is named, in both."""
    assert forms_of(row, source(**more)) == {form}
    (found,) = read("rows", row, **more)
    assert (found.prompt, found.completion) == turns


@pytest.mark.parametrize(
    ("row", "more", "tokens"),
    [
        ({"input_ids": IDS}, {}, True),
        ({"input_ids": IDS, "text": "", "messages": None, "prompt": [], "chosen": {}}, {}, True),
        ({"input_ids": IDS, "completion": "c", "answer": "3"}, {}, True),
        ({"input_ids": IDS, "question": "q"}, {}, False),
        ({"input_ids": IDS, "conversations": [1]}, {}, False),
        ({"input_ids": IDS, "text": "t"}, {}, False),
        ({"input_ids": IDS, "chosen": "c"}, {}, False),
        ({"input_ids": IDS, "better": "c"}, {"chosen": "better"}, False),
        ({"input_ids": IDS, "better": ""}, {"chosen": "better"}, True),
        ({"input_ids": IDS}, {"messages": "m"}, False),
        ({"input_ids": IDS}, {"prompt": "m"}, False),
        ({"input_ids": IDS}, {"text": "m"}, False),
        ({"input_ids": IDS}, {"ignore": ["input_ids"]}, False),
        ({"text": "t"}, {}, False),
        ({"text": "t"}, {"format": "tokens"}, True),
        ({"input_ids": IDS}, {"format": "text"}, False),
    ],
)
def test_when_a_row_is_tokens(row, more, tokens):
    assert is_tokenised(row, source(**more)) == tokens
    if tokens:
        assert forms_of(row, source(**more)) == {"tokens" if "input_ids" in row else "other columns"}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("what", ["prompt", "messages"])
def test_a_named_column_that_is_missing_is_a_sentence_in_every_shape(shape, what):
    """Also where the shape has other columns in its place, as pairs have."""
    row = {"chosen": "c", "rejected": "r", "completion": "c", "label": 1, "text": "t"}
    with pytest.raises(RequestError, match=rf"^{WHERE}: source 's' has no column 'asked' \(columns.{what}\)"):
        read(shape, row, **{what: "asked"})


def test_named_sides_beside_tokens_are_a_pair():
    talk = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    other = [talk[0], {"role": "assistant", "content": "b"}]
    row = {"better": talk, "worse": other, "input_ids": IDS}
    pair = read("pairs", row, chosen="better", rejected="worse")
    assert [side.messages for side in pair] == [talk, other]


@pytest.mark.parametrize(
    ("shape", "row", "near"),
    [
        ("rows", {"prompt": "p", "compeltion": "c"}, "completion"),
        ("rows", {"prompt": "p", "completion": "c", "sytem": "s"}, "system"),
        ("pairs", {"prompt": "p", "chosen": "c", "rejected": "r", "tool": '[{"name": "t"}]'}, "tools"),
        (
            "labelled",
            {"prompt": "p", "completion": "c", "label": 1, "chat_template_kwarg": {"a": 1}},
            "chat_t",
        ),
        ("prompts", {"prompt": "p", "systm": "s"}, "system"),
    ],
)
def test_a_column_that_is_almost_read_is_refused_where_it_has_content(shape, row, near):
    *_, wrong = row
    with pytest.raises(
        RequestError, match=rf"column '{wrong}' of source 's' is not read; did you mean '{near}"
    ):
        read(shape, row)
    if wrong != "compeltion":
        for empty in (None, "", [], {}):
            assert read(shape, row | {wrong: empty})
        assert read(shape, row, ignore=[wrong])
        if shape != "prompts":  # which leave the answer to rewards
            assert read(shape, row, answer=wrong), "it is read as what it is named"


@pytest.mark.parametrize(
    ("row", "near", "columns"),
    [
        ({"Question": "q", "Answer": "a"}, "question", {"prompt": "Question", "completion": "Answer"}),
        (
            {"Question": "q", "Complex_CoT": "t", "Response": "a"},
            "question",
            {"prompt": "Question", "completion": "Response"},
        ),
        ({"promtp": "q", "gold": "a"}, "prompt", {"prompt": "promtp", "completion": "gold"}),
        ({"prompt": "q", "compeltion": "a"}, "completion", {"completion": "compeltion"}),
        ({"prompt": "q", "completion": "a", "System": "s"}, "system", {"system": "System"}),
        ({"prompt": "q", "completion": "a", "reasonings": "r"}, "reasoning", {"reasoning": "reasonings"}),
    ],
)
def test_the_columns_that_a_misspelt_name_leads_to_can_be_read(row, near, columns):
    with pytest.raises(RequestError) as error:
        read("rows", row)
    name = next(name for name in row if name in columns.values())
    written = ", ".join(f"{what}: {own}" for what, own in columns.items())
    # where the row would be no example without it, it is not to be ignored
    or_else = f", or ignore: [{name}]" if {"prompt", "completion"} <= row.keys() else ""
    assert str(error.value) == (
        f"{WHERE}: column {name!r} of source 's' is not read; did you mean {near!r}? Set columns: "
        f"{{{written}}} on the source (under data.sources){or_else}"
    )
    (found,) = read("rows", row, **columns)
    assert "q" in str(found.prompt or found.messages) and "a" in str(found.completion or found.messages)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "completion": "c", "tool_call": [{"name": "t"}]},  # no key of columns
        {"Question": "q", "text": "t"},  # no completion would be found
    ],
)
def test_where_no_column_can_be_named_it_is_renamed_or_ignored(row):
    with pytest.raises(RequestError, match=r"Rename it, or set ignore: \[\w+\] on the source .under data"):
        read("rows", row)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("conversation_id", "1"),
        ("message", "fix: a bug"),
        ("mesages", ["a"]),
        ("Messages", [{"role": "user", "content": "u"}]),  # without a reply
        ("Conversations", '[{"name": "x"}]'),
        ("tool", "python"),
        ("tool", {"a": 1}),
        ("function", "def f(): pass"),
        ("tool_call", "auto"),
        ("reasonings", "on"),
        ("systems", ["a"]),
        ("P", 7),
    ],
)
def test_a_value_that_could_not_be_it_is_no_misspelling(name, value):
    for row in ({"prompt": "p", "completion": "c"}, {"prompt": "p", "chosen": "c", "rejected": "r"}):
        shape = "pairs" if "chosen" in row else "rows"
        assert read(shape, row | {name: value})[0].unused == (name,)


@pytest.mark.parametrize("name", ["stool", "gloss", "strain", "P", "mean"])
def test_words_that_are_no_misspelling(name):
    assert read("rows", {"prompt": "p", "completion": "c", name: 0})[0].unused == (name,)


def test_an_object_of_nulls_is_no_content_in_columns_as_in_messages():
    """Parquet has one where a row has no object."""
    nulls = {"name": None, "arguments": {"a": None}}
    row = {"prompt": "p", "completion": "c", "tool_calls": nulls, "meta": nulls, "systm": nulls}
    (found,) = read("rows", row)
    assert found.completion == "c" and found.unused == ()


@pytest.mark.parametrize("name", ["Question", "Response", "texts"])
def test_beside_messages_no_other_form_is_meant(name):
    """Their usual names are not read there either."""
    talk = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    assert read("rows", {"messages": talk, name: "x"})[0].unused == (name,)
    for part in ("mesages", "Conversations"):
        with pytest.raises(RequestError, match=f"column '{part}' of source 's' is not read; did you mean"):
            read("rows", {part: talk, "prompt": "p", "completion": "c"})


def test_what_a_source_names_is_not_misspelt():
    row = {"prompt": "p", "completion": "c", "systm": "s", "reasonings": "r", "cot": ""}
    (found,) = read("rows", row, rating="systm", reasoning="cot")
    assert found.completion == "c" and found.unused == ("systm", "reasonings")


REPLY = ("completion", "reasoning")


@pytest.mark.parametrize(
    ("shape", "row", "columns", "name", "first", "second"),
    [
        ("rows", {"q": "u", "a": "x"}, {"prompt": "q", "completion": "a", "reasoning": "a"}, "a", *REPLY),
        ("rows", {"prompt": "u", "completion": "x"}, {"reasoning": "completion"}, "completion", *REPLY),
        (
            "rows",
            {"prompt": "u", "completion": "x"},
            {"reasoning": "prompt"},
            "prompt",
            "prompt",
            "reasoning",
        ),
        ("rows", {"output": "u", "x": "x"}, {"prompt": "output"}, "output", "prompt", "completion"),
        ("rows", {"prompt": "u", "completion": "x"}, {"system": "prompt"}, "prompt", "prompt", "system"),
        ("rows", {"messages": []}, {"tools": "messages"}, "messages", "messages", "tools"),
        (
            "labelled",
            {"prompt": "u", "x": "1"},
            {"label": "x", "completion": "x"},
            "x",
            "completion",
            "label",
        ),
        ("pairs", {"prompt": "u", "x": "1"}, {"chosen": "x", "rejected": "x"}, "x", "chosen", "rejected"),
        ("pairs", {"prompt": "u", "rejected": "1"}, {"chosen": "prompt"}, "prompt", "prompt", "chosen"),
        ("prompts", {"prompt": "u"}, {"answer": "prompt"}, "prompt", "prompt", "answer"),
    ],
)
def test_no_column_is_two_things(shape, row, columns, name, first, second):
    words = (
        f"{WHERE}: column '{name}' of source 's' is read as {first} and as {second}; name another column "
        f"under columns.{first} or columns.{second}"
    )
    with pytest.raises(RequestError, match=f"^{words}$"):
        read(shape, row, **columns)


def test_a_completion_may_also_be_the_answer():
    (found,) = read("rows", {"prompt": "u", "x": "4"}, completion="x", answer="x")
    assert (found.completion, found.answer) == ("4", "4")


TURNS = [{"role": "user", "content": "no"}, {"role": "assistant", "content": "No"}]
ASKED = {"question": "p", "response": "c"}


@pytest.mark.parametrize(
    ("shape", "row", "ignore"),
    [
        ("rows", ASKED | {"prompt": "no", "completion": "no"}, ["completion", "prompt"]),
        ("rows", ASKED | {"messages": TURNS}, ["messages"]),
        ("rows", ASKED | {"input_ids": IDS, "labels": IDS}, ["input_ids", "labels"]),
        ("labelled", ASKED | {"label": 1, "messages": TURNS}, ["messages"]),
        ("prompts", ASKED | {"prompt": "no"}, ["prompt"]),
        ("prompts", ASKED | {"messages": TURNS}, ["messages"]),
        ("pairs", ASKED | {"chosen": "c", "rejected": "r", "prompt": "no"}, ["prompt"]),
        ("pairs", ASKED | {"chosen": "c", "rejected": "r", "messages": TURNS}, ["messages"]),
    ],
)
def test_a_column_behind_an_ignored_one_is_read(shape, row, ignore):
    first = read(shape, row, ignore=ignore)[0]
    assert (first.prompt, first.completion or "c") == ("p", "c") and first.ignored == tuple(ignore)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_shape_looks_at_what_is_ignored(shape):
    """Whatever stands in an ignored column, of any usual name, the row means the same without it."""
    row = ASKED | {"chosen": "c", "rejected": "r", "label": 1}
    for name in {name for names in USUAL.values() for name in names} - row.keys():
        for value in ("no", 0, [{"text": "x"}], TURNS, "on"):
            found, plain = (read(shape, each, ignore=[name]) for each in (row | {name: value}, row))
            assert found[0].ignored == (name,), (name, value)
            found[0].ignored = plain[0].ignored
            assert found == plain, (name, value)
