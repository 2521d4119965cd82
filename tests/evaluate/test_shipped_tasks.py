"""The shipped tasks on their own data: how many rows, and that right replies count and wrong ones do not."""

from __future__ import annotations

import json

import pytest
import yaml

from posttrain.errors import RequestError
from posttrain.evaluate.settings import problems_of, task_hash
from posttrain.evaluate.tasks.catalogue import check_task, load_task
from posttrain.evaluate.tasks.files import shipped
from posttrain.evaluate.tasks.replies import saying, spoiled
from posttrain.recipe.schema import Task
from posttrain.rewards import bind
from posttrain.rewards.engine.call import call
from posttrain.rewards.registry import as_example

ROWS = {
    "aime24": 30,
    "amc23": 40,
    "bbh": 6511,
    "gsm8k": 1319,
    "gsm8k_8shot": 1319,
    "gsm_hard": 1319,
    "gsm_symbolic": 5000,
    "gsm_symbolic_p1": 5000,
    "gsm_symbolic_p2": 2500,
    "math": 5000,
    "math500": 500,
    "olympiadbench": 675,
    "svamp": 1000,
    "theoremqa": 747,
}


@pytest.mark.parametrize(("name", "rows"), ROWS.items())
def test_right_replies_score_1_and_wrong_ones_0(data_dir, name, rows):
    task = load_task(Task(name))
    problems = task.problems()
    right = task.verdicts([task.gold_reply(p) for p in problems], problems)
    wrong = task.verdicts([task.spoiled_reply(p) for p in problems], problems)
    assert len(problems) == rows
    assert [p.id for p, v in zip(problems, right, strict=True) if v.value != 1] == []
    assert [p.id for p, v in zip(problems, wrong, strict=True) if v.value != 0] == []


def judged(name: str, rows: list[dict], replies: list[str], path, **options) -> list[float]:
    """The values of replies, each to the row at its place."""
    path = path / "rows.json"
    path.write_text(json.dumps(rows))
    task = load_task(Task(name, path=str(path), options=options))
    return [verdict.value for verdict in task.verdicts(replies, task.problems())]


THEOREM = {"Question": "?", "Picture": None, "field": "Math"}


@pytest.mark.parametrize(
    ("kind", "answer", "reply", "value"),
    [
        ("float", 2.0, "2.07", 1),  # within 4 %
        ("float", 2.0, "2.09", 0),
        ("float", 3e-36, "3.1 \\times 10^{-36}", 1),
        ("float", 3e-36, "0", 0),
        ("integer", 100, "100", 1),
        ("integer", 100, "102", 0),  # counted, not measured
        ("bool", True, "True", 1),
        ("bool", True, "false", 0),
        ("option", "(c)", "(c)", 1),
        ("option", "(c)", "(b)", 0),
        ("list of integer", [0, 5], "0, 5", 1),
        ("list of integer", [0, 5], "[0, 5]", 1),
        ("list of integer", [0, 5], "[0, 6]", 0),
        ("list of integer", [0, 0], "0", 0),
        ("list of float", [0.333, 0.25], "[0.34, 0.25]", 1),
        ("list of float", [0.333, 0.25], "[0.36, 0.25]", 0),
    ],
)
def test_theoremqa_judges_by_the_type_of_the_answer(tmp_path, kind, answer, reply, value):
    row = THEOREM | {"id": "a", "Answer": answer, "Answer_type": kind}
    other = THEOREM | {"id": "b", "Answer": 1.0, "Answer_type": "float"}  # a row with other options beside it
    replies = [f"So $\\boxed{{{reply}}}$.", "\\boxed{1.03}"]
    assert judged("theoremqa", [row, other], replies, tmp_path) == [value, 1]


def test_theoremqa_leaves_out_rows_with_a_picture(data_dir):
    rows = json.loads((data_dir / "theoremqa/theoremqa_test.json").read_text())
    asked = {p.id for p in problems_of(Task("theoremqa"))}
    assert sum(row["Picture"] is not None for row in rows) == 53
    assert asked == {row["id"] for row in rows if row["Picture"] is None}


OLYMPIAD = {"subfield": "Algebra", "context": None, "question": "?", "unit": None, "error": None}


@pytest.mark.parametrize(
    ("gold", "beside", "reply", "value"),
    [
        (["$69$,$84$"], {}, "84, 69", 1),  # several answers have no order
        (["$69$,$84$"], {}, "69", 0),
        (["(6,5)"], {}, "(5,6)", 0),  # a tuple has
        (["(-\\infty,-5)"], {}, "(-\\infty,-5]", 0),
        (["$2n$"], {}, "n+n", 1),
        (["4.2"], {"error": "1e-1"}, "4.25", 1),
        (["4.2"], {"error": "1e-1"}, "4.35", 0),
        (["4.2"], {}, "4.25", 0),
        (["5"], {"unit": "km"}, "5", 1),
        (["5"], {"unit": "km"}, "5000\\text{ m}", 1),
        (["5"], {"unit": "km"}, "5\\text{ m}", 0),
    ],
)
def test_olympiadbench_answers(tmp_path, gold, beside, reply, value):
    row = OLYMPIAD | {"id": 1, "final_answer": gold} | beside
    assert judged("olympiadbench", [row], [f"\\boxed{{{reply}}}"], tmp_path) == [value]


def test_numbers_of_other_notation(tmp_path):
    aime = {"id": 1, "problem": "?", "answer": "073"}
    assert judged("aime24", [aime] * 1, ["\\boxed{73}"], tmp_path) == [1]
    amc = {"id": 1, "question": "?", "answer": 27.0}
    assert judged("amc23", [amc], ["\\boxed{27}"], tmp_path) == [1]
    svamp = {"ID": "a", "Body": "A.", "Question": "B?", "Answer": 51.0, "Type": "x"}
    assert judged("svamp", [svamp], ["It is 51 dollars."], tmp_path) == [1]
    hard = {"input": "?", "target": 14053029.666666666}
    replies = ["\\boxed{14053029.67}", "\\boxed{14053030.67}", "\\boxed{14053100}"]
    assert judged("gsm_hard", [hard] * 3, replies, tmp_path) == [1, 1, 0]


BBH = {"input": "?", "target": "(B)"}


@pytest.mark.parametrize(
    ("reply", "correct", "reference"),
    [
        ("So the answer is (B).", 1, 1),
        ("So the answer is (B). ", 1, 0),  # the usual scorer keeps the period
        ("So the answer is (B)", 1, 0),
        ("So the answer is (A).", 0, 0),
        ("(B)", 0, 0),
        ("Perhaps the answer is (A).\nNo, so the answer is (B).", 1, 0),
        ("<think>so the answer is (B).</think>So the answer is (A).", 0, 0),
    ],
)
def test_bbh_with_either_scorer(tmp_path, reply, correct, reference):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"examples": [BBH]}))
    for scorer, value in (("correct", correct), ("reference", reference)):
        options = {"shots": None, "scorer": scorer, "id": "{{ index }}", "group": ""}
        task = load_task(Task("bbh", path=str(path), options=options))
        assert [v.value for v in task.verdicts([reply], task.problems())] == [value], scorer


def test_the_usual_scorer_of_gsm8k_drops_the_sign_of_integers(tmp_path):
    rows = [{"question": "?", "answer": "#### 1,018"}] * 4
    replies = ["It is -1018.", "It is 1,018.", "It is -1018.5.", "Nothing."]
    assert judged("gsm8k", rows, replies, tmp_path) == [0, 1, 0, 0]
    assert judged("gsm8k", rows, replies, tmp_path, scorer="reference") == [1, 1, 0, 0]


def test_the_scorer_is_a_setting(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "?", "answer": "1"}) + "\n")
    given = [{}, {"scorer": "correct"}, {"scorer": "reference"}, {"gold": "{{ answer }}"}]
    plain, same, other, unmeasured = [
        task_hash(Task("gsm8k", path=str(path), options=options)) for options in given
    ]
    assert plain == same == unmeasured != other
    ((_, message),) = check_task(Task("math", path=str(path), options={"scorer": "reference"}), "x")
    assert "scorer = reference, but the task has no key reference" in message


def test_options_of_a_row_are_checked_with_the_row(tmp_path):
    rows = [OLYMPIAD | {"id": i, "final_answer": ["4"], "error": e} for i, e in enumerate([None, "much"])]
    reward = {"options": {"absolute_tolerance": "{{ error }}"}}
    with pytest.raises(
        RequestError,
        match=r"rows.json\[1\]: olympiadbench.yaml: reward: reward 'math': .*absolute_tolerance.*number",
    ):
        judged("olympiadbench", rows, ["", ""], tmp_path, reward=reward)


@pytest.mark.parametrize(
    ("value", "text"), [(51.0, "51.0"), (True, "True"), ([0, 5], "0, 5"), ([0.5], "0.5"), (" 7", " 7")]
)
def test_answers_that_are_no_texts(tmp_path, value, text):
    """As in the rows of training."""
    from posttrain.data.shapes.prompts import reward_example

    (tmp_path / "rows.json").write_text(json.dumps([{"problem": "?", "answer": value}]))
    (problem,) = problems_of(Task("direct_answers", path=str(tmp_path / "rows.json")))
    assert problem.answer == text == reward_example({"answer": value}, "r:1").answer


@pytest.mark.parametrize("value", [None, "", " ", [], [[1]], {"a": 1}])
def test_what_is_no_answer(tmp_path, value):
    (tmp_path / "rows.json").write_text(json.dumps([{"problem": "?", "answer": value}]))
    with pytest.raises(RequestError, match=r"rows.json\[0\]: column 'answer' is .*a list of these"):
        problems_of(Task("direct_answers", path=str(tmp_path / "rows.json")))
    (tmp_path / "rows.json").write_text(json.dumps([{"problem": ["?"], "answer": "1"}]))
    with pytest.raises(RequestError, match=r"column 'problem' is \['\?'\]; it must be text or a number"):
        problems_of(Task("direct_answers", path=str(tmp_path / "rows.json")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rows": [BBH]}, "has no array of rows under 'examples'; the row has rows"),
        ([BBH], "has no array of rows under 'examples'"),
        ({"examples": [BBH, 3]}, r"examples\[1\]: a row must be a JSON object, not a number"),
    ],
)
def test_rows_under_a_key(tmp_path, content, message):
    (tmp_path / "b.json").write_text(json.dumps(content))
    with pytest.raises(RequestError, match=message):
        problems_of(Task("bbh", path=str(tmp_path / "b.json"), options={"shots": None}))


@pytest.mark.parametrize(
    ("answer", "reward", "wrong"),
    [
        ("18", "math", "36"),
        ("0", "math", "1"),
        ("-1", "math", "0"),
        ("1,018", "math", "2036"),
        ("$2n$", "math", "2n, 977"),
        ("(B)", "exact", "(A)"),
        ("A", "choice", "B"),
        ("Yes", "exact", "No"),
        ("True", "math", "False"),
        ("a b", "exact", "not a b"),
    ],
)
def test_spoiled_answers(answer, reward, wrong):
    assert spoiled(answer, reward) == wrong


@pytest.mark.parametrize(
    ("name", "options", "answer"),
    [
        ("math", {}, "\\frac12"),
        ("math", {"extract": "boxed"}, "7"),
        ("math", {"extract": "last_number"}, "7"),
        ("math", {"mode": "strict"}, "7"),
        ("choice", {}, "B"),
        ("exact", {}, "a word"),
        ("exact", {"take": "stated"}, "a word"),
        ("contains", {}, "a word"),
        ("f1", {"take": "stated"}, "a word"),
    ],
)
def test_a_reply_of_each_reward_is_read(name, options, answer):
    from posttrain.types import Problem

    reward, example = bind(name, options), as_example(Problem("0", answer))
    assert call(reward, saying(reward, answer), example).value == 1
    if name not in ("contains", "f1"):  # which give a part, or find the answer in its denial
        assert call(reward, saying(reward, spoiled(answer, name)), example).value == 0
    assert saying(bind("regex", {"pattern": "x"}), answer) is None


@pytest.mark.parametrize("path", shipped().values(), ids=lambda path: path.stem)
def test_a_task_file_is_short_and_says_where_it_is_from(path):
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 25
    assert given["about"] and given["published"] and given["source"]["licence"]
    assert given["source"].get("hub") or given["source"].get("origin")


@pytest.mark.parametrize(
    ("reply", "value"), [("Sucre", 1), ("La Paz.", 1), ("Sucre, La Paz", 0), ("Lima", 0), ("", 0)]
)
def test_one_of_several_right_answers(tmp_path, reply, value):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "?", "a": "Sucre", "also": ["Sucre", "La Paz"]}))
    (tmp_path / "mine.yaml").write_text(
        "about: Capitals\nkind: generate\nsource: {file: rows.jsonl}\nprompt: q\nanswer: a\n"
        "columns: {answers: also}\nreward: {name: exact}\n"
    )
    task = load_task(Task("mine", file=str(tmp_path / "mine.yaml")))
    assert [v.value for v in task.verdicts([reply], task.problems())] == [value]
