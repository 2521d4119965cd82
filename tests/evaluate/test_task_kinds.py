"""The kinds code, instructions, first_error and judge: what they ask, how they judge, what they measure."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from posttrain.data.template import load_template
from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import RequestError, WorkError
from posttrain.evaluate import score as module
from posttrain.evaluate.intervals import interval
from posttrain.evaluate.metrics import harmonic, weighted
from posttrain.evaluate.score import Subject, cut, score_task
from posttrain.evaluate.settings import problems_of
from posttrain.evaluate.tasks.catalogue import check_task, load_task, metrics
from posttrain.evaluate.tasks.kinds.code import fenced, spoiled
from posttrain.generation.base import Completion
from posttrain.recipe.schema import Task
from posttrain.report.score_tables import metric_text
from posttrain.rewards import score_batch
from posttrain.rewards.code.extract import blocks

FIXTURES = Path(__file__).parent / "fixtures"
STEPS = str(FIXTURES / "processbench.jsonl")
PROGRAMS = {
    "humaneval": (164, 16, ("HumanEval/32", "HumanEval/38", "HumanEval/50")),
    "humaneval_base": (164, 32, ("HumanEval/38",)),
    "humaneval_plus": (164, 40, ()),
    "mbpp": (500, 50, ("367",)),
    "mbpp_base": (500, 100, ()),
    "leetcode": (200, 20, ()),
}
"""Task -> its rows, every how many are tested in the usual run, and ids that are tested too: whose tests
call helpers of the prompt, or whose setup code needs a class of the program."""
TAIL = ["truncated", "parsed", "tokens_mean"]


@pytest.fixture
def scored(monkeypatch):
    """`scored(task, replies)`: the result, where the model's samples for problem i are `replies[i]`."""

    def run(task: Task, replies: list[list[str]]):
        class Scripted:
            def __init__(self, *_):
                pass

            def generate(self, prompts, n, sampling, seed, streams):
                return [
                    Completion(at, sample, text, [1] * len(text), "stop")
                    for at, problem in enumerate(streams)
                    for sample, text in enumerate(replies[problem])
                ]

        monkeypatch.setattr(module, "TransformersGenerator", Scripted)
        tokenizer = load_tokenizer("builtin:bytes")
        model, template = SimpleNamespace(dtype="float32"), load_template("tulu", tokenizer)
        return score_task(Subject(model, tokenizer, template, "c", 0, "d"), task)

    return run


def values(result) -> dict[str, float]:
    return {score.metric: score.value for score in result.scores}


def task_of(tmp_path, rows: list[dict], text: str, **fields) -> Task:
    """A task of its own on `rows`."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.yaml").write_text(f"about: own\nsource: {{file: rows.jsonl}}\nprompt: prompt\n{text}")
    return Task("own", file=str(tmp_path / "own.yaml"), **fields)


# ---- code --------------------------------------------------------------------------------------------------


def replies_judged(name: str, every: int, and_ids: tuple[str, ...] = ()):
    """(problems, those whose gold reply is not 1.0, those whose spoiled one is not 0), cut as samples are."""
    loaded, problems = load_task(Task(name)), problems_of(Task(name))
    picked = [p for i, p in enumerate(problems) if i % every == 0 or p.id in and_ids]
    wrong = []
    for write, wanted in ((loaded.gold_reply, 1.0), (loaded.spoiled_reply, 0.0)):
        written = [Completion(0, 0, write(problem), [], "stop") for problem in picked]
        for one in written:
            cut(one, loaded.stop)
        texts = [loaded.judged(one.text, problem) for one, problem in zip(written, picked, strict=True)]
        verdicts = score_batch(loaded.reward, texts, picked)
        assert {v.status for v in verdicts} == {"scored"}
        wrong.append({p.id: v.reason for p, v in zip(picked, verdicts, strict=True) if v.value != wanted})
    return len(problems), *wrong


@pytest.mark.parametrize("name", PROGRAMS)
def test_reference_programs_pass_and_spoiled_ones_do_not(name, data_dir):
    rows, every, and_ids = PROGRAMS[name]
    assert replies_judged(name, every, and_ids) == (rows, {}, {})


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", PROGRAMS)
def test_all_reference_programs_pass_and_all_spoiled_ones_do_not(name, data_dir):
    assert replies_judged(name, 1) == (PROGRAMS[name][0], {}, {})


def test_a_reply_needs_no_helpers_of_the_prompt(data_dir):
    """HumanEval/38: the prompt defines encode_cyclic, which the tests call and the reply leaves out."""
    loaded = load_task(Task("humaneval"))
    problem = next(p for p in problems_of(Task("humaneval")) if p.id == "HumanEval/38")
    reply = "def decode_cyclic(s: str):\n    return encode_cyclic(encode_cyclic(s))\n```\nIt works."
    (verdict,) = score_batch(loaded.reward, [loaded.judged(reply, problem)], [problem])
    assert verdict.value == 1.0, verdict


def test_inputs_and_tolerance_of_humaneval_plus_are_read(data_dir):
    """100 base and 788 more inputs of HumanEval/32, whose reference is within 1e-4 of a root; not `test`."""
    problem = next(p for p in problems_of(Task("humaneval_plus")) if p.id == "HumanEval/32")
    found = {k: problem.extra[k] for k in ("test", "atol", "entry_point")}
    assert found == {"test": None, "atol": 1e-4, "entry_point": "find_zero"}
    assert (len(problem.extra["base_input"]), len(problem.extra["plus_input"])) == (100, 788)


def test_the_sampler_of_humaneval_and_no_votes(data_dir):
    assert metrics(Task("humaneval")) == ["pass@1", "pass@10", *TAIL]
    assert metrics(Task("humaneval", samples=2, k=[2])) == ["pass@2", *TAIL]


def test_mbpp_is_asked_after_shots_that_are_not_scored(data_dir):
    problems = problems_of(Task("mbpp_base"))
    assert [p.id for p in problems] == [str(number) for number in range(11, 511)]
    text = problems[0].prompt
    assert text.count("[BEGIN]\n") == 4 and text.count("\n[DONE]\n\n") == 3 and text.endswith("[BEGIN]\n")
    assert "[BEGIN]\nR = 3\nC = 3\n" in text and "\r" not in text
    assert text.startswith("Write a function to find the minimum cost path")


def test_text_that_is_continued_is_one_program(tmp_path, scored):
    """The prompt and the completion up to a stop string; fences inside it are text."""
    row = {"prompt": "def double(x):\n", "tests": ["assert double(4) == 8"], "code": "    return 2 * x"}
    text = (
        'kind: code\nchat: false\nanswer: code\nreply: "{{ prompt }}{{ completion }}"\nstop: ["\\nprint("]\n'
    )
    fence = '    """~~~\n```python\n"""\n    return 2 * x\nprint(1 / 0)'
    task = task_of(tmp_path, [row], text, samples=4, k=[1, 4])
    result = scored(task, [["    return x + x", fence, "    return x", "return 2 * x"]])
    assert [c["value"] for c in result.samples[0]["completions"]] == [1.0, 1.0, 0.0, 0.0]
    assert values(result)["pass@1"] == 0.5 and "maj@4" not in values(result)


@pytest.mark.parametrize("program", ["x = 1", "```\nx\n```", "'''\n~~~\n~~~~~\n'''", ""])
def test_a_program_in_a_fence_is_one_block(program):
    assert blocks(fenced(program)) == ([program] if program else [])


def test_spoiled_programs():
    program = "class A:\n    def f(self):\n        return 1\n\ndef g(x):\n    return x"
    assert (
        spoiled(program) == "class A:\n\n    def f(self):\n        return None\n\ndef g(x):\n    return None"
    )
    assert spoiled("    return 1") == "    return None\n" and spoiled("f = lambda: 1") == "pass"


# ---- instructions ------------------------------------------------------------------------------------------

ASKED = [
    {"prompt": "One.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"num_words": None}]},
    {
        "prompt": "Two.",
        "instruction_id_list": [
            "punctuation:no_comma",
            "startend:quotation",
            "detectable_format:title",
        ],
        "kwargs": [{}, {"relation": None}, {}],
    },
]
TEXT = "kind: instructions\nanswer: prompt\n"


def test_instructions_strict_and_loose_by_prompt_and_by_instruction(tmp_path, scored):
    """By hand. Of problem 2 the first reply has a title and no comma; the second only a title, but all three
    without its first line."""
    task = task_of(tmp_path, ASKED, TEXT, samples=2, k=[1, 2])
    result = scored(task, [["Yes.", ""], ["<<a>> b", 'Sure, here:\n"<<a>> b"']])
    assert metrics(task) == [
        *("pass@1", "pass@2", "prompt_strict", "prompt_loose", "inst_strict", "inst_loose"),
        *TAIL,
    ]
    first, second = (row["completions"] for row in result.samples)
    assert [c["strict"] for c in first] == [[True], [False]]
    assert [c["strict"] for c in second] == [[True, False, True], [False, False, True]]
    assert [c["loose"] for c in second] == [[True, False, True], [True, True, True]]
    found = values(result)
    assert found["pass@1"] == found["prompt_strict"] == 0.25 and found["prompt_loose"] == 0.5
    assert found["inst_strict"] == pytest.approx((0.5 * 1 + 3 / 6 * 3) / 4)
    assert found["inst_loose"] == pytest.approx((0.5 * 1 + 5 / 6 * 3) / 4)


def test_nulls_among_the_arguments_change_no_verdict(tmp_path, data_dir):
    """As at the hub: every row has all arguments, those of other instructions as null."""
    rows = [json.loads(line) for line in (data_dir / "ifeval/input_data.jsonl").open()]
    names = sorted({name for row in rows for given in row["kwargs"] for name in given})
    assert len(rows) == 541 and len(names) > 10
    sets = []
    for nulls in ({}, dict.fromkeys(names)):
        picked = [row | {"kwargs": [nulls | given for given in row["kwargs"]]} for row in rows[::9]]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in picked))
        task = Task("ifeval", path=str(tmp_path / "rows.jsonl"))
        sets.append(problems_of(task))
    problems, with_nulls = sets
    replies = [f"{p.messages[0]['content']}\n\n* one\n* two\n<<x>> [y]" for p in problems]
    reward = load_task(task).reward
    verdicts = score_batch(reward, replies, problems)
    assert 0.05 < np.mean([v.value for v in verdicts]) < 0.5
    again = score_batch(reward, replies, with_nulls)
    assert [(v.value, v.details) for v in again] == [(v.value, v.details) for v in verdicts]


def test_a_question_to_repeat_may_be_left_out_of_the_row(tmp_path, scored):
    row = {"prompt": "Say it.", "instruction_id_list": ["combination:repeat_prompt"], "kwargs": [{}]}
    result = scored(task_of(tmp_path, [row], TEXT), [["Say it. Done."]])
    assert values(result)["inst_strict"] == 1.0


def test_what_an_instructions_task_refuses(tmp_path):
    task = task_of(tmp_path, ASKED, TEXT + "reward: {name: instructions, options: {grade: fraction}}\n")
    assert "without strictness and grade" in check_task(task, "x")[0][1]
    rows = [{"prompt": "p", "answer": json.dumps({"func_name": "validate_lowercase"})}]
    with pytest.raises(RequestError, match=r"rows.jsonl:1: .*needs column 'instruction_id_list'"):
        problems_of(task_of(tmp_path, rows, "kind: instructions\nanswer: answer\n"))


# ---- the first wrong step ----------------------------------------------------------------------------------


def test_processbench_asks_for_the_first_wrong_paragraph():
    problems = problems_of(Task("processbench", path=STEPS))
    assert [(p.id, p.answer) for p in problems][:2] == [("gsm8k-1", "-1"), ("gsm8k-2", "0")]
    text = problems[1].messages[0]["content"]
    assert "What do 7 tickets" in text and "<paragraph_0>\n7 tickets cost" in text
    assert "<paragraph_1>\nWith the drink that is 48 + 2 = 50 dollars.\n</paragraph_1>\n" in text
    assert "generator" not in text and "\\boxed{-1}" in text
    assert load_task(Task("processbench")).spec.source.revision.startswith("3bdcd53")


def test_f1_of_the_first_wrong_step(scored):
    """By hand: acc_err = (1/2 + 1 + 0) / 3, acc_cor = (1 + 0) / 2; a box with words is wrong, as is none."""
    replies = [
        ["So \\boxed{-1}.", "\\boxed{ -1 }"],
        ["\\boxed{0}", "\\boxed{1}"],
        ["Not \\boxed{0} but \\boxed{1}", "\\boxed{1}"],
        ["paragraph 1", "\\boxed{none}"],
        ["\\boxed{2}", "\\boxed{-1}"],
    ]
    result = scored(Task("processbench", path=STEPS, samples=2, k=[1, 2]), replies)
    found = values(result)
    assert (found["acc_err"], found["acc_cor"]) == (0.5, 0.5) and found["f1"] == pytest.approx(0.5)
    assert (found["pass@1"], found["pass@2"], found["parsed"]) == (0.5, 0.6, 0.8)
    assert found["maj@2"] == pytest.approx((1 + 0.5 + 1 + 0 + 0) / 5)
    (score,) = (s for s in result.scores if s.metric == "acc_err")
    assert score.n == 3
    replies[3] = ["\\boxed{-1}", "\\boxed{-1}"]
    assert values(scored(Task("processbench", path=STEPS, samples=2, k=[1]), replies))["f1"] == pytest.approx(
        2 / 3
    )


def test_gold_and_spoiled_indices():
    task = Task("processbench", path=STEPS)
    loaded, problems = load_task(task), problems_of(task)
    for write, wanted in ((loaded.gold_reply, 1.0), (loaded.spoiled_reply, 0.0)):
        verdicts = score_batch(loaded.reward, [write(p) for p in problems], problems)
        assert [v.value for v in verdicts] == [wanted] * 5


def test_without_right_solutions_there_is_no_f1(scored, tmp_path):
    rows = [line for line in Path(STEPS).read_text().splitlines() if '"label":-1' not in line]
    (tmp_path / "wrong.jsonl").write_text("\n".join(rows))
    result = scored(Task("processbench", path=str(tmp_path / "wrong.jsonl")), [["\\boxed{0}"]] * 3)
    assert values(result)["acc_err"] == pytest.approx(1 / 3) and not {"f1", "acc_cor"} & {*values(result)}


@pytest.mark.parametrize(("label", "why"), [(2, "'2'; it must be a number from 0 to 1"), (0.5, "'0.5'")])
def test_a_label_beyond_the_steps_is_named(tmp_path, label, why):
    row = {"id": "a", "problem": "p", "steps": ["s", "t"], "label": label}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(RequestError, match=r"rows.jsonl:1: the first wrong step is " + why):
        problems_of(Task("processbench", path=str(tmp_path / "rows.jsonl")))


def test_the_reward_of_the_first_wrong_step_is_its_own():
    task = Task("processbench", path=STEPS, options={"reward": {"name": "math"}})
    assert "reward cannot be set" in check_task(task, "x")[0][1]


# ---- a judge -----------------------------------------------------------------------------------------------

OPEN = "kind: judge\nreward: {name: judge, options: {url: URL, model: m, cache: '', retries: 0}}\n"
QUESTIONS = [{"prompt": "Name a colour."}, {"prompt": "Name a city."}]


def judged_task(tmp_path, url: str, **fields) -> Task:
    return task_of(tmp_path, QUESTIONS, OPEN.replace("URL", url), **fields)


def test_the_mean_score_of_a_judge(tmp_path, scored, server):
    server.reply = lambda user, number: json.dumps({"score": 9 if "Blue" in user else 4})
    task = judged_task(tmp_path, server.url, samples=2)
    result = scored(task, [["Blue.", "Blue!"], ["Bonn.", "Blue."]])
    assert metrics(task) == ["score", *TAIL]
    assert values(result)["score"] == pytest.approx((0.9 + 0.65) / 2)
    assert all("REFERENCE" not in asked["messages"][1]["content"] for asked in server.asked)


def test_rubbish_of_a_judge_is_left_out_and_a_judge_that_is_down_is_no_score(tmp_path, scored, server):
    """Rubbish even to the control question: an error, whose completion is left out; it is not a 0."""
    server.reply = lambda user, number: '{"score": 8}' if "colour" in user else "hm"
    result = scored(judged_task(tmp_path, server.url), [["Blue."], ["Bonn."]])
    (score,) = (s for s in result.scores if s.metric == "score")
    assert (score.value, score.n) == (0.8, 1)
    assert [row["completions"][0]["status"] for row in result.samples] == ["scored", "error"]
    task = judged_task(tmp_path, "http://127.0.0.1:9/v1")
    with pytest.raises(WorkError, match="the check failed on every completion .*127.0.0.1"):
        scored(task, [["Blue."], ["Bonn."]])


def test_a_judge_without_its_endpoint_and_k_are_refused(tmp_path):
    task = task_of(tmp_path, QUESTIONS, "kind: judge\n")
    assert "url" in check_task(task, "x")[0][1]
    task = judged_task(tmp_path, "http://host/v1", samples=4, k=[1, 4])
    assert "k = [1, 4] has no effect" in check_task(task, "x")[0][1]


def test_shares_are_printed_as_shares():
    every = {m for name in ("ifeval", "processbench") for m in metrics(Task(name))} | {"score"}
    texts = {metric_text(metric, 0.5) for metric in every - {"tokens_mean"}}
    assert texts == {".500"} and metric_text("tokens_mean", 0.5) == "0.5"


# ---- values whose mean is no plain mean --------------------------------------------------------------------


def test_weighted_and_harmonic_values_have_the_mean_and_the_spread_of_the_metric():
    """Against the metric over 4,000 resamples of the problems."""
    random = np.random.default_rng(0)
    sizes = random.integers(1, 4, 300)
    first = random.random(300) < 0.3
    v = random.random(300) ** (1 / sizes) * np.where(first, 0.4, 1.0)

    def f1(at):
        a, b = v[at][first[at]].mean(), v[at][~first[at]].mean()
        return 2 * a * b / (a + b)

    cases = ((weighted(v, sizes), lambda at: v[at] @ sizes[at] / sizes[at].sum()), (harmonic(v, first), f1))
    for found, metric in cases:
        assert found.mean() == pytest.approx(metric(np.arange(300)))
        drawn = [metric(random.integers(0, 300, 300)) for _ in range(4000)]
        assert found.std() / 300**0.5 == pytest.approx(np.std(drawn), rel=0.05)


def test_a_share_stays_within_0_and_1():
    values = weighted([1.0] * 19 + [0.0], [1] * 19 + [9])
    found = interval(values, method="share")
    assert values.max() < 1 and values.min() < 0 and found.value == pytest.approx(19 / 28)
    assert 0 < found.low < found.value < found.high < 1
    assert interval([1.0] * 20, method="share").high == 1.0 and interval([1.0] * 20, method="share").low < 0.9
    with pytest.raises(ValueError, match="between 0 and 1"):
        interval([2.0] * 20, method="share")
    assert harmonic([0, 0, 0], [True, False, False]).tolist() == [0, 0, 0]
