"""The catalogue, what it refuses, and the problems the tasks give."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from posttrain.errors import RequestError
from posttrain.evaluate.settings import problems_of, settings_hash, task_hash
from posttrain.evaluate.tasks.base import TASKS
from posttrain.evaluate.tasks.catalogue import check_task, load_task, metrics
from posttrain.recipe.schema import Task
from posttrain.rewards.engine.call import call
from posttrain.rewards.registry import as_example
from posttrain.types import Example, Problem

AT = "evaluate.tasks[0]"


def gsm(path, **fields) -> Task:
    return Task(name="gsm8k", path=str(path), **fields)


@pytest.fixture
def rows(tmp_path):
    """A file of two questions."""
    path = tmp_path / "rows.jsonl"
    lines = [{"question": "One?", "answer": "1+0 = <<1+0=1>>1\n#### 1"}, {"question": "2?", "answer": "2"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_reading_the_catalogue_imports_no_torch():
    code = (
        "import sys; from posttrain.evaluate.tasks.catalogue import check_task;"
        "import posttrain.rundir.scores;"
        "from posttrain.recipe.schema import Task; check_task(Task('arithmetic'), '');"
        "print([m for m in ('torch', 'transformers', 'datasets', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_task_is_described_and_measures_something():
    assert set(TASKS) == {"arithmetic", "worked_arithmetic"}
    assert all(len(TASKS[name].__doc__) > 30 and TASKS[name].kind in ("sampled", "exact") for name in TASKS)
    assert metrics(Task("arithmetic"))[:3] == ["pass@1", "pass@2", "pass@4"]
    assert metrics(Task("arithmetic"))[-3:] == ["pass@4096", "nll", "accuracy"]
    assert metrics(Task("gsm8k", samples=8, k=[1, 8])) == [
        "pass@1",
        "pass@8",
        "maj@8",
        "truncated",
        "parsed",
        "tokens_mean",
    ]


@pytest.mark.parametrize(
    ("task", "place", "message"),
    [
        (Task("gsm8"), ".name", "'gsm8' is not a task (did you mean 'gsm8k'?)"),
        (
            Task("arithmetic", options={"digit": 2}),
            ".options.digit",
            "unknown key 'digit' (did you mean 'digits'?)",
        ),
        (Task("arithmetic", options={"digits": "two"}), ".options.digits", "must be a whole number"),
        (Task("arithmetic", options={"digits": 4}), "", "digits must be 1, 2 or 3, not 4"),
        (Task("arithmetic", options={"generator": "adition"}), "", "did you mean 'addition'?"),
        (Task("arithmetic", options={"train_size": 8000}), "", "there are 8100 problems"),
        (Task("arithmetic", path="x.jsonl"), ".path", "reads no file"),
        (Task("arithmetic", samples=8), ".samples", "has no effect"),
        (Task("arithmetic", top_p=0.5), ".top_p", "has no effect"),
        (Task("arithmetic", temperature=0.0), ".temperature", "metric accuracy of an exact task"),
        (Task("arithmetic", temperature=-1.0), ".temperature", "= -1.0 must be positive"),
        (Task("arithmetic", temperatures=[2.0, 0.0]), ".temperatures", "metric accuracy"),
        (Task("arithmetic", temperatures=[2.0, float("nan")]), ".temperatures", "= nan must be positive"),
        (Task("arithmetic", temperatures=[2.0, 2.0]), ".temperatures", "lists one twice"),
        (
            Task("arithmetic", temperatures=[1.0]),
            ".temperatures",
            "temperature = 1, which is always measured",
        ),
        (Task("worked_arithmetic", temperatures=[2.0]), ".temperatures", "is for exact tasks"),
        (Task("gsm8k", options={"extract": "boxed"}), ".options.extract", "set reward.options.extract"),
        (Task("gsm8k", options={"reward": {"options": {"extract": "bxed"}}}), "", "did you mean 'boxed'?"),
        (Task("gsm8k", options={"kind": "exact"}), ".options.kind", "cannot be changed"),
        (Task("gsm8k", path="nowhere/x.jsonl"), "", "nowhere/x.jsonl"),
        (Task("gsm8k", k=[1, 16], samples=8), ".k", "needs at least 16 samples, but samples = 8"),
        (Task("gsm8k", k=[]), ".k", "distinct whole numbers"),
        (Task("gsm8k", k=[1, 1]), ".k", "distinct whole numbers"),
        (Task("gsm8k", k=[0]), ".k", "distinct whole numbers"),
        (Task("gsm8k", samples=4, temperature=0.0), ".samples", "temperature 0 gives the same text"),
        (Task("gsm8k", temperature=-1.0), ".temperature", "must be 0 (greedy) or positive"),
        (Task("gsm8k", temperature=float("nan")), ".temperature", "must be 0 (greedy) or positive"),
        (Task("gsm8k", top_p=0.0), ".top_p", "must be in (0, 1]"),
        (Task("gsm8k", max_new_tokens=0), ".max_new_tokens", "at least 1"),
        (Task("gsm8k", batch_size=0), ".batch_size", "at least 1"),
        (Task("arithmetic", limit=0), ".limit", "at least 1"),
        (Task("arithmetic", options={"worked": True}), ".options.worked", "unknown key 'worked'"),
        (Task("worked_arithmetic", options={"worked": True}), ".options.worked", "unknown key 'worked'"),
        (Task("worked_arithmetic", options={"digits": 4}), "", "digits must be 1, 2 or 3, not 4"),
        (
            Task("worked_arithmetic", options={"generator": "sorting"}),
            "",
            "generator sorting: unknown option",
        ),
        (Task("worked_arithmetic", path="x.jsonl"), ".path", "reads no file"),
        (Task("worked_aritmetic"), ".name", "did you mean 'worked_arithmetic'?"),
    ],
)
def test_what_a_recipe_may_not_say(task, place, message):
    wrong = check_task(task, AT)
    assert [at for at, _ in wrong] == [AT + place]
    assert message in wrong[0][1] and AT + place in wrong[0][1]
    with pytest.raises(RequestError):
        load_task(task)


def test_all_that_is_wrong_is_said_at_once():
    wrong = check_task(Task("gsm8k", k=[4], top_p=2.0, options={"promt": ""}), AT)
    assert [at.removeprefix(AT) for at, _ in wrong] == [".options.promt", ".k", ".top_p"]


def test_what_a_recipe_may_say(rows):
    assert (
        check_task(gsm(rows, samples=16, k=[1, 4, 16], options={"prompt": "{{ question }}\nThink."}), AT)
        == []
    )
    assert check_task(Task("gsm8k"), AT) == []  # a hub id: nothing is downloaded to look
    assert (
        check_task(
            Task(
                "arithmetic",
                options={"generator": "addition", "digits": 1, "train_size": 40, "test_size": 41},
            ),
            AT,
        )
        == []
    )


def test_gsm8k_problems(data_dir, rows):
    problems = problems_of(gsm(data_dir / "gsm8k/test.jsonl"))
    assert len(problems) == 1319 and len({p.id for p in problems}) == 1319
    assert problems[0].answer == "18" and problems[0].messages[0]["content"].startswith("Janet")
    assert all(set(p.answer) <= set("0123456789,.-") for p in problems)
    asked = problems_of(gsm(rows, options={"prompt": "{{ question }}\nThink."}))
    assert [p.messages for p in asked][0] == [{"role": "user", "content": "One?\nThink."}]
    assert [p.answer for p in asked] == ["1", "2"]
    assert [p.id for p in problems_of(gsm(rows, limit=1))] == [asked[0].id]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Q", "answr": "1"}, "'answer' is undefined.*did you mean 'answr'"),
        ({"question": None, "answer": "1"}, "'question' is None"),
        ({"question": "Q", "answer": [7]}, r"'\[7\]' is not a number"),
        ({"question": "Q", "answer": "about ten"}, "'about ten' is no"),
    ],
)
def test_a_broken_row_is_named(tmp_path, row, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"question": "Q", "answer": "1"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(RequestError, match=rf"bad\.jsonl:2.*{message}"):
        problems_of(gsm(path))


def test_arithmetic_problems_are_the_generators_test_rows():
    from posttrain.data.problems.catalogue import generate

    options = {"digits": 2, "train_size": 3000, "test_size": 50, "seed": 3}
    problems = problems_of(Task("arithmetic", options=options))
    assert len(problems) == 50 and all(p.prompt.endswith("=") for p in problems)
    for problem in problems:
        a, b = problem.prompt[:-1].split("*")
        assert problem.answer == f"{int(a) * int(b):04d}"
    trained = {row["prompt"] for row in generate("multiplication", options)}
    assert len(trained) == 3000 and not trained & {p.prompt for p in problems}


def test_worked_arithmetic_asks_the_generators_problems_without_leading_zeros():
    from posttrain.data.problems.catalogue import generate

    options = {"train_size": 30, "test_size": 50, "seed": 3}
    problems = problems_of(Task("worked_arithmetic", options=options))
    rows = generate("multiplication", options | {"split": "test"})
    assert [(p.id, p.prompt) for p in problems] == [(r["id"], r["prompt"]) for r in rows]
    assert [p.answer for p in problems] == [str(int(r["answer"])) for r in rows]
    sums = problems_of(Task("worked_arithmetic", options=options | {"generator": "addition"}))
    assert {p.id.count("+") for p in sums} == {1}


@pytest.mark.parametrize(
    ("reply", "value", "answer"),
    [
        ("360+48=408", 1.0, "408"),
        ("408", 1.0, "408"),
        ("1+1=408", 1.0, "408"),  # the outcome counts, not the chain
        ("360+48=0408", 1.0, "0408"),
        ("360+48=409", 0.0, "409"),
        ("360+48=40", 0.0, "40"),
        ("360+48=4080", 0.0, "4080"),
        ("360+48=-408", 0.0, "-408"),
        ("360+48=408+1", 0.0, "1"),
        ("408+1", 0.0, "1"),
        ("360+48=", 0.0, "48"),  # unfinished
        ("360+48", 0.0, "48"),  # unsolved: its value is the answer, but it says none
        ("12*34", 0.0, "34"),  # the problem copied
        ("408 408 40", 0.0, "40"),
        ("==", 0.0, None),
        ("", 0.0, None),
    ],
)
def test_what_worked_arithmetic_judges_right(reply, value, answer):
    task = load_task(Task("worked_arithmetic"))
    problem = Problem(id="12*34", prompt="12*34=", answer="408")
    verdict = call(task.reward, reply, as_example(problem))
    assert (verdict.value, verdict.details.get("answer")) == (value, answer)
    assert verdict.status == ("scored" if answer else "unparseable")


def test_every_worked_completion_is_right_and_its_neighbours_are_wrong():
    """The generator and the task agree; the answer of one problem is not the answer of another."""
    from posttrain.data.problems.catalogue import generate

    task = load_task(Task("worked_arithmetic"))
    for name in ("multiplication", "addition"):
        rows = generate(name, {"worked": True, "split": "test", "test_size": 40})
        for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
            example = Example(prompt=row["prompt"], answer=row["answer"])
            assert call(task.reward, row["completion"], example).value == 1.0
            same = float(row["answer"] == other["answer"])
            assert call(task.reward, other["completion"], example).value == same


def test_the_settings_hash(rows, tmp_path):
    """Equal where the same is measured; other content, options or sampling are other settings."""
    base = task_hash(gsm(rows))
    copy = tmp_path / "copy.jsonl"
    copy.write_text(rows.read_text())
    assert (
        base == task_hash(gsm(copy)) == task_hash(gsm(rows, batch_size=3, samples=1, options={"about": "x"}))
    )
    others = [
        gsm(rows, seed=1),
        gsm(rows, samples=2),
        gsm(rows, temperature=0.5),
        gsm(rows, top_p=0.9),
        gsm(rows, max_new_tokens=5),
        gsm(rows, limit=1),
        gsm(rows, samples=2, k=[2]),
        gsm(rows, options={"reward": {"options": {"extract": "boxed"}}}),
        gsm(rows, options={"prompt": "{{ question }}!"}),
        gsm(rows, options={"prefill": "The"}),
        gsm(rows, options={"system": "Think."}),
        gsm(rows, options={"stop": ["#"]}),
        Task("arithmetic"),
        Task("arithmetic", options={"seed": 1}),
        Task("worked_arithmetic"),
        Task("worked_arithmetic", options={"generator": "addition"}),
    ]
    hashes = [base, *map(task_hash, others)]
    assert len(set(hashes)) == len(hashes)
    copy.write_text(rows.read_text().replace("One", "Two"))
    assert task_hash(gsm(copy)) != base
    full = {settings_hash(base, t, d) for t in ("a", "b") for d in ("torch.float32", "torch.bfloat16")}
    assert len(full) == 4 and all(name.startswith(base + "-") for name in full)
