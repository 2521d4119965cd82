"""What an entry of rated replies says: the forms of its text and rating, its thought, calls and flags; which
entries are not chosen from."""

from __future__ import annotations

import json

import pytest

from posttrain.data.shapes.catalogue import SHAPES
from posttrain.data.shapes.pairs import to_pair
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe.schema import Source
from tests.data.shapes.rated_rows import WHERE, pair

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
FIVE, SIX = {"text": "5", "rating": 9}, {"text": "6", "rating": 2}


def sides(*entries, **more):
    source = Source(name="s", path="rated.jsonl", **more)
    return to_pair({"prompt": "p", "completions": [*entries]}, source, WHERE)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_an_entry_is_a_reply_with_its_thought(key):
    chosen, rejected = sides(FIVE | {key: "t"}, SIX | {key: None})
    user = {"role": "user", "content": "p"}
    assert chosen.messages == [user, {"role": "assistant", "content": "5", key: "t"}]
    assert rejected.messages == [user, {"role": "assistant", "content": "6"}]
    assert chosen.unused == rejected.unused == () == chosen.ignored
    quiet = sides(FIVE | {key: "t"}, SIX, ignore=[key])
    assert [side.completion for side in quiet] == ["5", "6"] and quiet[0].ignored == (key,)


def test_an_entry_is_a_reply_with_its_calls():
    for text in ("", None):
        chosen, rejected = sides({"text": text, "rating": 9, "tool_calls": [CALL]}, SIX)
        assert chosen.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
        assert rejected.messages[1] == {"role": "assistant", "content": "6"}


def test_entries_that_only_call_have_no_text():
    calls = {"rating": 9, "tool_calls": [CALL]}
    other = {"rating": 2, "function_call": {"name": "sub", "arguments": {}}}
    for entries in ((calls, SIX), (SIX, calls), (other, calls)):
        chosen, rejected = sides(*entries)
        assert chosen.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
        assert rejected.messages[1]["content"] == ("6" if SIX in entries else "")
        assert chosen.unused == rejected.unused == ()
    unrated = {"text": "7"}
    assert [side.completion for side in sides(unrated, FIVE, SIX)] == ["5", "6"], "as a null rating"
    with pytest.raises(RequestError, match="have rating, tool_calls, answer, but no text .*under response$"):
        sides(calls, {"rating": 2, "answer": "6"})


@pytest.mark.parametrize("flag", ["weight", "train", "training", "loss", "trained"])
def test_an_entry_of_weight_0_is_not_chosen_from(flag):
    seven = {"text": "7", "rating": 5}
    for no in (0, False, 0.0):
        for best in (FIVE, {"text": [{"role": "assistant", "content": "5"}], "rating": 9}):
            found = sides(
                best | {flag: no, "reasoning": "t"} if best is FIVE else best | {flag: no}, seven, SIX
            )
            assert [side.completion for side in found] == ["7", "6"]
        said = "^no_rating: 1 of 2 replies in 'completions' can be chosen from; 1 with a flag of 0$"
        with pytest.raises(RowError, match=said):
            sides(FIVE, SIX | {flag: no})
    for yes in (1, True, None, float("nan")):
        found = sides(FIVE | {flag: yes}, SIX)
        assert [side.completion for side in found] == ["5", "6"] and found[0].unused == ()
    place = "rated.jsonl:3: column 'completions', entry 1"
    with pytest.raises(RequestError, match=f"^{place}: '{flag}' must be 0 or 1 .false or true., not 0.5"):
        sides(FIVE, SIX | {flag: 0.5})
    assert [side.completion for side in sides(FIVE, SIX | {flag: 0.5}, ignore=[flag])] == ["5", "6"]
    rated = {"completions": [{"text": "5", flag: 0.2}, {"text": "6", flag: 0}]}
    assert pair({"prompt": "p"} | rated, rating=flag) == ("5", "6"), "it is the rating"


def test_what_nothing_reads_of_an_entry_is_counted():
    chosen, rejected = sides(FIVE | {"model": "m", "critique": "bad", "note": ""}, SIX | {"model": "n"})
    assert chosen.unused == rejected.unused == ("completions.model", "completions.critique")
    assert sides(FIVE | {"model": "m"}, SIX, ignore=["model"])[0].ignored == ("model",)
    row = {"prompt": "p", "completions": ["5", "6"], "ratings": [2, 1], "scores": [1, 2]}
    assert to_pair(row, Source(name="s", path="rated.jsonl"), WHERE)[0].unused == ("scores",)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (
            {"weigth": 0},
            "key 'weigth' is not read; did you mean 'weight'. Rename it$",
        ),
        ({"reasonings": "t"}, "key 'reasonings' is not read; did you mean 'reasoning'"),
        ({"loss": 1.3}, "'loss' must be 0 or 1 .false or true., not 1.3; set ignore: .loss. if it means"),
        ({"training": "rlhf"}, "'training' must be 0 or 1 .*, not 'rlhf'; set ignore: .training. if it"),
        ({"tool_calls": "auto"}, "'tool_calls' must be calls of tools, not 'auto'; set ignore: .tool_calls."),
        ({"text": 3}, "'text' must be text or messages, not a number"),
        ({"reasoning": 3}, "'reasoning' must be text, not 3; set ignore: .reasoning. if it means"),
        ({"role": "judge"}, "unknown role 'judge'"),
        (
            {"text": [{"role": "assistant", "content": "5"}], "thinking": "t"},
            "'thinking' stands beside messages; write it into the message that it belongs to, or set ignore",
        ),
    ],
)
def test_what_an_entry_cannot_say(entry, sentence):
    with pytest.raises(RequestError, match=f"^rated.jsonl:3: column 'completions', entry 0: {sentence}"):
        sides(FIVE | entry, SIX)


def test_only_an_assistant_replies_in_an_entry():
    assert [side.completion for side in sides(FIVE | {"role": "assistant"}, SIX)] == ["5", "6"]
    with pytest.raises(RowError, match="no_assistant_turn"):
        sides(FIVE | {"role": "user"}, SIX)


def test_a_remedy_of_an_entry_leads_to_a_pair():
    for key, value in (("loss", 1.3), ("training", "rlhf"), ("reasoning", 3), ("tool_calls", "auto")):
        found = sides(FIVE | {key: value}, SIX, ignore=[key])
        assert [side.completion for side in found] == ["5", "6"] and found[0].ignored == (key,)
    for value, remedy in (
        ("0", "write it as a number"),
        ("False", "write"),
        ("1", "set ignore: .weight. if"),
    ):
        with pytest.raises(RequestError, match=f"'weight' must be 0 or 1 .*, not '{value}'; {remedy}"):
            sides(FIVE | {"weight": value}, SIX)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("is_trained", [False, True, "no"]),
        ("loss_mask", [0, [0, 0], [1]]),
        ("train_mask", [[0]]),
        ("masked", [True]),
        ("trainable", [0]),
        ("sample_weight", [0, 1.0, 0.5]),
        ("token_weights", [[0.5, 1]]),
        ("weigth", [3]),
    ],
)
def test_what_may_mask_an_entry_is_refused_by_its_name(key, values):
    place = "rated.jsonl:3: column 'completions', entry 0"
    for value in values:
        with pytest.raises(
            RequestError, match=f"^{place}: key '{key}' may say what is trained, .*'weight', 0"
        ):
            sides(FIVE | {key: value}, SIX)
        found = sides(FIVE | {key: value}, SIX, ignore=[key])
        assert [side.completion for side in found] == ["5", "6"] and found[0].ignored == (key,)
    assert sides(FIVE | {key: None}, SIX)[0].unused == ()


@pytest.mark.parametrize("key", ["face_mask", "has_mask", "mask_id", "attention_mask", "loss_scale"])
def test_other_masks_of_an_entry_are_counted(key):
    for value in (0, 1, [0, 1]):
        assert sides(FIVE | {key: value}, SIX)[0].unused == (f"completions.{key}",)


def both(row, ignore):
    """The two replies of a row as the stage reads it, and what was ignored and not used."""
    source = Source(name="s", path="rated.jsonl", ignore=ignore)
    chosen, rejected = SHAPES["pairs"].read({"prompt": "p"} | row, source, WHERE)
    return chosen.completion, rejected.completion, chosen.ignored, chosen.unused


OPPOSITE = [{"text": "5", "rating": 9}, {"text": "6", "rating": 2}]


@pytest.mark.parametrize(
    ("row", "ignore"),
    [
        ({"completions": [e | {"overall_score": 10 - e["rating"]} for e in OPPOSITE]}, ["overall_score"]),
        ({"completions": [e | {"response": "no"} for e in OPPOSITE]}, ["response"]),
        ({"completions": ["no", "No"], "responses": ["5", "6"], "ratings": [9, 2]}, ["completions"]),
        ({"completions": ["5", "6"], "ratings": [2, 9], "scores": [9, 2]}, ["ratings"]),
        ({"completions": OPPOSITE, "chosen": "no", "rejected": "No"}, ["chosen", "rejected"]),
        ({"completions": OPPOSITE, "chosen": "no"}, ["chosen"]),
        ({"completions": OPPOSITE, "prompt": "no", "question": "p"}, ["prompt"]),
        ({"completions": json.dumps([e | {"response": "no"} for e in OPPOSITE])}, ["response"]),
    ],
)
def test_what_is_ignored_decides_nothing(row, ignore):
    assert both(row, ignore) == ("5", "6", tuple(ignore), ())


TURN = {"role": "assistant", "content": "5"}


@pytest.mark.parametrize(
    "best",
    [
        {"role": "assistant", "content": [{"type": "text", "text": "5"}]},
        {"content": [{"type": "text", "text": "5"}]},
        {"text": TURN},
        {"text": [TURN]},
        {"response": None, "text": "5"},
        {"response": "", "text": "5"},
        {"response": float("nan"), "completion": " ", "content": "5"},
    ],
)
def test_every_form_of_the_text_of_an_entry(best):
    chosen, rejected = sides(best | {"rating": 9}, SIX)
    said = [side.completion or side.messages[-1]["content"] for side in (chosen, rejected)]
    assert said == ["5", "6"]
    parts = sides(
        {"content": [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "5"}], "rating": 9}, SIX
    )
    assert parts[0].messages[1] == TURN | {"thinking": "t"}


def test_an_empty_key_hides_no_other():
    texts = [{"response": "5", "text": None, "rating": 9}, {"response": None, "text": "6", "rating": 2}]
    assert [s.completion for s in sides(*texts)] == ["5", "6"]
    for empty in (None, "N/A", float("nan")):
        scores = [entry | {"overall_score": empty} for entry in (FIVE, SIX)]
        assert [s.completion for s in sides(*scores)] == ["5", "6"]
    row = {"completions": ["5", "6"], "ratings": [None, None], "scores": [2, 1]}
    assert pair({"prompt": "p"} | row) == ("5", "6")
    row = {"completions": [], "responses": [FIVE, SIX]}
    assert pair({"prompt": "p"} | row) == ("5", "6")


@pytest.mark.parametrize("at", [10, 9, 5, 2, 1])
@pytest.mark.parametrize(
    "empty",
    [
        {"text": ""},
        {"text": None},
        {"text": " "},
        {"text": float("nan")},
        {"text": []},
        {"text": [TURN | {"content": ""}]},
        {"text": "", "reasoning": "t"},
        None,
    ],
)
def test_a_reply_that_says_nothing_is_not_chosen_from(empty, at):
    entry = empty if empty is None else empty | {"rating": at}
    for entries in ((FIVE, SIX, entry), (entry, FIVE, SIX)):
        chosen, rejected = sides(*entries)
        assert (chosen.completion, rejected.completion) == ("5", "6")
        assert chosen.unused == rejected.unused == ("completions (empty)",)
    texts = ["5", None if empty is None else empty["text"], "6"]
    assert pair({"prompt": "p", "completions": texts, "ratings": [9, at, 2]}) == ("5", "6")


def test_a_reply_that_says_the_same_as_the_best_is_not_the_worse_one():
    same = [
        " 5",
        "<think>t</think>5",
        [TURN],
        {"role": "assistant", "content": [{"type": "text", "text": "5"}]},
    ]
    for i in range(20):
        for text in same[:1] + same[2:3]:
            assert sides(FIVE | {"n": i}, {"text": text, "rating": 7 + i / 100}, SIX)[1].completion == "6"
    for i in range(20):
        entries = (
            {"text": "5", "reasoning": "t", "rating": 9},
            {"text": same[1], "rating": 7 + i / 100},
            SIX,
        )
        assert sides(*entries)[1].messages[-1]["content"] == "6"
        called = [{"tool_calls": [CALL | {"id": f"c{k}"}], "rating": 9 - k - i / 100} for k in range(2)]
        assert sides(*called, SIX)[1].messages[-1]["content"] == "6"
        ties = ({"text": "6", "rating": 9}, FIVE, {"text": "6", "rating": 2 + i / 100})
        assert [s.completion for s in sides(*ties)] == ["5", "6"], "of two best ones, that with another reply"


def test_a_row_of_too_few_replies_says_why():
    for entries, said in (
        ((FIVE, SIX | {"rating": "N/A"}), "1 of 2 replies .*; 1 without a number as rating .'N/A'.$"),
        (
            (FIVE | {"rating": "4/5"}, SIX | {"rating": [2]}, None),
            "0 of 3 .*; 2 without .* .'4/5'., 1 empty$",
        ),
    ):
        with pytest.raises(RowError, match=f"^no_rating: {said}"):
            sides(*entries)
    for entries, reason in (
        ((FIVE | {"text": ""}, SIX), "no_chosen"),
        ((FIVE, SIX | {"text": None}), "no_rejected"),
    ):
        with pytest.raises(RowError, match=f"^{reason}: 1 of the rated replies in 'completions' are empty"):
            sides(*entries)


def test_a_list_of_replies_as_csv_and_datasets_write_it():
    for value in (json.dumps([FIVE, SIX]), {"text": ["5", "6"], "rating": [9, 2], "model": None}):
        assert pair({"prompt": "p", "completions": value}) == ("5", "6")
    assert pair({"prompt": "p", "responses": '["5", "6"]', "ratings": "[9, 2]"}) == ("5", "6")
    for value in (str([FIVE, SIX]), "['5', '6']", '[{"text": "5"', {"text": ["5"], "rating": [9, 2]}):
        with pytest.raises(
            RequestError, match="^rated.jsonl:3: column 'completions' is neither a list, nor JSON"
        ):
            pair({"prompt": "p", "completions": value})
    with pytest.raises(
        RequestError, match="column 'completions', entry 1 is a string, and others are objects"
    ):
        sides(FIVE, "6")
