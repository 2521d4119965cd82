"""One model on one task: prompts, generation or exact probabilities, verdicts, scores with intervals.

Ranks share the work in complete batches, which are formed over all problems, and every problem has its own
random stream. So the result is the same, bit for bit, for any number of ranks on the same hardware;
`batch_size` may change the last bits. Left out: loading checkpoints (`checkpoint.py`) and storing scores
(`rundir/scores.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from posttrain.base.stop import check_stop
from posttrain.data.template import Template, known_as, load_template
from posttrain.data.tokenize import conversation, prompt_text, tokenize_example
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError, WorkError
from posttrain.evaluate.choice import answered, without_question
from posttrain.evaluate.exact import answer_log_probs
from posttrain.evaluate.sets import summaries
from posttrain.evaluate.settings import differences, measurements, problems_of, settings_hash, task_hash
from posttrain.evaluate.summary import means
from posttrain.evaluate.tasks.base import EvalTask
from posttrain.evaluate.tasks.catalogue import load_task, resolved
from posttrain.evaluate.values import Row
from posttrain.generation.base import Completion, Sampling, completion_text, end_tokens
from posttrain.generation.local import TransformersGenerator, batches
from posttrain.recipe import schema
from posttrain.types import Example, Problem, Score, Verdict

log = logging.getLogger(__name__)
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
    differs: dict[str, Any] = field(default_factory=dict)
    """Where this is not as the run has it (its chat template), and how it is."""


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


def score_task(
    subject: Subject, task: schema.Task, share: Share | None = None, own: schema.Task | None = None
) -> TaskResult:
    """Scores `subject` on `task`. Prompts are rendered with its template, as in training. `own`: the task as
    the recipe of the run has it (default: `task`), from which scores note what differs.

    With several ranks each of them calls this with its `share`, whose `gather` is called once, with rows that
    JSON can hold; every rank returns the same result. No global random number is consumed.

    Raises:
        RequestError: the task, or one of its problems, does not fit this model.
        WorkError: the model produces NaN, the ranks do not fit together, or the check failed on every
            completion.
        Stopped: this process was asked to stop.
    """
    task, loaded, problems = resolved(task), load_task(task), problems_of(task)
    if not problems:
        raise RequestError(f"task {task.name} has no problems")
    rows = _rows(subject, task, loaded, problems, share or Share())
    template = known_as(subject.template.source)
    scores = []
    for i, one in enumerate(measurements(task)):
        settings = settings_hash(task_hash(one, problems), template, str(subject.model.dtype))
        values = loaded.values(rows, task, i)
        shared = {"settings": settings, "differs": differences(one, own or task) | subject.differs}
        scores += _scores(subject, task, loaded, problems, values, shared)
    return TaskResult(scores, rows)


def _scores(
    subject: Subject,
    task: schema.Task,
    loaded: EvalTask,
    problems: list[Problem],
    values: dict[str, list[float | None]],
    shared: dict[str, Any],
) -> list[Score]:
    """The mean of each metric with its interval; `shared` is the same in all of them."""
    at, groups = (subject.checkpoint, subject.step, task.name), [problem.group for problem in problems]
    shared = {"digest": subject.digest} | shared
    found = means(values, groups, loaded, f"{subject.checkpoint} on {task.name}")
    found |= summaries(values, problems, loaded.clusters)
    return [
        Score(*at, metric, each.value, each.n, each.low, each.high, **shared)
        for metric, each in found.items()
    ]


def _rows(
    subject: Subject, task: schema.Task, loaded: EvalTask, problems: list[Problem], share: Share
) -> list[Row]:
    """The rows of all problems, in their order: this rank's batches are computed, the others gathered."""
    asked = [
        {"index": i, "id": problem.id, "group": problem.group, "prompt": prompt, "answer": problem.answer}
        | ({} if loaded.clusters or not problem.group else {"independent": True})
        for i, (problem, prompt) in enumerate(
            zip(problems, _prompts(subject, problems, task.name), strict=True)
        )
    ]
    lengths, work = PLANS[loaded.kind](subject, task, loaded, problems, asked)
    shares = batches(lengths, task.samples, task.batch_size)  # exact tasks take one sample
    mine: list[Row] = []
    for batch in shares[share.rank :: share.world_size]:
        check_stop()
        mine += work(batch)
    rows = sorted((row for part in share.gather(mine) for row in part), key=lambda row: row["index"])
    if [row.pop("index") for row in rows] != list(range(len(problems))):
        raise WorkError(f"task {task.name}: the rows of all ranks do not cover each problem exactly once")
    return rows


def _prompts(subject: Subject, problems: list[Problem], task: str) -> list[str]:
    """The texts that the model continues. Raises as `_prompt`."""
    plain = load_template("plain", subject.tokenizer)
    return [_prompt(p, plain if p.plain else subject.template, task) for p in problems]


def _prompt(problem: Problem, template: Template, task: str) -> str:
    """The text that the model continues. Raises `RequestError` where the template leaves out something."""
    example = _example(problem)
    if left_out := template.unrendered(example, conversation(example)):
        raise RequestError(
            f"task {task}, problem {problem.id}: template {template.name!r} does not render {left_out[1]!r}; "
            "score with another template, or remove it from the task's file"
        )
    return prompt_text(example, template) + problem.prefill


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
        every = [task.temperature, *task.temperatures]
        scored = answer_log_probs(subject.model, prompts, answers, task.batch_size, every)
        found = zip(batch, scored.log_probs.T.tolist(), answers, scored.predicted, strict=True)
        return [
            asked[i]
            | {"logp": logps[0], "greedy": _greedy(answer, predicted, tokenizer, stops, end)}
            | {"correct": answer == predicted}
            | ({"logp_at": dict(zip(map(_key, every), logps, strict=True))} if len(every) > 1 else {})
            for i, logps, answer, predicted in found
        ]

    return [len(prompt) for prompt, _ in tokens], work


def _choice(
    subject: Subject, task: schema.Task, loaded: EvalTask, problems: list[Problem], asked: list[Row]
) -> Plan:
    """The log-probability of each option."""

    def work(batch: list[int]) -> list[Row]:
        some, others = [problems[i] for i in batch], [""] * len(batch)
        if loaded.unconditional:
            alone = [without_question(problem, loaded.unconditional) for problem in some]
            others = _prompts(subject, alone, task.name)
        rows = [asked[i] for i in batch]
        return answered(subject.model, subject.tokenizer, task, loaded.space, some, rows, others)

    return [len(row["prompt"]) for row in asked], work


def _key(temperature: float) -> str:
    return str(float(temperature))  # what a reader looks for, whether the recipe says 2 or 2.0


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
        for completion in drawn:
            cut(completion, loaded.stop)
        verdicts = loaded.verdicts([each.text for each in drawn], of)
        rows = [asked[i] | {"completions": []} for i in batch]
        for completion, verdict, problem in zip(drawn, verdicts, of, strict=True):
            row = _completion(completion, verdict) | loaded.noted(verdict, problem)
            rows[completion.prompt_index]["completions"].append(row)
        return rows

    return [len(prompt) for prompt in ids], work


PLANS = {"exact": _exact, "sampled": _sampled, "choice": _choice}
"""Kind of a task -> how its problems are worked on."""


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
        template="plain" if problem.plain else template.name,
        template_options={} if problem.plain else template.options,
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


def cut(completion: Completion, stops: list[str]) -> None:
    """Ends the text of a completion before the first of `stops`; its tokens stay, as they were sampled."""
    ends = [at for stop in stops if (at := completion.text.find(stop)) >= 0]
    if ends:
        completion.text, completion.finish = completion.text[: min(ends)], "stop"


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
