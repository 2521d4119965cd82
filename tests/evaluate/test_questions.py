"""Tasks on questions of a file: MATH judged in any notation, direct answers by their exact probability."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain.data.shapes.prompts import to_prompt
from posttrain.data.template import load_template
from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import RequestError
from posttrain.evaluate.score import Subject, score_task
from posttrain.evaluate.settings import _content, problems_of, task_hash
from posttrain.evaluate.tasks.catalogue import check_task, load_task, metrics
from posttrain.recipe.schema import Columns, Source, Task
from posttrain.rewards.engine.call import call
from posttrain.rewards.registry import as_example
from tests.calling import ROWS as CALLING
from tests.calling import TEXTS
from tests.tiny import build_model

ROWS = [
    {"problem": "Half of 1?", "answer": "\\frac12", "subject": "Algebra", "level": 1},
    {"problem": "1 + 1? ", "answer": "2", "subject": "Algebra", "level": 1},
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def test_problems_and_verdicts(file):
    task = Task("math", path=file, samples=4, k=[1, 4], options={"prompt": "{{ problem | trim }}\nBox it."})
    assert check_task(task, "x") == [] and metrics(task)[:2] == ["pass@1", "pass@4"]
    half, two = problems_of(task)
    assert half.messages == [{"role": "user", "content": "Half of 1?\nBox it."}]
    assert (half.id, half.answer, two.messages[0]["content"]) == ("00000", "\\frac12", "1 + 1?\nBox it.")
    reward = load_task(task).reward
    for text, value in (("so $\\boxed{0.5}$", 1.0), ("\\boxed{2}", 0.0), ("", 0.0)):
        assert call(reward, text, as_example(half)).value == value


def test_the_probability_of_a_direct_answer(file):
    """pass@4 is the mean of 1 - (1 - p)^4 over p of the answer and its end, as the model gives them."""
    tokenizer = load_tokenizer("builtin:bytes")
    template = load_template("tulu", tokenizer)
    model = build_model("llama", len(tokenizer), positions=128)
    task = Task("direct_answers", path=file)
    result = score_task(Subject(model, tokenizer, template, "c", 0, "d"), task)
    found = {score.metric: score.value for score in result.scores}
    p = [math.exp(row["logp"]) for row in result.samples]
    assert found["pass@4"] == pytest.approx(sum(1 - (1 - one) ** 4 for one in p) / 2, rel=1e-6)
    assert result.samples[0]["prompt"] == "<|user|>\nHalf of 1?\n<|assistant|>\n"
    assert result.samples[0]["answer"] == "\\frac12"
    asked = tokenizer(result.samples[0]["prompt"])["input_ids"]
    ids = torch.tensor([asked + tokenizer("\\frac12")["input_ids"] + [tokenizer.eos_token_id]])
    with torch.no_grad():
        log_probs = model(ids).logits[0, len(asked) - 1 : -1].log_softmax(-1)
    wanted = log_probs.gather(1, ids[0, len(asked) :, None]).sum().item()
    assert result.samples[0]["logp"] == pytest.approx(wanted, rel=1e-5)


def test_tools_and_template_options_of_a_problem(tmp_path, calling):
    """They are rendered, sampling stops at a call, and older scores of problems without keep their hash."""
    rows = [{"problem": row.get("prompt", "No 2."), "answer": "2"} | row for row in CALLING]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task("math", path=str(tmp_path / "rows.jsonl"), samples=20, max_new_tokens=40)
    tokenizer = load_tokenizer(str(calling / "model"))
    model = AutoModelForCausalLM.from_pretrained(calling / "model")
    subject = Subject(model, tokenizer, load_template("tokenizer", tokenizer), "c", 0, "d")
    result = score_task(subject, task)
    called = "<|im_start|>tools\nadd<|im_end|>\n<|im_start|>user\nNo 2.<|im_end|>\n<|im_start|>assistant\n"
    assert [row["prompt"] for row in result.samples] == [*TEXTS[:3], called + "[short]"]
    drawn = [each for row in result.samples for each in row["completions"]]
    assert len(drawn) == 80 and all("<|" not in each["text"] for each in drawn)
    assert max(each["tokens"] for each in drawn) < 40, "a token ends with .4: 40 others come once in 10^9"
    plain, other = problems_of(task)[0], problems_of(task)[1]
    assert {"tools", "template_options"}.isdisjoint(_content(plain))
    assert _content(other)["template_options"] == {"mode": "short"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0] | {"tools": "[{"}) + "\n")
    with pytest.raises(RequestError, match="rows.jsonl:1: bad_tools: .*not JSON"):
        problems_of(task)


TOOL = {"name": "add", "parameters": {}}
QUESTION = {"problem": "1 + 1?", "answer": "2"}


@pytest.mark.parametrize("task", ["math", "direct_answers", "gsm8k"])
@pytest.mark.parametrize(
    ("beside", "named", "ignored"),
    [
        ({"tools": [TOOL]}, None, False),
        ({"functions": [TOOL]}, None, False),
        ({"functions": json.dumps([TOOL]), "tools": None}, "functions", False),
        ({"api": [TOOL], "tools": "no tools"}, "api", False),
        ({"functions": ["def f(x): ..."]}, "", True),
        ({}, None, True),
    ],
)
def test_tools_are_read_as_of_a_row_that_is_sampled_from(tmp_path, task, beside, named, ignored):
    """Where a training row had its tools under another name, a question with them was asked without."""
    row = QUESTION | {"question": "1 + 1?"} | beside
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    options = {} if named is None else {"tools": named}
    (problem,) = problems_of(Task(task, path=str(tmp_path / "rows.jsonl"), options=options))
    own = Source("s", columns=Columns(tools=named or None), ignore=["tools", "functions"] if ignored else [])
    assert problem.tools == to_prompt(row, own, "s:1").tools
    assert problem.tools == ([] if ignored else [{"type": "function", "function": TOOL}])


def test_the_name_of_a_column_is_no_setting(tmp_path, file):
    """Older scores keep their hash, and the same tools under another name are the same task."""
    hashes = set()
    for name in ("tools", "api"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(QUESTION | {name: [TOOL]}) + "\n")
        hashes.add(task_hash(Task("math", path=str(tmp_path / f"{name}.jsonl"), options={"tools": name})))
    assert len(hashes) == 1 and task_hash(Task("math", path=file)) not in hashes


@pytest.mark.parametrize(
    ("beside", "options", "words"),
    [
        ({"functions": ["f"]}, {}, "column 'functions', tool 0: must be an object with name and parameters;"),
        ({"tools": "[{"}, {}, "bad_tools: .*is not JSON;"),
        ({"tols": [TOOL]}, {"tools": "tool"}, "has no column 'tool' .*did you mean 'tols'"),
    ],
)
def test_tools_that_cannot_be_read_name_the_option(tmp_path, beside, options, words):
    (tmp_path / "rows.jsonl").write_text(json.dumps(QUESTION | beside) + "\n")
    advice = "set options.tools of task math to the name of the column, or to '' where there is none$"
    with pytest.raises(RequestError, match=f"rows.jsonl:1: .*{words}.*{advice}"):
        problems_of(Task("math", path=str(tmp_path / "rows.jsonl"), options=options))


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        (
            {"question": "1?", "answer": "1"},
            {},
            "'problem' is missing; the row has answer, question .math.yaml: prompt",
        ),
        (
            {"problem": "1?", "answer": None},
            {},
            "is None; it must be text, a number or a list of these .math.yaml: answer",
        ),
        ({"problem": "1?", "answer": "\\boxed{"}, {}, "rows.jsonl:1: reward 'math'"),
    ],
)
def test_rows_that_do_not_fit(tmp_path, row, options, words):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(RequestError, match=words):
        problems_of(Task("math", path=str(tmp_path / "rows.jsonl"), options=options))


def test_what_a_task_refuses(file):
    ((at, words),) = check_task(Task("math", path="missing.jsonl"), "x")
    assert at == "x" and "missing.jsonl" in words
    ((at, words),) = check_task(Task("direct_answers", path=file, samples=4), "x")
    assert at == "x.samples" and "does not sample" in words
    ((at, words),) = check_task(Task("math", path=file, options={"promtp": "a"}), "x")
    assert "did you mean 'prompt'" in words


def test_math_500_can_be_asked(data_dir):
    problems = problems_of(Task("math", path=str(data_dir / "math" / "math500_test.jsonl")))
    assert len(problems) == 500 and len({p.id for p in problems}) == 500
