"""Problems of the package reasoning-gym (Stojanovski et al. 2025, arXiv 2505.24760), if it is installed.

Only the tasks of `ALLOWED`, whose scorer compares the answer with the one right text. Left out: the nine
whose scorers evaluate model text (`EVALUATES`), those that parse it in their own way, and curricula.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from typing import Any

from posttrain.data.problems.base import check_split, is_test
from posttrain.errors import RequestError, did_you_mean

ALLOWED = (
    "acre",
    "aiw",
    "arc_1d",
    "base_conversion",
    "basic_arithmetic",
    "binary_alternation",
    "caesar_cipher",
    "count_bits",
    "count_primes",
    "course_schedule",
    "gcd",
    "isomorphic_strings",
    "largest_island",
    "lcm",
    "leg_counting",
    "letter_counting",
    "list_functions",
    "mahjong_puzzle",
    "maze",
    "modulo_grid",
    "number_filtering",
    "number_sequence",
    "ransom_note",
    "rotate_matrix",
    "rotten_oranges",
    "simple_equations",
    "simple_geometry",
    "string_manipulation",
    "string_splitting",
    "string_synthesis",
    "syllogism",
    "word_sequence_reversal",
)
EVALUATES = (
    "binary_matrix",
    "countdown",
    "intermediate_integration",
    "n_queens",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
    "spiral_matrix",
    "string_insertion",
)
"""Tasks whose scorers pass model text to `eval` or to a parser that does."""
BATCH = 200
"""Problems drawn at once."""
PATIENCE = 5
"""Batches without a new problem after which a task counts as exhausted."""


def missing() -> str | None:
    """What to install, if the package is missing."""
    if importlib.util.find_spec("reasoning_gym") is not None:
        return None
    return "reasoning-gym is not installed: pip install 'posttrain[reasoning-gym]'"


def check_task(task: Any) -> str:
    """`task`, if it is allowed. Raises ValueError with the reason otherwise."""
    if task in ALLOWED:
        return task
    if task in EVALUATES:
        raise ValueError(f"task {task!r} is not allowed: its scorer evaluates model text")
    near = did_you_mean(task, ALLOWED) if isinstance(task, str) else ""
    raise ValueError(f"task {task!r} is not one of the {len(ALLOWED)} allowed tasks{near}")


@dataclass(frozen=True)
class GymOptions:
    """Settings of the generator `reasoning_gym`."""

    task: str = "basic_arithmetic"
    split: str = "train"
    """`train` or `test`, by a hash of the question, whatever the seed."""
    train_size: int = 1000
    test_size: int = 200
    seed: int = 0
    verifier: bool = False
    """Whether rows name their reward in a column `rewards`."""

    def check(self, name: str) -> None:
        """Raises `RequestError` for a value out of range, or if the package is not installed."""
        try:
            check_task(self.task)
        except ValueError as error:
            raise RequestError(f"generator {name}: {error}") from None
        check_split(self, name)
        if lacking := missing():
            raise RequestError(f"generator {name}: {lacking}")


class Gym:
    """The generator: rows {prompt, completion, answer, id, task, metadata}, `metadata` as JSON text."""

    name = "reasoning_gym"
    reward = "reasoning_gym"
    options = GymOptions

    def __call__(self, options: GymOptions) -> list[dict[str, Any]]:
        """Rows of one task, each question once. Raises `RequestError` if there are too few."""
        import reasoning_gym

        test = options.split == "test"
        size = options.test_size if test else options.train_size
        rows: dict[str, dict[str, Any]] = {}
        draw = missed = 0
        while len(rows) < size and missed < PATIENCE:
            before = len(rows)
            seed = 1_000_003 * options.seed + draw
            for entry in reasoning_gym.create_dataset(options.task, seed=seed, size=BATCH):
                prompt = entry["question"]
                if is_test(prompt) == test and prompt not in rows:
                    rows[prompt] = _row(options, entry, len(rows))
                if len(rows) == size:
                    return list(rows.values())
            draw, missed = draw + 1, 0 if len(rows) > before else missed + 1
        raise RequestError(
            f"generator {self.name}: task {options.task} gave {len(rows)} different "
            f"{options.split} problems, but {size} were requested"
        )


def _row(options: GymOptions, entry: dict[str, Any], number: int) -> dict[str, Any]:
    row = {
        "prompt": entry["question"],
        "completion": entry["answer"],
        "answer": entry["answer"],
        "id": f"{options.task}-{options.split}-{options.seed}-{number}",
        "task": options.task,
        "metadata": json.dumps(entry["metadata"], default=str),
    }
    return {**row, "rewards": Gym.reward} if options.verifier else row


REASONING_GYM = Gym()
