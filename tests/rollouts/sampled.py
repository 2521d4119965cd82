"""Groups made by hand for the tests of the RLVR stage: prompts, a generator and rewards without a model."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from posttrain.data.shapes.prompts import Asked
from posttrain.generation.base import Completion
from posttrain.rewards.compose import Graded
from posttrain.rollouts.groups import Group, Prompt
from posttrain.types import Verdict


class Made:
    """Prompt i asks `q<i>` with i % 5 + 1 tokens."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> Prompt:
        return Prompt(i, "s", i % 10, [100 + i] * (i % 5 + 1), Asked(f"f:{i}", f"q{i}", {"answer": str(i)}))


class Scripted:
    """A generator: sample j of the prompt on stream i is `<i>.<j>` with i + j + 1 tokens, maybe cut off."""

    def __init__(self, cut=lambda i, j: False) -> None:
        self.cut, self.calls, self.entered = cut, [], 0

    @contextlib.contextmanager
    def __call__(self):
        self.entered += 1
        yield self

    def generate(self, prompts, n, sampling, seed, streams):
        self.calls.append((list(streams), n, sampling, seed))
        return [
            Completion(
                k,
                j,
                f"{i}.{j}",
                list(range(i + j + 1)),
                "length" if self.cut(i, j) else "stop",
                [-1.0] * (i + j + 1),
            )
            for k, i in enumerate(streams)
            for j in range(n)
        ]


class FakeRewards:
    """Rewards: `value(i, j)` of sample j on prompt i; True, False, a number, or None if the check fails."""

    def __init__(self, value) -> None:
        self.value, self.seen = value, []

    def grade(self, texts, rows, deadline=None, done=lambda: None) -> list[Graded]:
        found = []
        for text, row in zip(texts, rows, strict=True):
            i, j = map(int, text.split("."))
            assert row.answer == str(i) and row.where == f"f:{i}"
            self.seen.append((i, j))
            found.append(graded(self.value(i, j)))
            done()
        return found


def graded(value) -> Graded:
    status = "error" if value is None else "scored"
    number = None if value is None else float(value)
    success = None if value is None else number >= 1
    return Graded(number, success, {"r": Verdict(number, status, "broken" if value is None else "")})


def group(
    values: Sequence,
    lengths: Sequence[int] | None = None,
    cut: Sequence[int] = (),
    position: int = 0,
    prompt: int = 3,
) -> Group:
    """A scored group; completion j has `lengths[j]` tokens numbered from 10 j, truncated if j is in `cut`."""
    lengths = lengths or [2] * len(values)
    completions = [
        Completion(0, j, f"t{j}", list(range(10 * j, 10 * j + n)), "length" if j in cut else "stop")
        for j, n in enumerate(lengths)
    ]
    asked = Prompt(position, "s", 0, [7] * prompt, Asked("f:1", "q", {"answer": "a"}))
    return Group(asked, completions, [graded(v) for v in values])
