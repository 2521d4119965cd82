"""Scoring a model on a task: from prompts to scores, on one rank and on several."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from posttrain.data.template import FOLDER, KNOWN_AS, load_template
from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import RequestError, WorkError
from posttrain.evaluate import score as module
from posttrain.evaluate import summary
from posttrain.evaluate.intervals import interval
from posttrain.evaluate.metrics import maj_at_k, pass_at_k, pass_at_n
from posttrain.evaluate.score import Share, Subject, score_task
from posttrain.evaluate.tasks.catalogue import metrics
from posttrain.evaluate.tasks.kinds import generate
from posttrain.evaluate.values import sampled_values
from posttrain.recipe.schema import Task
from posttrain.types import Verdict
from tests.tiny import build_model

SUMS = Task(
    "arithmetic",
    options={"generator": "addition", "digits": 1, "train_size": 41, "test_size": 40},
    batch_size=7,
)


def score(model, tokenizer, task, template="plain", **share):
    loaded = load_template(template, tokenizer)
    subject = Subject(model, tokenizer, loaded, checkpoint="step-000010", step=10, digest="d")
    return score_task(subject, task, Share(**share))


def over_ranks(model, tokenizer, task, world: int, template="plain"):
    """The result of each rank; ranks are threads that wait in `gather`, rows cross as JSON."""
    parts, results, barrier = [None] * world, [None] * world, threading.Barrier(world, timeout=60)

    def work(rank):
        def gather(rows):
            parts[rank] = json.dumps(rows)
            barrier.wait()
            return [json.loads(part) for part in parts]

        results[rank] = score(model, tokenizer, task, template, rank=rank, world_size=world, gather=gather)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def question_file(tmp_path):
    """Nine questions of different lengths, answers 0..8."""
    path = tmp_path / "questions.jsonl"
    rows = [{"question": "1+" * i + "1=", "answer": f"#### {i}"} for i in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sampled(path, **fields) -> Task:
    fields = {"samples": 6, "k": [1, 2, 6], "max_new_tokens": 6, "batch_size": 12} | fields
    return Task("gsm8k", path=str(path), **fields)


def test_exact_scores_are_those_of_the_samples(digits, llama):
    result = score(llama, digits, SUMS)
    by_metric = {s.metric: s for s in result.scores}
    assert list(by_metric) == metrics(SUMS)
    logp = np.array([row["logp"] for row in result.samples])
    for n in (1, 16, 4096):
        assert by_metric[f"pass@{n}"].value == pytest.approx(pass_at_n(logp, n).mean())
    assert by_metric["nll"].value == pytest.approx(-logp.mean())
    assert by_metric["accuracy"].value == np.mean([row["correct"] for row in result.samples])
    for s in result.scores:
        assert (s.checkpoint, s.step, s.task, s.digest, s.n) == ("step-000010", 10, "arithmetic", "d", 40)
        assert s.low <= s.value <= s.high and s.settings == result.scores[0].settings != ""
    first = result.samples[0]
    assert first["prompt"] == first["id"] + "=" and "index" not in first and len(result.samples) == 40


def test_what_is_no_share_gets_students_interval(digits, llama, monkeypatch):
    asked = []

    def noted(values, groups, method):
        asked.append(method)
        return interval(values, groups, method)

    monkeypatch.setattr(summary, "interval", noted)
    scores = score(llama, digits, SUMS).scores
    assert {s.metric for s, m in zip(scores, asked, strict=True) if m == "t"} == {"nll"}


def test_scores_have_the_settings_of_versions_whose_template_knew_no_tools(digits, llama):
    earlier = FOLDER / KNOWN_AS / "plain.jinja"
    now, before = (score(llama, digits, SUMS, name).scores[0].settings for name in ("plain", str(earlier)))
    assert now == before


def test_controls_are_the_scores_of_tasks_at_their_temperatures(digits, llama):
    """One pass at three temperatures equals three passes, under the settings of each; the samples are those
    of the first, with the log-probabilities of all."""
    both = score(llama, digits, replace(SUMS, temperatures=[0.5, 2]))
    for at in (1.0, 0.5, 2.0):
        alone = score(llama, digits, replace(SUMS, temperature=at))
        mine = [s for s in both.scores if s.settings == alone.scores[0].settings]
        assert [(s.metric, s.value, s.low) for s in mine] == [
            (s.metric, s.value, s.low) for s in alone.scores
        ]
        assert {tuple(s.differs.items()) for s in mine} == {(() if at == 1 else (("temperature", at),))}
        assert [row["logp_at"][str(at)] for row in both.samples] == [row["logp"] for row in alone.samples]
    assert len({s.settings for s in both.scores}) == 3
    plain = score(llama, digits, SUMS)
    assert "logp_at" not in plain.samples[0] and not any(s.differs for s in plain.scores)
    assert {s.settings for s in plain.scores} == {both.scores[0].settings}, "controls change no settings"


def test_the_exact_answer_includes_its_end(digits, llama):
    """log p of `7+8=` -> `15<eos>` by hand, one forward of all tokens."""
    row = score(llama, digits, SUMS).samples[3]
    prompt = digits(row["prompt"], add_special_tokens=False)["input_ids"]
    answer = [*digits(row["answer"], add_special_tokens=False)["input_ids"], digits.eos_token_id]
    with torch.no_grad():
        logits = llama(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()
    assert row["logp"] == pytest.approx(float(expected), abs=1e-4)


def test_an_exact_answer_is_what_training_shows_the_model(digits, llama):
    """Prompt and answer tokens are those of the training row, in a chat template as in plain text."""
    from posttrain.evaluate.tasks.catalogue import load_task

    tokenizer = load_tokenizer("builtin:bytes")
    problem = load_task(SUMS).problems()[0]
    for name, end in (("plain", "<eos>"), ("chatml", "<|im_end|>")):
        template = load_template(name, tokenizer)
        prompt, answer = module._answer_tokens(problem, tokenizer, template, "arithmetic")
        assert tokenizer.decode(answer) == problem.answer + end
        assert tokenizer.decode(prompt) == module._prompt(problem, template, "arithmetic")
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")


def test_what_greedy_decoding_writes_keeps_special_tokens():
    """Without the end of an answer, be it one token or several, or the end token that came too early."""
    tokenizer = load_tokenizer("builtin:bytes")

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    stops = ids("<eos><|im_end|>")

    def greedy(answer, predicted, end="<|im_end|>"):
        return module._greedy(ids(answer), ids(predicted), tokenizer, stops, end)

    right = "<|im_start|>7<|im_end|>"
    assert greedy(right, right) == "<|im_start|>7"
    assert greedy(right, "<|im_start|>8<|im_end|>") == "<|im_start|>8…"
    assert greedy(right, "<|im_start|><|im_end|>1") == greedy(right, "<|im_start|><eos>1") == "<|im_start|>"
    assert greedy("7\n\n", "7\n\n", end="\n\n") == "7"


def test_a_model_that_knows_the_answers_is_right(digits):
    """One sum, before and after a moment of training on it."""
    model = build_model("llama", len(digits), seed=0)
    task = Task("arithmetic", options=SUMS.options, limit=1)
    before = score(model, digits, task)
    row = before.samples[0]
    ids = digits(row["prompt"] + row["answer"], add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*ids, digits.eos_token_id]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = score(model, digits, task)
    values = {s.metric: s.value for s in after.scores}
    assert before.samples[0]["greedy"] != row["answer"] == after.samples[0]["greedy"]
    assert values["accuracy"] == 1.0 and values["pass@1"] > 0.9 and values["pass@1"] <= values["pass@2"]
    assert before.samples[0]["greedy"].endswith("…")  # known only up to the first wrong token


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3, 8])
def test_any_number_of_ranks_gives_the_same_bits(digits, llama, question_file, world):
    for task in (SUMS, sampled(question_file), sampled(question_file, samples=1, k=[1], temperature=0.0)):
        alone = score(llama, digits, task)
        assert len(alone.samples) > world  # every rank has work
        for result in over_ranks(llama, digits, task, world):
            assert result.scores == alone.scores
            assert result.samples == alone.samples


def test_every_problem_has_its_own_samples_in_any_batching(digits, llama, tmp_path):
    """The same question four times, in one batch or in four: four different sets of samples, the same
    four."""
    path = tmp_path / "same.jsonl"
    path.write_text('{"question": "1+1=", "answer": "2"}\n' * 4)
    found = []
    for batch_size in (24, 6, 5):
        rows = score(llama, digits, sampled(path, batch_size=batch_size)).samples
        found.append([[c["text"] for c in row["completions"]] for row in rows])
    assert found[0] == found[1] == found[2]
    assert len(set(map(tuple, found[0]))) == 4


def test_sampled_scores_are_those_of_the_completions(digits, llama, question_file):
    task = sampled(question_file)
    result = score(llama, digits, task)
    by_metric = {s.metric: s.value for s in result.scores}
    assert list(by_metric) == metrics(task)
    rows = [row["completions"] for row in result.samples]
    assert [len(row) for row in rows] == [6] * 9
    right = [sum(c["value"] == 1.0 for c in row) for row in rows]
    assert 0 < sum(right) < 54
    assert by_metric["pass@1"] == pytest.approx(sum(right) / 54)
    assert by_metric["pass@2"] == pytest.approx(pass_at_k(right, 6, 2).mean())
    assert by_metric["pass@6"] == pytest.approx(np.mean([c > 0 for c in right]))
    everything = [c for row in rows for c in row]
    assert by_metric["truncated"] == pytest.approx(sum(c["finish"] == "length" for c in everything) / 54)
    assert by_metric["parsed"] == pytest.approx(sum(c["status"] == "scored" for c in everything) / 54)
    assert by_metric["tokens_mean"] == pytest.approx(sum(c["tokens"] for c in everything) / 54)
    assert {c["finish"] for c in everything} == {"stop", "length"}
    assert {c["status"] for c in everything} == {"scored", "unparseable"}


def completions(*verdicts):
    """(value, answer) pairs as a sample row's completions; value None is a failed checker."""
    status = {None: "error"}
    return {
        "completions": [
            {
                "value": v,
                "read": a,
                "status": status.get(v, "scored" if a else "unparseable"),
                "reason": "why",
                "finish": "stop",
                "tokens": 3,
            }
            for v, a in verdicts
        ]
    }


def test_votes_and_failed_checks_by_hand():
    """Row 1: 5 5 7 and one without an answer. Row 2: one judged of four, so it has no pass@2."""
    rows = [
        completions((1.0, "5"), (1.0, "5"), (0.0, "7"), (0.0, None)),
        completions((0.0, "1"), (None, None), (None, None), (None, None)),
    ]
    values = sampled_values(rows, Task("gsm8k", samples=4, k=[1, 2]))
    assert values["pass@1"] == [0.5, 0.0]
    assert values["pass@2"] == [pytest.approx(1 - 1 / 6), None]
    assert values["maj@2"] == [pytest.approx(maj_at_k(2, [1], 1, 2)), None]
    assert values["parsed"] == [0.75, 1.0]
    with pytest.raises(WorkError, match=r"failed on every completion \(why\)"):
        sampled_values([completions((None, None))], Task("gsm8k"))


def test_a_failed_check_is_not_a_wrong_answer(digits, llama, question_file, monkeypatch):
    def half(reward, completions, problems):
        assert reward.name == "math" and len(completions) == len(problems)
        right, lost = Verdict(1.0), Verdict(None, "error", "lost")
        return [right if int(problem.answer) < 4 else lost for problem in problems]

    monkeypatch.setattr(generate, "score_batch", half)
    by_metric = {s.metric: s for s in score(llama, digits, sampled(question_file)).scores}
    assert (by_metric["pass@1"].value, by_metric["pass@1"].n) == (1.0, 4)
    assert by_metric["truncated"].n == 9


def test_greedy_decoding_and_repeatability(digits, llama, question_file):
    task = sampled(question_file, samples=1, k=[1], temperature=0.0)
    assert score(llama, digits, task) == score(llama, digits, task)
    random = sampled(question_file)
    again = score(llama, digits, random)
    assert score(llama, digits, random) == again
    other = score(llama, digits, sampled(question_file, seed=1))
    assert other.samples != again.samples and other.scores[0].settings != again.scores[0].settings


def test_generation_stops_at_the_templates_end_of_turn(question_file):
    tokenizer = load_tokenizer("builtin:bytes")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = build_model("llama", len(tokenizer), positions=128)
    model.lm_head = torch.nn.Linear(32, len(tokenizer))
    torch.nn.init.zeros_(model.lm_head.weight)
    torch.nn.init.zeros_(model.lm_head.bias)
    model.lm_head.bias.data[end] = 50.0
    result = score(model, tokenizer, sampled(question_file, max_new_tokens=4), "chatml")
    drawn = [c for row in result.samples for c in row["completions"]]
    assert {(c["text"], c["finish"], c["tokens"]) for c in drawn} == {("", "stop", 1)}
    assert result.samples[0]["prompt"] == "<|im_start|>user\n1=<|im_end|>\n<|im_start|>assistant\n"


def test_no_random_number_of_the_training_is_used(digits, llama, question_file):
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    score(llama, digits, sampled(question_file))
    score(llama, digits, SUMS)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]


def test_requests_that_cannot_be_met(digits, llama, question_file):
    with pytest.raises(RequestError, match="needs at least 8 samples"):
        score(llama, digits, sampled(question_file, k=[8]))
    with pytest.raises(RequestError, match="unknown_text"):
        bad = Task("arithmetic", options=SUMS.options)
        score(llama, load_tokenizer_without(digits, "+"), bad)
    with pytest.raises(WorkError, match="do not cover each problem"):
        score(llama, digits, SUMS, rank=0, world_size=2)  # and nobody to gather from


def load_tokenizer_without(digits, character: str):
    from tokenizers import Tokenizer

    spec = json.loads(digits.backend_tokenizer.to_str())
    spec["model"]["vocab"]["@"] = spec["model"]["vocab"].pop(character)
    copy = load_tokenizer("builtin:digits")
    copy._tokenizer = Tokenizer.from_str(json.dumps(spec))
    return copy


def test_values_are_json(digits, llama, question_file):
    for task in (SUMS, sampled(question_file)):
        result = score(llama, digits, task)
        json.dumps([s.to_dict() for s in result.scores] + result.samples, allow_nan=False)
        assert all(math.isfinite(s.value) for s in result.scores)
