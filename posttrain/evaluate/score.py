"""One model on one task: prompts, generation or exact probabilities, verdicts, scores with intervals.

Ranks share the work in complete batches, which are formed over all problems, and every problem has its own
random stream. So the result is the same, bit for bit, for any number of ranks on the same hardware;
`batch_size` may change the last bits. Left out: loading checkpoints (`checkpoint.py`) and storing scores
(`rundir/scores.py`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.base.stop import check_stop
from posttrain.data.template import Template, known_as
from posttrain.data.tokenize import conversation, prompt_text, tokenize_example
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError, WorkError
from posttrain.evaluate import metrics
from posttrain.evaluate.exact import answer_log_probs
from posttrain.evaluate.intervals import interval
from posttrain.evaluate.settings import problems_of, settings_hash, task_hash
from posttrain.evaluate.tasks.base import EvalTask
from posttrain.evaluate.tasks.catalogue import ATTEMPTS, load_task
from posttrain.generation.base import Completion, Sampling, completion_text, end_tokens
from posttrain.generation.local import TransformersGenerator, batches
from posttrain.recipe import schema
from posttrain.rewards import score_batch
from posttrain.types import Example, Problem, Score, Verdict

log = logging.getLogger(__name__)
Row = dict[str, Any]
"""A line of samples/<checkpoint>/<task>.jsonl."""
Plan = tuple[list[int], Callable[[list[int]], list[Row]]]
"""Tokens of each prompt; and the function that answers and judges a batch of problems, given their
positions."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is scored: a model, its tokenizer and chat template, and the checkpoint that the scores are stored
    under."""

    model: Any
    tokenizer: Any
    template: Template
    checkpoint: str
    step: int
    digest: str


@dataclass(frozen=True, slots=True)
class Share:
    """The part of the work that falls to this rank; `gather` returns the rows of all ranks, in rank order."""

    rank: int = 0
    world_size: int = 1
    gather: Callable[[list[Row]], list[list[Row]]] = lambda rows: [rows]


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The scores of a checkpoint on a task, and one row per problem, in the order of the problems."""

    scores: list[Score]
    samples: list[Row]


def score_task(subject: Subject, task: schema.Task, share: Share | None = None) -> TaskResult:
    """Scores `subject` on `task`. Prompts are rendered with its template, as in training.

    With several ranks each of them calls this with its `share`, whose `gather` is called once, with rows that
    JSON can hold; every rank returns the same result. No global random number is consumed.

    Raises:
        RequestError: the task, or one of its problems, does not fit this model.
        WorkError: the model produces NaN, the ranks do not fit together, or the check failed on every
            completion.
        Stopped: this process was asked to stop.
    """
    loaded, problems = load_task(task), problems_of(task)
    if not problems:
        raise RequestError(f"task {task.name} has no problems")
    rows = _rows(subject, task, loaded, problems, share or Share())
    template = known_as(subject.template.source)
    settings = settings_hash(task_hash(task, problems), template, str(subject.model.dtype))
    values = _exact_values(rows) if loaded.kind == "exact" else _sampled_values(rows, task)
    scores = []
    for metric, found in values.items():
        known = [i for i, value in enumerate(found) if value is not None]
        if not known:
            log.warning("%s on %s: no problem has a value of %s", subject.checkpoint, task.name, metric)
            continue
        method = "t" if metric in metrics.UNBOUNDED else "auto"
        mean = interval([found[i] for i in known], [problems[i].group for i in known], method)
        scores.append(
            Score(
                checkpoint=subject.checkpoint,
                step=subject.step,
                task=task.name,
                metric=metric,
                value=mean.value,
                n=mean.n,
                low=mean.low,
                high=mean.high,
                settings=settings,
                digest=subject.digest,
            )
        )
    return TaskResult(scores, rows)


def _rows(
    subject: Subject, task: schema.Task, loaded: EvalTask, problems: list[Problem], share: Share
) -> list[Row]:
    """The rows of all problems, in their order: this rank's batches are computed, the others gathered."""
    asked = [
        {
            "index": index,
            "id": problem.id,
            "group": problem.group,
            "prompt": _prompt(problem, subject.template, task.name),
            "answer": problem.answer,
        }
        for index, problem in enumerate(problems)
    ]
    plan = _exact if loaded.kind == "exact" else _sampled
    lengths, work = plan(subject, task, loaded, problems, asked)
    shares = batches(lengths, task.samples, task.batch_size)  # exact tasks take one sample
    mine: list[Row] = []
    for batch in shares[share.rank :: share.world_size]:
        check_stop()
        mine += work(batch)
    rows = sorted((row for part in share.gather(mine) for row in part), key=lambda row: row["index"])
    if [row.pop("index") for row in rows] != list(range(len(problems))):
        raise WorkError(f"task {task.name}: the rows of all ranks do not cover each problem exactly once")
    return rows


def _prompt(problem: Problem, template: Template, task: str) -> str:
    """The text that the model continues. Raises `RequestError` where the template leaves out something."""
    example = _example(problem)
    if left_out := template.unrendered(example, conversation(example)):
        raise RequestError(
            f"task {task}, problem {problem.id}: template {template.name!r} does not render {left_out[1]!r}; "
            "score with another template, or remove it from the task's file"
        )
    return prompt_text(example, template)


def _example(problem: Problem) -> Example:
    """A problem as a row is rendered."""
    names = ("messages", "prompt", "tools", "template_options")
    return Example(**{name: getattr(problem, name) for name in names})


def _exact(
    subject: Subject, task: schema.Task, loaded: EvalTask, problems: list[Problem], asked: list[Row]
) -> Plan:
    """The log-probability of each answer."""
    tokenizer, end = subject.tokenizer, subject.template.end_of_turn
    stops = end_tokens(subject.model, tokenizer, subject.template.stops)
    tokens = [_answer_tokens(problem, tokenizer, subject.template, task.name) for problem in problems]

    def work(batch: list[int]) -> list[Row]:
        prompts, answers = [tokens[i][0] for i in batch], [tokens[i][1] for i in batch]
        scored = answer_log_probs(subject.model, prompts, answers, task.batch_size)
        found = zip(batch, scored.log_probs, answers, scored.predicted, strict=True)
        return [
            asked[i]
            | {"logp": float(logp), "greedy": _greedy(answer, predicted, tokenizer, stops, end)}
            | {"correct": answer == predicted}
            for i, logp, answer, predicted in found
        ]

    return [len(prompt) for prompt, _ in tokens], work


def _sampled(
    subject: Subject, task: schema.Task, loaded: EvalTask, problems: list[Problem], asked: list[Row]
) -> Plan:
    """Samples of each prompt and their verdicts."""
    template = subject.template
    generator = TransformersGenerator(subject.model, subject.tokenizer, template.stops, template.endings)
    ids = [subject.tokenizer(row["prompt"], add_special_tokens=False)["input_ids"] for row in asked]
    sampling = Sampling(task.temperature, task.top_p, task.max_new_tokens, task.batch_size)

    def work(batch: list[int]) -> list[Row]:
        drawn = generator.generate([ids[i] for i in batch], task.samples, sampling, task.seed, streams=batch)
        of = [problems[batch[completion.prompt_index]] for completion in drawn]
        verdicts = score_batch(loaded.reward, [completion.text for completion in drawn], of)
        rows = [asked[i] | {"completions": []} for i in batch]
        for completion, verdict in zip(drawn, verdicts, strict=True):
            rows[completion.prompt_index]["completions"].append(_completion(completion, verdict))
        return rows

    return [len(prompt) for prompt in ids], work


def _answer_tokens(
    problem: Problem, tokenizer: Any, template: Template, task: str
) -> tuple[list[int], list[int]]:
    """Tokens of the prompt, and of the answer with its end of turn, exactly as in a training row."""
    example = _example(problem)
    if example.messages is None:
        example.completion = problem.answer
    else:
        example.messages = [*example.messages, {"role": "assistant", "content": problem.answer}]
    data = schema.Data(
        [],
        template=template.name,
        template_options=template.options,
        train_on="last",
        max_length=2**31 - 1,
    )
    try:
        row = tokenize_example(example, tokenizer, data, schema.Loss())
    except RowError as error:
        raise RequestError(f"task {task}, problem {problem.id}: {error}") from error
    answer = np.flatnonzero(row.labels >= 0)
    ids = row.input_ids.tolist()
    return ids[: answer[0]], ids[answer[0] : answer[-1] + 1]


def _greedy(answer: list[int], predicted: list[int], tokenizer: Any, stops: list[int], end: str) -> str:
    """What greedy decoding writes, as far as it is known: up to the first token that differs from the answer.

    `stops` are the tokens that end a completion, `end` is the text that closes an answer, which may be
    several tokens.
    """
    same = next((i for i, pair in enumerate(zip(answer, predicted, strict=True)) if len({*pair}) > 1), None)
    if same is None:
        return completion_text(tokenizer, answer).removesuffix(end)
    ended = predicted[same] in stops
    text = completion_text(tokenizer, predicted[: same + 1], ended)
    return text if ended else text + "…"


def _completion(completion: Completion, verdict: Verdict) -> Row:
    return {
        "text": completion.text,
        "value": verdict.value,
        "status": verdict.status,
        "reason": verdict.reason,
        "finish": completion.finish,
        "tokens": len(completion.token_ids),
        "read": verdict.details.get("answer"),
    }


def _exact_values(rows: list[Row]) -> dict[str, list[float | None]]:
    """metric -> one value per problem."""
    logp = np.array([row["logp"] for row in rows])
    values = {f"pass@{n}": metrics.pass_at_n(logp, n).tolist() for n in ATTEMPTS}
    values["nll"] = (-logp).tolist()
    values["accuracy"] = [float(row["correct"]) for row in rows]
    return values


def _sampled_values(rows: list[Row], task: schema.Task) -> dict[str, list[float | None]]:
    """metric -> one value per problem; None where failed checks left fewer than k judged samples."""
    drawn = [row["completions"] for row in rows]
    judged = [[c for c in part if c["value"] is not None] for part in drawn]
    failed = sum(map(len, drawn)) - sum(map(len, judged))
    if not any(judged):
        why = drawn[0][0]["reason"]
        raise WorkError(f"task {task.name}: the check failed on every completion ({why})")
    if failed:
        log.warning("task %s: the check failed on %d completions; they are left out", task.name, failed)
    right = [sum(c["value"] >= 1.0 for c in part) for part in judged]
    values: dict[str, list[float | None]] = {}
    for k in task.k:
        values[f"pass@{k}"] = [
            float(metrics.pass_at_k(c, len(part), k)[0]) if len(part) >= k else None
            for c, part in zip(right, judged, strict=True)
        ]
    for k in (k for k in task.k if k > 1):
        values[f"maj@{k}"] = [_majority(part, k) if len(part) >= k else None for part in judged]
    values["truncated"] = [_share(part, "finish", "length") for part in drawn]
    values["parsed"] = [_share(part, "status", "scored") for part in judged]
    values["tokens_mean"] = [sum(c["tokens"] for c in part) / len(part) for part in drawn]
    return values


def _majority(judged: list[Row], k: int) -> float:
    correct = sum(c["value"] >= 1.0 for c in judged)
    wrong = Counter(c["read"] for c in judged if c["value"] < 1.0 and c["read"] is not None)
    abstained = len(judged) - correct - sum(wrong.values())
    return metrics.maj_at_k(correct, list(wrong.values()), abstained, k)


def _share(completions: list[Row], key: str, value: str) -> float | None:
    return sum(c[key] == value for c in completions) / len(completions) if completions else None
