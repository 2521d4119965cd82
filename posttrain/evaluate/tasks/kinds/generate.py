"""Sampled replies, judged by a reward of the registry, the same function as in training.

Left out: the reward (`posttrain/rewards/`), and sampling (`score.py`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

from posttrain.errors import RequestError, did_you_mean
from posttrain.evaluate.draws import FURTHER
from posttrain.evaluate.tasks.base import Sampled
from posttrain.evaluate.tasks.expressions import Expression, is_template
from posttrain.evaluate.tasks.file_task import FileTask
from posttrain.evaluate.tasks.files import TaskFile
from posttrain.evaluate.tasks.reading import TaskRow
from posttrain.evaluate.tasks.replies import saying, spoiled
from posttrain.rewards import Bound, bind, score_batch
from posttrain.types import Example, Problem, Verdict

THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)|\A.*?</think>", re.DOTALL)
BY_ROW = "reward_options"
"""Where a problem has the options of its own row."""


@dataclass
class Reward:
    """A reward, by its name or as `package.module:function`, and its options. An option that is a template is
    read from each row: `tolerance: '{{ error }}'`."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Reference(Reward):
    """How a widely used scorer judges, faults included, for comparing with its figures."""

    reply: str = ""
    """Instead of the `reply` of the task."""


@dataclass
class GenerateFile(TaskFile):
    """Keys of a task whose replies are sampled."""

    reward: Reward = field(default_factory=lambda: Reward("math"))
    reference: Reference | None = None
    """Instead of `reward` and `reply` with `scorer: reference`: a usual scorer that is known to be wrong."""
    scorer: Literal["correct", "reference"] = "correct"
    metrics: list[str] = field(default_factory=list)
    """Measured besides: pass^k, avg@n, distinct@k, best_of@k."""
    best_of: Reward | None = None
    """The reward that chooses the completion of best_of@k."""
    columns: dict[str, str] = field(default_factory=dict)
    """Column that the reward reads -> where the row has it."""
    reply: str = ""
    """What is judged, a template over the row and `completion`. Default: `prefill` and the completion."""
    gold: str = ""
    """A right reply, a template over `answer`, for `posttrain tasks check`. Default: one that the reward
    reads."""
    stop: list[str] = field(default_factory=list)
    """The completion ends before the first of these texts."""
    thinking: Literal["keep", "strip"] = "keep"
    """Whether the reward sees the part between <think> and </think>; most leave it out themselves."""
    samples: int = 1
    k: list[int] = field(default_factory=lambda: [1])
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512


class Generate(Sampled, FileTask):
    """Replies are sampled, and a reward judges them."""

    File: ClassVar[type[TaskFile]] = GenerateFile

    @cached_property
    def judge(self) -> Reward:
        """`reward` of the file, or `reference`. Raises RequestError."""
        if self.spec.scorer == "correct":
            return self.spec.reward
        if self.spec.reference is None:
            raise RequestError(f"{self.path.name}: scorer = reference, but the task has no key reference")
        return self.spec.reference

    @cached_property
    def reward(self) -> Bound:
        """The reward; options that rows decide have their defaults."""
        given = {key: value for key, value in self.judge.options.items() if key not in self._by_row}
        return bind(self.judge.name, given, f"{self.path.name}: {self._at}")

    def bound(self, problem: Problem, where: str = "") -> Bound:
        """The reward with the options of a problem, which is from `where`."""
        own = problem.extra.get(BY_ROW)
        if not own:
            return self.reward
        return bind(
            self.judge.name, self.judge.options | own, f"{where or problem.id}: {self.path.name}: {self._at}"
        )

    def verdicts(self, completions: list[str], problems: list[Problem]) -> list[Verdict]:
        texts = [self.judged(text, problem) for text, problem in zip(completions, problems, strict=True)]
        alike: dict[str, list[int]] = {}
        for i, problem in enumerate(problems):
            alike.setdefault(json.dumps(problem.extra.get(BY_ROW)), []).append(i)
        found: dict[int, Verdict] = {}
        for places in alike.values():
            of = [problems[i] for i in places]
            given = score_batch(self.bound(of[0]), [texts[i] for i in places], of)
            found |= zip(places, given, strict=True)
        if self.rater is not None:
            for i, rating in enumerate(score_batch(self.rater, texts, problems)):
                found[i].details["rated"] = rating.value
        return [found[i] for i in range(len(problems))]

    @property
    def also(self) -> list[str]:
        return self.spec.metrics

    @cached_property
    def rater(self) -> Bound | None:
        """The reward of best_of@k. Raises RequestError."""
        if (given := self.spec.best_of) is None:
            return None
        return bind(given.name, given.options, f"{self.path.name}: best_of")

    def noted(self, verdict: Verdict, problem: Problem) -> dict[str, Any]:
        return {} if self.rater is None else {"rated": verdict.details["rated"]}

    def gold_reply(self, problem: Problem) -> str | None:
        """The reference answer in the sentence `gold`, or in one that the reward reads; None where neither is
        known."""
        return self._saying(problem, problem.answer)

    def spoiled_reply(self, problem: Problem) -> str | None:
        """As `gold_reply`, with another number, letter or word."""
        return self._saying(problem, spoiled(problem.answer, self.reward.name))

    def _saying(self, problem: Problem, answer: str) -> str | None:
        if not self.spec.gold:
            return saying(self.reward, answer)
        return str(self.expression("gold", self.spec.gold)(problem.extra, problem.id, answer=answer))

    def scoring(self) -> str:
        options = self.reward.options | self.judge.options
        usual = bind(self.judge.name).options if self.judge.options else self.reward.options
        given = ", ".join(f"{key}: {value}" for key, value in options.items() if value != usual.get(key))
        return f"reward {self.reward.name}{' with ' * bool(given)}{given}"

    @property
    def read_by_reward(self) -> set[str]:
        """Columns that the reward reads, where a row has them; empty where it may read any."""
        return {name for column in self.reward.spec.columns for name in column.split("|")}

    @property
    def macro(self) -> tuple[str, ...]:
        return tuple(f"pass@{k}" for k in self.task.k or self.spec.k) if self.spec.group else ()

    @property
    def stop(self) -> list[str]:
        return self.spec.stop

    @property
    def identity(self) -> dict[str, Any]:
        found = super().identity | {"reply": self._reply_text}
        found["reward"] = {"name": self.reward.name, "options": self.reward.options | self._templates}
        if self.reward.spec.code is not None:
            found["reward"]["code"] = self.reward.spec.code[1]
        if self.spec.best_of is None:
            del found["best_of"]
        return {key: value for key, value in found.items() if key not in NOT_IDENTITY}

    def check(self) -> None:
        _ = self.reward, self._columns, self._reply, self._by_row, self.rater
        if "" in self.spec.stop:
            raise RequestError(
                f"{self.path.name}: stop has an empty text, which would end every completion at once"
            )
        for name in self.spec.metrics:
            if name not in FURTHER:
                raise RequestError(f"{self.path.name}: metrics: {name!r}{did_you_mean(name, FURTHER)}")
        if ("best_of@k" in self.spec.metrics) != (self.rater is not None):
            raise RequestError(
                f"{self.path.name}: best_of@k in metrics and the reward best_of need each other"
            )
        super().check()

    def problem(self, row: TaskRow) -> Problem:
        problem = super().problem(row)
        problem.extra = {
            key: found(row.columns, row.where, **row.known) for key, found in self._columns.items()
        }
        named = self.read_by_reward or row.columns
        problem.extra = {name: row.columns[name] for name in named if name in row.columns} | problem.extra
        if self._reply is not None:
            self._for_reply(problem, row)
        if self._by_row:
            problem.extra[BY_ROW] = {
                key: found(row.columns, row.where, **row.known) for key, found in self._by_row.items()
            }
        example = Example(prompt=problem.prompt, answer=problem.answer, where=row.where, extra=problem.extra)
        self.bound(problem, row.where).check_row(example)
        if self.rater is not None:
            self.rater.check_row(example)
        return problem

    def _for_reply(self, problem: Problem, row: TaskRow) -> None:
        """Keeps the columns that `reply` reads. Raises RequestError where one is missing."""
        names = row.columns.keys() if "row" in self._reply.names else self._reply.names & row.columns.keys()
        problem.extra = {name: row.columns[name] for name in names} | problem.extra
        try:
            self._reply(problem.extra, row.where, completion="", answer=problem.answer)
        except RequestError as error:
            if "undefined" in str(error):  # others may be of the empty completion
                raise

    def judged(self, completion: str, problem: Problem) -> str:
        """What the reward sees of a completion."""
        text = problem.prefill + completion
        if self.spec.thinking == "strip":
            text = THOUGHT.sub("", text).lstrip()
        if self._reply is None:
            return text
        return str(self._reply(problem.extra, problem.id, completion=text, answer=problem.answer))

    @property
    def _at(self) -> str:
        return "reference" if self.judge is self.spec.reference else "reward"

    @property
    def _reply_text(self) -> str:
        own = self.judge.reply if isinstance(self.judge, Reference) else ""
        return own or self.spec.reply

    @cached_property
    def _reply(self) -> Expression | None:
        return self.expression("reply", self._reply_text) if self._reply_text else None

    @cached_property
    def _columns(self) -> dict[str, Expression]:
        return {key: self.expression(f"columns.{key}", text) for key, text in self.spec.columns.items()}

    @property
    def _templates(self) -> dict[str, str]:
        return {key: value for key, value in self.judge.options.items() if is_template(value)}

    @cached_property
    def _by_row(self) -> dict[str, Expression]:
        return {
            key: self.expression(f"{self._at}.options.{key}", text) for key, text in self._templates.items()
        }


NOT_IDENTITY = (
    *("samples", "k", "temperature", "top_p", "max_new_tokens"),  # part of the sampler
    *("columns", "reference", "scorer", "gold", "metrics"),
)
"""Keys of a file that the problems, the sampler or the reward show."""
