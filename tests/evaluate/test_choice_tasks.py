"""Task files of kind choice: which option is right, what is refused, and the shipped ones on their data."""

from __future__ import annotations

import csv
import json
from collections import Counter

import pytest

from posttrain.errors import RequestError
from posttrain.evaluate.settings import problems_of, task_hash
from posttrain.evaluate.tasks.catalogue import check_task, load_task, metrics
from posttrain.evaluate.tasks.files import LOCAL
from posttrain.evaluate.tasks.kinds.choice import index_of
from posttrain.recipe.schema import Task
from posttrain.rewards.engine.call import call
from posttrain.rewards.registry import as_example

OPTIONS = ["one", "two", "C", "1"]


@pytest.mark.parametrize(
    ("answer", "index"),
    [(0, 0), (3, 3), ("B", 1), ("(b)", 1), (" D. ", 3), ("two", 1), (" one ", 0), ("1", 3), ("C", 2)],
)
def test_the_right_option(answer, index):
    assert index_of(answer, OPTIONS) == index


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (4, "is no index of 4 choices, 0 to 3"),
        (-1, "is no index of 4 choices, 0 to 3"),
        (True, "must be an index from 0, a letter or the text of a choice"),
        (None, "must be an index from 0, a letter or the text of a choice"),
        ("E", "is neither a letter from A to D nor the text of a choice"),
        ("Two", "is neither a letter"),
        ("", "is neither a letter"),
    ],
)
def test_what_names_no_option(answer, message):
    with pytest.raises(ValueError, match=message):
        index_of(answer, OPTIONS)


def test_a_letter_that_is_the_text_of_another_option_is_not_guessed():
    with pytest.raises(ValueError, match="may be B and C, by letter or by text"):
        index_of("B", ["A", "~A", "B", "~B"])
    with pytest.raises(ValueError, match="may be A and B"):
        index_of("same", ["same", "same"])


ROW = {"question": "Half of 2?", "choices": ["1", "2"], "answer": "A"}


@pytest.fixture
def task(tmp_path):
    """`task(second row, **keys)`: a task of two rows."""

    def write(row, **keys):
        (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | row) + "\n")
        lines = ["about: Mine", "kind: choice", "source: {file: rows.jsonl}", "prompt: question"]
        keys = {"answer": "answer"} | keys
        (tmp_path / "mine.yaml").write_text("\n".join([*lines, *(f"{k}: {v}" for k, v in keys.items())]))
        return Task("mine", file=str(tmp_path / "mine.yaml"))

    return write


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "C"}, "the answer 'C' is neither a letter from A to B nor the text of a choice"),
        ({"answer": 2}, "the answer '2' is no index of 2 choices, 0 to 1"),
        ({"choices": "1, 2"}, "choices is '1, 2'; it must be a list"),
        ({"choices": ["1"]}, "1 choices; there must be 2 to 26"),
        ({"choices": ["1", " "]}, "choice B is ' '; it must be text or a number"),
        ({"choices": ["1", None]}, "choice B is None; it must be text or a number"),
    ],
)
def test_a_broken_row_is_named(task, row, message):
    with pytest.raises(RequestError, match=r"rows\.jsonl:2: ") as raised:
        problems_of(task(row))
    assert message in str(raised.value) and "mine.yaml: " in str(raised.value)


@pytest.mark.parametrize(
    ("keys", "options", "message"),
    [
        ({"continuation": "leter"}, {}, "did you mean 'letter'?"),
        ({"choises": "choices"}, {}, "did you mean 'choices'?"),
        ({"form": "X"}, {}, "form = 'X' must contain {}"),
        (
            {"chat": "false", "shots": "{n: 1}"},
            {},
            "shots.form = turns needs chat: true; set shots.form to text",
        ),
        ({}, {"samples": 4}, "samples has no effect"),
        ({}, {"temperature": 0.0}, "greedy decoding is the metric acc of a choice task"),
    ],
)
def test_what_is_refused(task, keys, options, message):
    made = task({}, **keys)
    for key, value in options.items():
        setattr(made, key, value)
    (wrong,) = check_task(made, "evaluate.tasks[0]")
    assert message in wrong[1]


def test_what_follows_a_prompt_is_part_of_the_settings(task):
    hashes = {task_hash(task({}, **keys)) for keys in ({}, {"continuation": "text"}, {"space": "never"})}
    hashes |= {task_hash(task({}, **keys)) for keys in ({"form": "'({})'"}, {"unconditional": "'Answer:'"})}
    assert len(hashes) == 5
    assert task_hash(task({})) == task_hash(task({}, choices="'{{ choices }}'")), "the options are the same"


def test_mmlu_of_the_hub_and_of_local_copies_asks_the_same(tmp_path, monkeypatch):
    """Rows as the hub has them, with a list and an index, and CSV files without a header by subject."""
    asked = {"test": ("x", 2), "dev": ("d", 6)}
    rows = {}
    for split, (name, count) in asked.items():
        (tmp_path / "mmlu" / split).mkdir(parents=True)
        rows[split] = [[f" {name}{i}?", "w", "x", "y", "z", "ABCD"[i % 4]] for i in range(count)]
        with open(tmp_path / "mmlu" / split / f"high_school_{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows[split])
    monkeypatch.setenv(LOCAL, str(tmp_path))
    local = problems_of(Task("mmlu"))
    for split, found in rows.items():
        with open(tmp_path / f"{split}.jsonl", "w") as file:
            for question, *choices, answer in found:
                row = {"question": question, "subject": "high_school", "choices": choices}
                file.write(json.dumps(row | {"answer": "ABCD".index(answer)}) + "\n")
    source = {"file": str(tmp_path / "test.jsonl"), "header": []}
    shots = {"file": str(tmp_path / "dev.jsonl"), "header": []}
    as_hub = problems_of(Task("mmlu", options={"source": source, "shots": shots}))
    assert as_hub == local
    assert local[1].group == "high_school" and local[1].answer == "B" and local[1].extra["right"] == 1
    asked, replies = local[1].messages[::2], [m["content"] for m in local[1].messages[1::2]]
    assert replies == ["A", "B", "C", "D", "A"], "the first five of dev"
    assert [m["content"].splitlines()[0] for m in asked] == ["d0?", "d1?", "d2?", "d3?", "d4?", "x1?"]
    assert asked[-1]["content"] == "x1?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    for name in ("mmlu_text", "mmlu_cot"):
        mine, its = (problems_of(Task(name, options=o)) for o in ({"source": source}, {}))
        for a, b in zip(mine, its, strict=True):
            assert (a.messages, a.prompt, a.answer, a.group) == (
                b.messages,
                b.prompt,
                b.answer,
                "high_school",
            )


@pytest.mark.parametrize(
    ("name", "count", "groups", "right"),
    [
        ("mmlu", 14042, 57, "ABCD"),
        ("mmlu_text", 14042, 57, "ABCD"),
        ("aqua_rat_likelihood", 254, 1, "ABCDE"),
    ],
)
def test_gold_of_all_rows(name, count, groups, right, data_dir, monkeypatch):
    """The right option is the one whose letter the file says."""
    monkeypatch.setenv(LOCAL, str(data_dir))
    assert check_task(Task(name), "x") == []
    problems = problems_of(Task(name))
    assert len(problems) == count and len({p.group for p in problems}) == groups
    letters = []
    if name.startswith("mmlu"):
        for path in sorted((data_dir / "mmlu/test").glob("*.csv")):
            with open(path, newline="") as file:
                letters += [(cells[5], cells[1:5]) for cells in csv.reader(file)]
    else:
        with open(data_dir / "aqua_rat/test.json") as file:
            letters = [(row["correct"], row["options"]) for row in map(json.loads, file)]
    for problem, (letter, options) in zip(problems, letters, strict=True):
        index = right.index(letter)
        assert (problem.extra["right"], problem.extra["choices"]) == (index, options)
        assert problem.answer == (options[index] if name == "mmlu_text" else letter)


def test_a_right_letter_is_judged_right_and_another_wrong(data_dir, monkeypatch):
    monkeypatch.setenv(LOCAL, str(data_dir))
    for name, count in (("mmlu_cot", 14042), ("aqua_rat", 254)):
        reward, found = load_task(Task(name)).reward, Counter()
        for problem in problems_of(Task(name)):
            other = "ABCD"["BCDA".index(problem.answer) if problem.answer in "ABCD" else 0]
            for kind, letter in (("gold", problem.answer), ("spoiled", other)):
                text = f"A or B, so we compute.\nThe answer is ({letter})."
                found[kind] += call(reward, text, as_example(problem)).value
        assert found == {"gold": count, "spoiled": 0}
    assert metrics(Task("mmlu_cot"))[-1] == "pass@1_macro" and metrics(Task("aqua_rat"))[-1] == "tokens_mean"
