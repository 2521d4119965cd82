"""Task files that would have measured something else than they say: each is refused, or measured right."""

from __future__ import annotations

import json

import pytest

from posttrain.errors import RequestError
from posttrain.evaluate.settings import problems_of, task_hash
from posttrain.evaluate.tasks.catalogue import check_task, load_task, named_task
from posttrain.recipe.schema import Task

ROWS = [{"q": f"q {i}", "a": str(i), "g": "#", "keep": "False"} for i in range(4)]


@pytest.fixture
def task(tmp_path):
    """`task(text, rows)`: a generate task of its own, `text` being what it says besides."""

    def write(text: str, rows: list[dict] | None = None, **fields) -> Task:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows or ROWS))
        head = "about: own\nkind: generate\nsource: {file: rows.jsonl}\nanswer: a\n"
        prompt = "" if "\nprompt:" in f"\n{text}" else "prompt: q\n"
        (tmp_path / "own.yaml").write_text(f"{head}{prompt}{text}")
        return Task("own", file=str(tmp_path / "own.yaml"), **fields)

    return write


def wrong(task: Task) -> str:
    found = check_task(task, "t")
    if found:
        return found[0][1]
    with pytest.raises(RequestError) as error:
        problems_of(task)
    return str(error.value)


@pytest.mark.parametrize("question", ["q 3", "q 3 ", "q  3"])
def test_a_scored_question_is_no_shot_of_itself_however_it_is_written(task, tmp_path, question):
    (tmp_path / "other.jsonl").write_text(json.dumps({"q": question, "a": "3"}) + "\n")
    text = "prompt: '{{ q }} Think.'\nshots: {n: 1, file: other.jsonl, prompt: 'Q: {{ q }}'}\n"
    assert "rows.jsonl:4: this question is the shot" in wrong(task(text))


def test_of_equal_questions_of_the_scored_rows_none_is_a_shot(task):
    rows = [{"q": "same", "a": "1"}, {"q": "same", "a": "1"}, {"q": "other", "a": "2"}]
    asked = problems_of(task("shots: {n: 1, prompt: 'Q: {{ q }}'}\n", rows))
    assert [problem.messages[0]["content"] for problem in asked] == ["Q: other", "Q: other", "Q: same"]


def test_the_code_of_a_reward_of_your_own_is_a_setting(task, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "own_judging.py"
    file.write_text("def mine(completion, example):\n    return 1.0\n")
    one = task("reward: {name: 'own_judging:mine'}\n")
    before = task_hash(one)
    assert task_hash(one) == before
    file.write_text("def mine(completion, example):\n    return 0.0\n")
    assert task_hash(one) != before


def test_a_reply_sees_the_columns_of_its_row(task):
    one = load_task(task("reward: {name: exact}\nreply: '{{ completion | after(g) }}'\n"))
    assert one.judged("so # 7", one.problems()[0]) == "7"
    assert "rows.jsonl:1: 'h' is undefined" in wrong(task("reply: '{{ completion | after(h) }}'\n"))


def test_a_column_with_a_number_that_may_be_an_index_or_a_choice_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "?", "r": 2, "options": ["1", "2", "3"]}) + "\n")
    head = "about: own\nkind: choice\nsource: {file: rows.jsonl}\nprompt: q\nchoices: options\n"

    def right(answer: str) -> str:
        (tmp_path / "own.yaml").write_text(f"{head}answer: {answer}\ncontinuation: text\n")
        return problems_of(Task("own", file=str(tmp_path / "own.yaml")))[0].answer

    assert (right("'{{ r }}'"), right("'{{ r | string }}'")) == ("3", "2")
    with pytest.raises(RequestError, match="the answer '2' may be an index or the text of a choice"):
        right("r")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("where: keep\n", "keep is 'False', neither true nor false; compare it, as in x == 'yes'"),
        ("where: \"{{ g == '#' }}\"\n", "is written without braces"),
        ("where: \"{'a': {'b': 1}}['a']['b'] == 2\"\n", "has no problems"),
        ("stop: ['']\n", "stop has an empty text"),
        ("clusters: true\n", "clusters = true needs group"),
        ("shots: {n: -1}\n", "shots must have either n"),
        ("prompt: '{% for i in range(10**9) %}{% endfor %}'\n", "Range too big"),
        ("prompt: '{{ 10.0**400 }}'\n", "own.yaml: prompt"),
        ("prompt: \"{{ q | matches('(') }}\"\n", "unterminated subpattern"),
    ],
)
def test_what_is_refused_with_a_sentence(task, text, said):
    one = task(text)
    if said == "has no problems":
        assert problems_of(one) == []
    else:
        assert said in wrong(one)


def test_letters_are_put_in_without_format(task):
    rows = [{"q": "?", "a": "A", "options": ["{x}", "two"]}]
    form = "prompt: \"{{ options | lettered('{letter.__class__}) {option}') }}\"\n"
    (problem,) = problems_of(task(form + "reward: {name: exact, options: {normalise: space}}\n", rows))
    assert problem.messages[0]["content"] == "{letter.__class__}) {x}\n{letter.__class__}) two"


def test_a_file_that_a_recipe_names_is_not_sought_on_the_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("POSTTRAIN_DATA", str(tmp_path))
    ((_, said),) = check_task(Task("gsm8k", options={"source": {"file": "typo.jsonl"}}), "t")
    assert "typo.jsonl: no such file, which options.source.file names" in said


def test_a_command_line_names_a_task_file_by_its_path():
    assert (named_task("a/b.yaml").name, named_task("a/b.yaml").file) == ("b", "a/b.yaml")
    assert (named_task("gsm8k").name, named_task("gsm8k").file) == ("gsm8k", None)
