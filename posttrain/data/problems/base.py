"""A family of generated problems: how one problem is made at each level, and how many go to which split.

A problem is the text of a question and its known answer; the row made of it has them in the columns `prompt`,
`completion` and `answer`. It belongs to `train` or `test` by a hash of its text, whatever the seed, so the
two never share a problem. Rows are the same on every machine. Left out: worked solutions, levels that rise
during training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from posttrain.errors import RequestError, did_you_mean

LEVELS = 5
TEST_SHARE = 5
"""One problem in TEST_SHARE is a test problem."""
PATIENCE = 5000
"""Draws without a new problem after which the level counts as exhausted."""


def check_split(options: Any, name: str) -> None:
    """Raises `RequestError` if `split`, `train_size` or `test_size` of a generator's options is wrong."""
    if options.split not in ("train", "test"):
        near = did_you_mean(options.split, ("train", "test"))
        raise RequestError(f"generator {name}: unknown split {options.split!r}{near}")
    for key in ("train_size", "test_size"):
        if getattr(options, key) < 1:
            raise RequestError(f"generator {name}: {key} must be at least 1")


@dataclass(frozen=True)
class TaskOptions:
    """Settings of every generated family."""

    level: int = 1
    """Difficulty, 1 to 5."""
    split: str = "train"
    """`train` or `test`."""
    train_size: int = 1000
    test_size: int = 200
    seed: int = 0
    verifier: bool = False
    """Whether rows name their reward in a column `rewards`, for a mixture that several rewards judge."""

    def check(self, name: str) -> None:
        """Raises `RequestError` for a value out of range."""
        if not 1 <= self.level <= LEVELS:
            raise RequestError(f"generator {name}: level must be 1 to {LEVELS}, not {self.level}")
        check_split(self, name)


@dataclass(frozen=True)
class Family:
    """A generator: `make(rng, level)` gives text and answer of a problem; `reward` is a fitting verifier."""

    name: str
    make: Callable[[Random, int], tuple[str, str]]
    reward: str

    options = TaskOptions

    def __call__(self, options: TaskOptions) -> list[dict[str, str]]:
        """Rows {prompt, completion, answer, id}, each problem once; with `verifier` also {rewards}.

        Raises:
            RequestError: the level has fewer problems than requested.
        """
        rng = Random(f"{self.name} {options.level} {options.split} {options.seed}")
        size = options.train_size if options.split == "train" else options.test_size
        rows: dict[str, dict[str, str]] = {}
        missed = 0
        while len(rows) < size and missed < PATIENCE:
            prompt, answer = self.make(rng, options.level)
            missed += 1
            if is_test(prompt) == (options.split == "test") and prompt not in rows:
                rows[prompt] = {"prompt": prompt, "completion": answer, "answer": answer}
                missed = 0
        if len(rows) < size:
            raise RequestError(
                f"generator {self.name}: level {options.level} gave {len(rows)} different "
                f"{options.split} problems, but {size} were requested"
            )
        for prompt, row in rows.items():
            row["id"] = f"{self.name}-{options.level}-{_digest(prompt).hex()}"
            if options.verifier:
                row["rewards"] = self.reward
        return list(rows.values())


def is_test(prompt: str) -> bool:
    """Whether a problem belongs to the test split."""
    return int.from_bytes(_digest(prompt), "big") % TEST_SHARE == 0


def _digest(prompt: str) -> bytes:
    return hashlib.blake2b(prompt.encode(), digest_size=6).digest()


def word(rng: Random, syllables: int) -> str:
    """A made-up word, `bakolu`."""
    return "".join(
        rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") + rng.choice(("", "", "n", "r", "s"))
        for _ in range(syllables)
    )
