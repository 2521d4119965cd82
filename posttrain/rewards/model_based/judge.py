"""A language model as judge: a rubric, one completion, a score; over any OpenAI-compatible endpoint.

What the judge reads of the completion is fenced by a random mark, and said to be data. An endpoint that is down is
`error`, never a 0; a completion that makes a working judge answer nonsense is 0. Left out: juries, scores from token
probabilities, calibrating judges (compare them with people before you train against one).
"""

from __future__ import annotations

import functools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrain.errors import RequestError
from posttrain.rewards.model_based.judge_http import Endpoint, Unanswered, cache_folder, key_of
from posttrain.rewards.model_based.judge_words import ALONE, PAIR, VERSION, Question, read_score
from posttrain.rewards.registry import reward
from posttrain.rewards.simple.visible import visible
from posttrain.types import Example, Verdict

Compare = Literal["none", "answer", "reference"]
RUBRIC = "How helpful, correct and clear is the response to the task?"


def check_row(example: Example, compare: Compare = "none", **_: Any) -> None:
    """Raises ValueError where the row lacks what is compared with."""
    if compare != "none" and not _other(example, compare):
        raise ValueError(f"compare: {compare} needs a text in column {compare!r}")


def _other(example: Example, compare: Compare) -> str | None:
    found = example.answer if compare == "answer" else example.extra.get("reference")
    return found if isinstance(found, str) and found.strip() else None


def _task(example: Example) -> str:
    turns = [f"{m.get('role')}: {m.get('content')}" for m in example.messages or []]
    return "\n\n".join(turns) or example.prompt or "(not given)"


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

    `url`: base of an OpenAI-compatible endpoint, `http://host:8000/v1`. `rubric`, or a file of it. `compare`: against
    the row's `answer` or `reference` instead of alone; with `swap` in both orders, and the mean counts (judges favour
    a position: Zheng et al. 2023, arXiv 2306.05685). `show_answer`: the judge sees `answer` as the reference.
    `key_env`: the environment variable with the API key. Limits: `max_tokens` of a reply, `max_characters` of a
    completion (longer: `limit`), `concurrency` questions at once, `retries` of a failed one, `timeout_s` a question,
    `deadline_s` the batch. `cache`: folder of replies ("" for none). Only what follows the thinking is judged.
    """
    if rubric_file is not None:
        try:
            rubric = Path(rubric_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise RequestError(f"reward 'judge': rubric_file {rubric_file}: {error}") from None
    if not url.startswith(("http://", "https://")) or "@" in url:
        raise RequestError("reward 'judge': url must be http(s)://host..., without a password")
    if concurrency < 1 or retries < 0:
        raise RequestError("reward 'judge': concurrency must be 1 or more, retries 0 or more")
    endpoint = Endpoint(
        url,
        model,
        key_env,
        max_tokens,
        retries,
        timeout_s,
        time.monotonic() + deadline_s,
        cache_folder(cache),
    )
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
        began = time.perf_counter()
        text = visible(completion)
        if not text:
            return Verdict(0.0, "unparseable", "nothing to judge")
        if len(text) > self.max_characters:
            return Verdict(0.0, reason="limit", details={"limit": f"{self.max_characters} characters"})
        other = None if self.compare == "none" else _other(example, self.compare)
        try:
            scores = [self._score(text, example, other, first=True)]
            if other is not None and self.swap:
                scores.append(self._score(text, example, other, first=False))
        except Unanswered as failure:
            if failure.kind == "refused" and self._works:
                return Verdict(0.0, reason="the judge's endpoint refused the completion")
            kind = "timeout" if failure.kind == "deadline" else "error"
            return Verdict(None, kind, str(failure))
        if None in scores:
            if self._works:
                return Verdict(0.0, reason="the judge gave no score")
            return Verdict(None, "error", "the judge gives no scores, to a plain question neither")
        value = sum(scores) / len(scores) / 10
        return Verdict(value, ms=1000 * (time.perf_counter() - began), details={"scores": scores})

    @functools.cached_property
    def _works(self) -> bool:
        """Whether the judge scores a harmless response: tells a bad judge from a completion that confuses it."""
        plain = Example(prompt="What is 2 + 2?")
        other = "4" if self.compare != "none" else None
        try:
            return self._score("2 + 2 = 4", plain, other, first=True, fresh=True) is not None
        except Unanswered:
            return False

    def _score(
        self, text: str, example: Example, other: str | None, first: bool, fresh: bool = False
    ) -> float | None:
        """In [0, 10] for the completion, whichever place it stands in; None for a reply without a score."""
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
