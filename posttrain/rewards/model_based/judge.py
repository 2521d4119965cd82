"""A language model as judge: it scores a completion by a rubric, over any OpenAI-compatible endpoint.

The completion is enclosed by a random mark, and the judge is told to treat it as data. An endpoint that is
down is an `error`, never a 0; a completion that makes a working judge reply without a score is 0. Left out:
panels of judges, scores from token probabilities, calibration (compare a judge with human ratings before you
train against it).
"""

from __future__ import annotations

import functools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from posttrain.errors import RequestError
from posttrain.rewards.model_based.judge_http import Endpoint, Unanswered, cache_folder, key_of
from posttrain.rewards.model_based.judge_words import ALONE, PAIR, VERSION, Question, read_score
from posttrain.rewards.registry import limited, reward
from posttrain.rewards.simple.visible import visible
from posttrain.types import Example, Verdict

Compare = Literal["none", "answer", "reference"]
RUBRIC = "How helpful, correct and clear is the response to the task?"


def check_row(example: Example, compare: Compare) -> None:
    """Raises ValueError if the row lacks the text that the completion is compared with."""
    if compare != "none" and not _other(example, compare):
        raise ValueError(f"compare = {compare!r} needs a text in column {compare!r}")


@reward("judge", check_row=check_row, runs="batch", limit_s=600.0)
def judge(
    completions: list[str],
    examples: list[Example],
    url: str,
    model: str,
    rubric: str = RUBRIC,
    rubric_file: str | None = None,
    compare: Compare = "none",
    swap: bool = True,
    show_answer: bool = True,
    key_env: str | None = None,
    max_tokens: int = 1024,
    max_characters: int = 50_000,
    concurrency: int = 8,
    retries: int = 4,
    timeout_s: float = 60.0,
    deadline_s: float = 540.0,
    cache: str | None = None,
) -> list[Verdict]:
    """The score that a language model gives by a rubric, divided by 10.

    `url`: base of an OpenAI-compatible endpoint, such as `http://host:8000/v1`; `model`: its name there.
    `rubric`, or a `rubric_file` with it. `compare`: score against the `answer` or `reference` of the row
    instead of alone; with `swap` in both orders, and the mean counts (judges favour a position: Zheng et al.
    2023, arXiv 2306.05685). `show_answer`: the judge sees `answer` as the reference. `key_env`: the
    environment variable with the API key. Limits: `max_tokens` of a reply, `max_characters` of a completion
    (longer: `limit`), `concurrency` questions at once, `retries` of a failed question, `timeout_s` for a
    question, `deadline_s` for the batch. `cache`: the folder of cached replies ("" for none). Only the text
    after the thinking is judged.

    Raises:
        RequestError: an option is out of range, the rubric cannot be read, or there is no API key.
    """
    if not url.startswith(("http://", "https://")) or "@" in url:
        raise RequestError("reward 'judge': url must start with http:// or https:// and contain no password")
    if concurrency < 1 or retries < 0:
        raise RequestError("reward 'judge': concurrency must be 1 or more, retries 0 or more")
    if rubric_file is not None:
        rubric = _read(rubric_file)
    until, folder = time.monotonic() + deadline_s, cache_folder(cache)
    endpoint = Endpoint(url, model, key_env, max_tokens, retries, timeout_s, until, folder)
    with endpoint, ThreadPoolExecutor(concurrency) as threads:
        judged = _Judged(endpoint, rubric, compare, swap, show_answer, max_characters)
        return list(threads.map(judged.verdict, completions, examples))


@dataclass
class _Judged:
    """The settings of one batch."""

    endpoint: Endpoint
    rubric: str
    compare: Compare
    swap: bool
    show_answer: bool
    max_characters: int

    def verdict(self, completion: str, example: Example) -> Verdict:
        """The verdict of one completion."""
        began = time.perf_counter()
        text = visible(completion)
        if not text:
            return Verdict(0.0, "unparseable", "no text to judge")
        if len(text) > self.max_characters:
            return limited(f"{self.max_characters} characters")
        other = None if self.compare == "none" else _other(example, self.compare)
        try:
            scores = [self._score(text, example, other, first=True)]
            if other is not None and self.swap:
                scores.append(self._score(text, example, other, first=False))
        except Unanswered as failure:
            if failure.kind == "refused" and self._works:
                return Verdict(0.0, reason="the endpoint of the judge refused the completion")
            kind = "timeout" if failure.kind == "deadline" else "error"
            return Verdict(None, kind, str(failure))
        if None in scores:
            if self._works:
                return Verdict(0.0, reason="the judge gave no score")
            return Verdict(None, "error", "the judge gives no scores, not even to a plain question")
        value = sum(scores) / len(scores) / 10
        return Verdict(value, ms=1000 * (time.perf_counter() - began), details={"scores": scores})

    @functools.cached_property
    def _works(self) -> bool:
        """Whether the judge scores a harmless response: is the judge broken, or the completion confusing?"""
        plain = Example(prompt="What is 2 + 2?")
        other = "4" if self.compare != "none" else None
        try:
            return self._score("2 + 2 = 4", plain, other, first=True, fresh=True) is not None
        except Unanswered:
            return False

    def _score(
        self, text: str, example: Example, other: str | None, first: bool, fresh: bool = False
    ) -> float | None:
        """The score of the completion in [0, 10], in either position; None if the reply has no score."""
        sections = [("TASK", _task(example))]
        if other is None:
            if self.show_answer and example.answer:
                sections.append(("REFERENCE ANSWER", example.answer))
            sections.append(("RESPONSE", text))
        else:
            pair = (text, other) if first else (other, text)
            sections += [("RESPONSE 1", pair[0]), ("RESPONSE 2", pair[1])]
        question = Question(ALONE if other is None else PAIR, self.rubric, tuple(sections))
        about = [VERSION, self.endpoint.url, self.endpoint.model, self.endpoint.max_tokens]
        asked = {"about": about, "question": [question.wording, self.rubric, sections]}
        keep = None if fresh else key_of(asked)
        reply = self.endpoint.ask(question.messages(), keep, lambda r: read_score(r) is not None)
        score = read_score(reply)
        return score if score is None or first else 10 - score


def _other(example: Example, compare: Compare) -> str | None:
    found = example.answer if compare == "answer" else example.extra.get("reference")
    return found if isinstance(found, str) and found.strip() else None


def _task(example: Example) -> str:
    turns = [f"{m.get('role')}: {m.get('content')}" for m in example.messages or []]
    return "\n\n".join(turns) or example.prompt or "(not given)"


def _read(rubric_file: str) -> str:
    try:
        return Path(rubric_file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise RequestError(f"reward 'judge': rubric_file {rubric_file}: {error}") from None
