"""Programs, judged by the tests of their row in the sandbox of the reward `code`.

In a chat the program is a fenced block of the reply. Elsewhere the text itself is the program, and `reply`
says what stands before it: `"{{ prompt }}{{ completion }}"`. `answer` is a program that is right, as far as
the model writes it. Left out: the sandbox (`posttrain/rewards/code/`), and languages other than Python.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from posttrain.evaluate.tasks.files import TaskFile
from posttrain.evaluate.tasks.kinds.generate import Generate, GenerateFile, Reward
from posttrain.types import Problem

COLUMNS = {
    *("prompt", "setup", "entry_point", "canonical_solution", "atol", "timeout"),
    *("tests", "test", "stdin_tests", "base_input", "plus_input"),
}
"""Columns that the reward `code` reads."""
SPOILED = "    return None\n"
RUN = re.compile("~+")


@dataclass
class CodeFile(GenerateFile):
    """Keys of a task whose replies are programs. The reward reads the columns of the row that have the names
    which it knows, and those of `columns`; one that is None there is not read."""

    reward: Reward = field(default_factory=lambda: Reward("code"))


class Code(Generate):
    """Replies are programs, and tests judge them."""

    File: ClassVar[type[TaskFile]] = CodeFile
    votes: ClassVar[bool] = False

    @property
    def read_by_reward(self) -> set[str]:
        return COLUMNS | super().read_by_reward

    def judged(self, completion: str, problem: Problem) -> str:
        text = super().judged(completion, problem)
        return text if self.spec.chat else fenced(text)

    def gold_reply(self, problem: Problem) -> str | None:
        return self._written(problem.answer, problem)

    def spoiled_reply(self, problem: Problem) -> str | None:
        """The program with functions that return None."""
        return self._written(spoiled(problem.answer), problem)

    def _written(self, program: str, problem: Problem) -> str:
        if not self.spec.chat:
            return program
        opened = problem.prefill.count("```") % 2
        return f"{program}\n```" if opened else f"```python\n{program}\n```"


def fenced(program: str) -> str:
    """`program` in a fence that none of its own lines closes."""
    mark = "~" * max(3, *(len(run) + 1 for run in RUN.findall(program)), 0)
    return f"{mark}python\n{program}\n{mark}"


def spoiled(program: str) -> str:
    """`program` with each function and method returning None; of a body without its `def`, such a body."""
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError):
        return SPOILED
    cut = _Cut()
    cut.visit(tree)
    return ast.unparse(tree) if cut.found else "pass"


class _Cut(ast.NodeTransformer):
    found = False

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        self.found = True
        node.body = [ast.Return(ast.Constant(None))]
        return node
