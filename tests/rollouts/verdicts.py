"""A reward whose verdicts a test can foresee; named in recipes as `tests.rollouts.verdicts:without`."""

from __future__ import annotations

import os

from posttrain.rewards.registry import reward
from posttrain.types import Verdict


@reward("test-without", columns=("answer",), runs="inline")
def without(completion, example) -> Verdict:
    """Right where the row's `answer` is not in the completion. The checker fails on the answer
    "broken", and on completions that contain the text in `TEST_BROKEN`.
    """
    broken = os.environ.get("TEST_BROKEN")
    if example.answer == "broken" or (broken and broken in completion):
        return Verdict(None, "error", "broken")
    return Verdict(float(example.answer not in completion))
