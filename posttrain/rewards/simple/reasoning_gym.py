"""Problems of the package reasoning-gym, scored by those of its scorers that do not evaluate text.

`posttrain.data.problems.reasoning_gym` lists the allowed tasks. Left out: partial credit, which the package
gives to an answer that contains the right one among other text.
"""

from __future__ import annotations

import json
from typing import Any

from posttrain.data.problems.reasoning_gym import check_task, missing
from posttrain.rewards.registry import limited, reward
from posttrain.rewards.simple.visible import stated, visible
from posttrain.types import Example, Verdict

LONGEST = 100_000
"""Characters of an answer; a longer one is 0 with the reason `limit`."""


def check_row(example: Example) -> None:
    """Raises ValueError if a row does not name an allowed task, or its metadata is not an object."""
    check_task(_task(example))


def prepare() -> None:
    """Imports the package, which takes seconds."""
    from reasoning_gym import get_score_answer_fn  # noqa: F401


@reward(
    "reasoning_gym",
    columns=("answer", "task|metadata"),
    check_row=check_row,
    runs="worker",
    limit_s=5.0,
    missing=missing,
    prepare=prepare,
)
def reasoning_gym(completion: str, example: Example) -> Verdict:
    r"""1.0 if the task's own scorer of reasoning-gym gives the answer full marks (arXiv 2505.24760).

    The answer is the content of the last `<answer>` tags, of the last `\boxed{}`, or what follows `answer
    is`; otherwise all text after the thinking. The row names its task in `task`, or in `metadata` as
    `source_dataset`.
    """
    from reasoning_gym import get_score_answer_fn

    task = check_task(_task(example))
    text = visible(completion)
    if not text:
        return Verdict(0.0, "unparseable", "no answer in the completion")
    answer = _tagged(text) or stated(text) or text
    if len(answer) > LONGEST:
        return limited(f"an answer of {len(answer):,} characters")
    entry = {"answer": example.answer, "metadata": _metadata(example)}
    right = get_score_answer_fn(task)(answer, entry) >= 1
    shown = {"answer": answer[:200], "task": task}
    return Verdict(float(right), "scored", "" if right else "a different answer", 0.0, shown)


def _tagged(text: str) -> str | None:
    end = text.rfind("</answer>")
    begin = text.rfind("<answer>", 0, max(end, 0))
    return text[begin + len("<answer>") : end].strip() if 0 <= begin < end else None


def _metadata(example: Example) -> dict[str, Any]:
    """The metadata of the row, an object or its JSON text. Raises ValueError if it is neither."""
    given = example.extra.get("metadata")
    try:
        found = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        found = given
    if found is not None and not isinstance(found, dict):
        raise ValueError(f"column 'metadata' must be an object, not {str(given)[:40]!r}")
    return found or {}


def _task(example: Example) -> Any:
    return example.extra.get("task") or _metadata(example).get("source_dataset")
