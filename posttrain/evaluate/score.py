"""One model on one task: prompts, generation or exact probabilities, verdicts, scores with intervals.

Ranks share out whole batches, which are formed over all problems, and every problem has its own random stream. So
the result is the same, bit for bit, for any number of ranks on the same hardware; `batch_size` may change the
last bits. Left out: loading checkpoints (`checkpoint`), keeping scores (`store`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.data.tokenize import conversation, tokenize_example
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError, WorkError
from posttrain.evaluate import metrics
from posttrain.evaluate.exact import answer_log_probs
from posttrain.evaluate.intervals import interval
from posttrain.evaluate.settings import problems_of, settings_hash, task_hash
from posttrain.evaluate.tasks.base import EvalTask
from posttrain.evaluate.tasks.catalogue import ATTEMPTS, load_task
from posttrain.generation.base import Completion, Sampling
from posttrain.generation.local import TransformersGenerator, batches
from posttrain.recipe import schema
from posttrain.rewards import score_batch
from posttrain.types import Example, Problem, Score, Verdict

log = logging.getLogger(__name__)
Row = dict[str, Any]
"""A line of samples/<checkpoint>/<task>.jsonl."""
Progress = Callable[[int, int], None]
"""Called with the batches done and all batches of this rank."""
Work = Callable[[list[int]], list[Row]]


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The scores of a checkpoint on a task, and a row a problem, in the order of the problems."""

    scores: list[Score]
    samples: list[Row]


def score_task(
    model: Any,
    tokenizer: Any,
    task: schema.Task,
    *,
    checkpoint: str,
    step: int,
    digest: str,
    template: Any,
    rank: int = 0,
    world_size: int = 1,
    gather: Callable[[list[Row]], list[list[Row]]] | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """Score `model` on `task`; prompts are rendered by `template` (data/template.py), as in training.

    With several ranks each calls this, and `gather` (called once, with JSON-able rows) returns the rows of all
    of them; every rank has the same result. Consumes no global random numbers.

    Raises:
        RequestError: the task or a problem cannot be asked of this model.
        WorkError: the model gives NaN, ranks do not fit together, or the checker failed on everything.
    """
    loaded, problems = load_task(task), problems_of(task)
    if not problems:
        raise RequestError(f"task {task.name} has no problems")
    prompts = [_prompt(problem, template) for problem in problems]
    plan = _exact if loaded.kind == "exact" else _sampled
    lengths, work = plan(model, tokenizer, template, task, loaded, problems, prompts)
    shares = batches(lengths, task.samples, task.batch_size)  # exact tasks take one sample
    mine = shares[rank::world_size]
    rows: list[Row] = []
    for done, batch in enumerate(mine, 1):
        rows += work(batch)
        if progress is not None:
            progress(done, len(mine))
    parts = [rows] if gather is None else gather(rows)
    rows = sorted((row for part in parts for row in part), key=lambda row: row["index"])
    if [row.pop("index") for row in rows] != list(range(len(problems))):
        raise WorkError(f"task {task.name}: the ranks' rows do not cover the problems once each")
    settings = settings_hash(task_hash(task, problems), template.source, str(model.dtype))
    values = _exact_values(rows) if loaded.kind == "exact" else _sampled_values(rows, task)
    scores = []
    for metric, found in values.items():
        known = [i for i, value in enumerate(found) if value is not None]
        if not known:
            log.warning("%s on %s: no problem has a value of %s", checkpoint, task.name, metric)
            continue
        groups = [problems[i].group for i in known]
        mean = interval([found[i] for i in known], groups, seed=task.seed)
        scores.append(
            Score(
                checkpoint=checkpoint,
                step=step,
                task=task.name,
                metric=metric,
                value=mean.value,
                n=mean.n,
                low=mean.low,
                high=mean.high,
                settings=settings,
                digest=digest,
            )
        )
    return TaskResult(scores, rows)


def _prompt(problem: Problem, template: Any) -> str:
    """What the model reads before it answers."""
    asked = conversation(Example(messages=problem.messages, prompt=problem.prompt))
    return template.render(asked, add_generation_prompt=True)


def _row(index: int, problem: Problem, prompt: str) -> Row:
    return {
        "index": index,
        "id": problem.id,
        "group": problem.group,
        "prompt": prompt,
        "answer": problem.answer,
    }


def _exact(
    model: Any, tokenizer: Any, template: Any, task: schema.Task, loaded: EvalTask, problems, prompts
) -> tuple[list[int], Work]:
    """Prompt lengths, and the work on one batch of problems: the log-probability of each answer."""
    rows = [_answer_tokens(problem, tokenizer, template, task.name) for problem in problems]

    def work(batch: list[int]) -> list[Row]:
        asked, answers = [rows[i][0] for i in batch], [rows[i][1] for i in batch]
        scored = answer_log_probs(model, asked, answers, task.batch_size)
        return [
            _row(i, problems[i], prompts[i])
            | {"logp": float(logp), "greedy": _greedy(answer, predicted, tokenizer)}
            | {"correct": answer == predicted}
            for i, logp, answer, predicted in zip(
                batch, scored.log_probs, answers, scored.predicted, strict=True
            )
        ]

    return [len(prompt) for prompt, _ in rows], work


def _answer_tokens(problem: Problem, tokenizer: Any, template: Any, task: str) -> tuple[list[int], list[int]]:
    """Tokens of the prompt, and of the answer with its end of turn: the very row training would see."""
    if problem.messages is None:
        example = Example(prompt=problem.prompt, completion=problem.answer)
    else:
        reply = {"role": "assistant", "content": problem.answer}
        example = Example(messages=[*problem.messages, reply])
    data = schema.Data([], template=template.name, train_on="last", max_length=2**31 - 1)
    try:
        row = tokenize_example(example, tokenizer, data, schema.Loss())
    except RowError as error:
        raise RequestError(f"task {task}, problem {problem.id}: {error}") from error
    answer = np.flatnonzero(row.labels >= 0)
    ids = row.input_ids.tolist()
    return ids[: answer[0]], ids[answer[0] : answer[-1] + 1]


def _greedy(answer: list[int], predicted: list[int], tokenizer: Any) -> str:
    """What greedy decoding writes, as far as it is known: up to the first token that is not the answer's."""
    same = next((i for i, pair in enumerate(zip(answer, predicted, strict=True)) if len({*pair}) > 1), None)
    if same is None:
        return tokenizer.decode(answer, skip_special_tokens=True)
    ended = predicted[same] == tokenizer.eos_token_id
    text = tokenizer.decode(predicted[: same + 1], skip_special_tokens=True)
    return text if ended else text + "…"


def _sampled(
    model: Any, tokenizer: Any, template: Any, task: schema.Task, loaded: EvalTask, problems, prompts
) -> tuple[list[int], Work]:
    """Prompt lengths, and the work on one batch of problems: samples and their verdicts."""
    if (count := len(template.end_ids)) > 1:
        log.warning("%r is %d tokens: generation cannot stop at it", template.end_of_turn, count)
    generator = TransformersGenerator(model, tokenizer, template.stops)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompts]
    sampling = Sampling(task.temperature, task.top_p, task.max_new_tokens, task.batch_size)

    def work(batch: list[int]) -> list[Row]:
        rollouts = generator.generate(
            [ids[i] for i in batch], task.samples, sampling, task.seed, streams=batch
        )
        rows = [_row(i, problems[i], prompts[i]) | {"completions": []} for i in batch]
        asked = [problems[batch[rollout.prompt_index]] for rollout in rollouts]
        verdicts = score_batch(loaded.reward, [rollout.text for rollout in rollouts], asked)
        for rollout, verdict in zip(rollouts, verdicts, strict=True):
            rows[rollout.prompt_index]["completions"].append(_completion(rollout, verdict))
        return rows

    return [len(prompt) for prompt in ids], work


def _completion(rollout: Completion, verdict: Verdict) -> Row:
    return {
        "text": rollout.text,
        "value": verdict.value,
        "status": verdict.status,
        "reason": verdict.reason,
        "finish": rollout.finish,
        "tokens": len(rollout.token_ids),
        "read": verdict.details.get("answer"),
    }


def _exact_values(rows: list[Row]) -> dict[str, list[float | None]]:
    """Metric -> a value a problem."""
    logp = np.array([row["logp"] for row in rows])
    values = {f"pass@{n}": metrics.pass_at_n(logp, n).tolist() for n in ATTEMPTS}
    values["nll"] = (-logp).tolist()
    values["accuracy"] = [float(row["correct"]) for row in rows]
    return values


def _sampled_values(rows: list[Row], task: schema.Task) -> dict[str, list[float | None]]:
    """Metric -> a value a problem; None where a failed checker left fewer than k samples judged."""
    drawn = [row["completions"] for row in rows]
    judged = [[c for c in part if c["value"] is not None] for part in drawn]
    failed = sum(map(len, drawn)) - sum(map(len, judged))
    if not any(judged):
        why = drawn[0][0]["reason"]
        raise WorkError(f"task {task.name}: the checker failed on every completion ({why})")
    if failed:
        log.warning("task %s: the checker failed on %d completions, left out", task.name, failed)
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
