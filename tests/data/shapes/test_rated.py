"""Rated replies to pairs: the best against a lower one, ties, rows without ratings, other rows."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.reasons import REASONS
from posttrain.data.shapes.pairs import to_pair
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.recipe.schema import Columns, Source
from tests.data.shapes.rated_rows import WHERE, pair


def replies(*ratings, text="response", score="overall_score"):
    return [{text: f"r{i}", score: rating, "model": "m"} for i, rating in enumerate(ratings)]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"instruction": "p", "completions": replies(3.0, 8.5)}, {}),
        ({"prompt": "p", "responses": replies(1, 2, text="text", score="rating")}, {}),
        ({"prompt": "p", "completions": replies("1", "4", text="content", score="score")}, {}),
        ({"prompt": "p", "responses": ["r0", "r1"], "ratings": [-1, 0]}, {}),
        ({"prompt": "p", "completions": ["r0", "r1"], "scores": [0.1, 0.2]}, {}),
        (
            {"prompt": "p", "answers": ["r0", "r1"], "votes": [0.1, 0.2]},
            {"completion": "answers", "rating": "votes"},
        ),
        (
            {
                "prompt": "p",
                "completions": [
                    {"response": "r0", "fine": 1, "rating": 9},
                    {"response": "r1", "fine": 2, "rating": 1},
                ],
            },
            {"rating": "fine"},
        ),
    ],
)
def test_the_usual_forms(row, columns):
    assert pair(row, **columns) == ("r1", "r0")


@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=5).filter(lambda rated: len(set(rated)) > 1),
    st.integers(0, 9),
)
def test_the_best_against_a_strictly_lower_one(ratings, i):
    row = {"prompt": "p", "completions": [{"text": f"{i} {j}", "rating": r} for j, r in enumerate(ratings)]}
    rated = {entry["text"]: entry["rating"] for entry in row["completions"]}
    chosen, rejected = pair(row)
    assert rated[chosen] == max(ratings) > rated[rejected]
    assert pair(row | {"other": i}) == (chosen, rejected), "drawn by what the replies are"


def test_the_lower_one_is_drawn_evenly():
    """600 rows with one best of four: each of the three others about 200 times (six standard errors: 69)."""
    drawn = Counter()
    for i in range(600):
        row = {"prompt": "p", "completions": [{"text": f"{i}:{j}", "rating": j} for j in range(4)]}
        drawn[pair(row)[1].partition(":")[2]] += 1
    assert set(drawn) == {"0", "1", "2"} and max(abs(n - 200) for n in drawn.values()) < 69


@pytest.mark.parametrize(
    ("completions", "reason"),
    [
        (replies(5, 5, 5), "rating_tie"),
        (replies(5, "N/A", None), "no_rating"),
        (replies(5, float("nan")), "no_rating"),
        ([], "no_rating"),
        ([{"text": "x", "rating": 1}, {"text": " x", "rating": 2}], "equal_pair"),
        ([{"text": "x", "rating": 1}, {"text": "", "rating": 2}], "no_chosen"),
    ],
)
def test_rows_that_teach_nothing_are_dropped(completions, reason):
    with pytest.raises(RowError) as error:
        pair({"prompt": "p", "completions": completions})
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("row", "columns", "sentence"),
    [
        (
            {"completions": [{"response": "x", "stars": 4}]},
            {},
            "have response, stars, but no rating; name the rating under columns.rating$",
        ),
        (
            {"completions": [{"answer": "x", "rating": 4}]},
            {},
            "answer, rating, but no text .response, .*, content.; write what each replies under response$",
        ),
        ({"completions": replies(1, 2)}, {"rating": "stars"}, "but no rating 'stars'"),
        ({"completions": replies(1, 10**400)}, {}, "'overall_score' is 10{19}[.]{3}, too large for a rating"),
        (
            {"completions": ["x", "y"], "ratings": [1, -(10**400)]},
            {},
            "'ratings' is -10{18}[.]{3}, too large",
        ),
        ({"completions": replies(True, False)}, {}, "'overall_score' is True, not a rating.*kto"),
        (
            {"completions": ["x", "y"]},
            {},
            "replies without ratings; write objects with response and rating, or add a list 'ratings'",
        ),
        ({"completions": ["x", "y"], "ratings": [1]}, {}, "has 2 replies, but 'ratings' has 1 ratings"),
        (
            {"completion": "x", "rating": 4},
            {},
            "one rated reply per row .'rating'., and rows of the same prompt are not grouped",
        ),
        ({"messages": [], "score": 4.0}, {}, "completions: ..text, rating"),
    ],
)
def test_what_is_no_row_of_rated_replies(row, columns, sentence):
    with pytest.raises(RequestError, match=rf"rated.jsonl:3.*{sentence}"):
        pair({"prompt": "p"} | row, **columns)


def test_pairs_that_are_there_go_before_ratings():
    row = {"prompt": "p", "chosen": "c", "rejected": "r", "completions": replies(1, 2), "score": 3}
    assert pair(row) == ("c", "r")


TURN = {"role": "assistant", "content": "a"}
CALL = {"name": "f", "arguments": {"a": 1, "b": 2}}
TURNED = {"arguments": {"b": 2, "a": 1}, "name": "f"}


@pytest.mark.parametrize(
    ("best", "same"),
    [
        ("a", [{"from": "gpt", "value": "a"}]),
        ([TURN], [TURN | {"content": [{"type": "text", "text": "a"}]}]),
        ("a", [{"role": "user", "content": "p"}, TURN]),
        ("a", "\n\nHuman: p\n\nAssistant: a"),
        ("<think>t</think>a", [TURN | {"content": [{"type": "thinking", "thinking": "t"}, "a"]}]),
        ([TURN | {"function_call": CALL}], [TURN | {"tool_calls": [{"function": TURNED, "id": "c"}]}]),
    ],
)
def test_replies_are_compared_by_what_they_are_read_as(best, same):
    """20 lists, so that a draw between the two lower ones would take the same reply in some."""
    for i in range(20):
        for one, other in ((best, same), (same, best)):
            texts, ratings = [one, other, "6"], [9, 2 + i / 100, 3]
            entries = [{"text": text, "rating": rating} for text, rating in zip(texts, ratings, strict=True)]
            for row in ({"completions": texts, "ratings": ratings}, {"completions": entries}):
                _, rejected = to_pair({"prompt": "p"} | row, Source(name="s", path="rated.jsonl"), WHERE)
                assert (rejected.completion or rejected.messages[-1]["content"]) == "6"


@pytest.mark.parametrize("at", [9, 1])
@pytest.mark.parametrize(
    "entry",
    [
        [TURN | {"weight": 0}],
        TURN | {"train": False},
        [{"role": "user", "content": "p"}, TURN | {"loss": 0}],
        [TURN | {"content": [{"type": "text", "text": ""}]}],
        [TURN | {"content": "", "reasoning": "t"}],
        "<think>t</think>",
        "\n\nHuman: p\n\nAssistant:",
        [],
    ],
)
def test_messages_that_train_nothing_are_not_chosen_from(entry, at):
    for i in range(20):
        replies = [{"text": text, "rating": 5 - k - i / 100} for k, text in enumerate("56")]
        assert pair({"prompt": "p", "completions": [{"text": entry, "rating": at}, *replies]}) == ("5", "6")
    if not isinstance(entry, dict):
        assert pair({"prompt": "p", "completions": ["5", entry, "6"], "ratings": [5, at, 4]}) == ("5", "6")


def test_an_entry_of_messages_ends_in_a_reply():
    asked = [{"role": "user", "content": "p"}]
    with pytest.raises(RowError, match="no_assistant_turn: .*'completions', entry 1 does not end in a reply"):
        pair({"prompt": "p", "completions": ["5", asked, "6"], "ratings": [5, 4, 3]})


@pytest.mark.parametrize("empty", [None, "", " ", float("nan"), {"text": None, "rating": None}, []])
def test_a_row_without_its_list_is_dropped(empty):
    for row in (
        {"completions": empty},
        {"responses": empty, "score": 3},
        {"completions": empty, "ratings": []},
    ):
        with pytest.raises(RowError, match="^no_rating: "):
            pair({"prompt": "p"} | row)
    with pytest.raises(RowError, match="^no_rating: 0 of 2 replies .* 2 without a number as rating"):
        pair({"prompt": "p", "completions": ["5", "6"], "ratings": empty})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"completions": [None, None]}, "2 empty$"),
        ({"completions": [None, ""], "ratings": None}, "2 empty"),
        ({"completions": ["5", "6"], "votes": None}, "2 without a number as rating"),
        ({"completions": [{"rating": 3}, {"rating": 2, "model": None}]}, "2 of the rated replies"),
        (
            {"completions": [{"text": "5"}, {"text": "6", "role": "assistant"}]},
            "2 without a number as rating",
        ),
        ({"completions": [{}, {}]}, "2 without a number as rating"),
    ],
)
def test_a_list_without_texts_or_ratings_is_dropped(row, said):
    columns = {"rating": "votes"} if "votes" in row else {}
    with pytest.raises(RowError, match=f"^(no_rating|no_chosen|no_rejected): .*{said}"):
        pair({"prompt": "p"} | row, **columns)


def test_a_rating_is_not_named_and_ignored():
    source = Source(name="s", path="rated.jsonl", columns=Columns(rating="rating"), ignore=["rating"])
    words = (
        r"^rated.jsonl:3: source 's' names 'rating' under columns.rating and under ignore; take it out of one"
    )
    for row in ({"completions": replies(1, 2)}, {"completions": ["5", "6"], "rating": [1, 2]}):
        with pytest.raises(RequestError, match=words):
            to_pair({"prompt": "p"} | row, source, WHERE)


def test_what_to_do_where_ratings_are_missing():
    """Another name helps where there is no value, not where it is no number or the reply is not trained."""
    advice = "; a key or column by another name may be named under columns.rating"
    for rows, there in (
        (["N/A", "N/A"], False),
        ([[1], [2]], False),
        (["4/5", None], False),
        ([None, None], True),
        ([None, 3], False),
    ):
        with pytest.raises(RowError, match="^no_rating") as error:
            pair({"prompt": "p", "completions": replies(*rows)})
        assert str(error.value).endswith(advice) == there
    with pytest.raises(RowError, match="2 with a flag of 0$"):
        pair({"prompt": "p", "completions": [entry | {"weight": 0} for entry in replies(1, 2)]})
    assert "columns.rating" not in REASONS["no_rating"].remedy
