"""Rooms of the house: a file imports its own room and the rooms below it, and no files import each other in a
circle.

`ROOMS` is the one list of rooms, from the ground up. Imports inside functions count like those at the top of
a file; so do imports under `TYPE_CHECKING`.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOMS = [
    ("posttrain", "posttrain.types", "posttrain.errors"),
    ("posttrain.base",),
    ("posttrain.recipe",),
    ("posttrain.data",),
    ("posttrain.rundir",),
    ("posttrain.generation",),
    ("posttrain.rewards",),
    ("posttrain_kernels",),
    ("posttrain.losses",),
    ("posttrain.models",),
    ("posttrain.rollouts",),
    ("posttrain.training",),
    ("posttrain.evaluate",),
    ("posttrain.report",),
    ("posttrain.stages",),
    ("posttrain.sft", "posttrain.dpo", "posttrain.rlvr", "posttrain.pairs", "posttrain.pass_rate"),
    ("posttrain.commands",),
    ("posttrain.cli", "posttrain.__main__"),
]
LAZY = ("posttrain.cli", "posttrain.commands")
"""Where an import inside a function serves a quick start; elsewhere only optional packages are imported
late."""
OPTIONAL = ("triton",)
"""Packages that need not be installed: a module of ours that imports one at its top may be imported late."""
HEAVY = ("torch", "transformers", "datasets", "trl", "accelerate")


def room(module: str) -> int:
    """The place of `module` in `ROOMS`: that of the longest name there that it is or lies below."""
    named = [
        (len(name), place)
        for place, names in enumerate(ROOMS)
        for name in names
        if module == name or (name != "posttrain" and module.startswith(f"{name}."))
    ]
    assert named, f"{module} is in no room: put it into one, or add a room to ROOMS in {__file__}"
    return max(named)[1]


def modules(root: Path) -> dict[str, Path]:
    """Module name -> file."""
    found = {}
    for base, package in ((root, "posttrain"), (root / "kernels", "posttrain_kernels")):
        for file in (base / package).rglob("*.py"):
            name = ".".join(file.relative_to(base).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = file
    return found


def imports(name: str, path: Path, known: set[str]) -> set[tuple[str, bool]]:
    """(module of ours that module `name` imports, whether inside a function)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            start = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            below = {alias.name: f"{base}.{alias.name}" for alias in node.names}
            names = {full if full in known else base for full in below.values()}
        else:
            continue
        found |= {
            (n, id(node) in inside) for n in names if n.split(".")[0] in ("posttrain", "posttrain_kernels")
        }
    return {(other, lazy) for other, lazy in found if other != name}


@pytest.fixture(scope="module")
def edges(root) -> list[tuple[str, str, bool]]:
    """(importer, imported, whether inside a function) over the whole product."""
    files = modules(root)
    found = [
        (name, other, lazy)
        for name, path in files.items()
        for other, lazy in sorted(imports(name, path, set(files)))
    ]
    assert len(files) > 200 and len(found) > 500
    return found


def test_a_file_imports_its_own_room_and_those_below(edges):
    upward = [f"{a} imports {b}" for a, b, _ in edges if room(b) > room(a)]
    assert not upward, "\n".join(upward)


def test_evaluation_knows_neither_training_nor_report(edges):
    """Training calls it through a callable that is passed in, and callers write what is made from scores."""
    rooms = ("posttrain.training", "posttrain.report", "posttrain.stages", "posttrain.rollouts")
    found = [
        f"{a} imports {b}" for a, b, _ in edges if a.startswith("posttrain.evaluate") and b.startswith(rooms)
    ]
    assert not found, "\n".join(found)


def test_a_whole_recipe_is_taken_only_where_stages_are_put_together(root):
    """Everything else takes the section it reads."""
    allowed = (
        "posttrain.recipe",
        "posttrain.rundir.directory",
        "posttrain.stages",
        "posttrain.commands",
        *ROOMS[-3],
    )
    recipes = re.compile(r"\b\w*Recipe\b")
    found = [
        f"{name}.{function.name}({argument.arg}: {ast.unparse(argument.annotation)})"
        for name, path in modules(root).items()
        if not name.startswith(allowed)
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
        if argument.annotation is not None and recipes.search(ast.unparse(argument.annotation))
    ]
    assert not found, "\n".join(found)


def test_the_kernels_know_nothing_of_posttrain(edges):
    foreign = [
        f"{a} imports {b}"
        for a, b, _ in edges
        if a.startswith("posttrain_kernels") and not b.startswith("posttrain_kernels")
    ]
    assert not foreign, "\n".join(foreign)


def test_no_files_import_each_other_in_a_circle(edges):
    """A package stands for its `__init__`; what a file gets from its own package's `__init__` counts too."""
    graph: dict[str, set[str]] = {}
    for a, b, _ in edges:
        graph.setdefault(a, set()).add(b)
    assert not circles(graph), "\n".join(" <-> ".join(sorted(c)) for c in circles(graph))


def needs_optional(path: Path) -> bool:
    """Whether the file imports an optional package when it is imported itself."""
    top = ast.parse(path.read_text(encoding="utf-8")).body
    names = [alias.name for node in top if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in top if isinstance(node, ast.ImportFrom) and not node.level]
    return any(name.split(".")[0] in OPTIONAL for name in names)


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Strongly connected parts of more than one file."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for other in graph.get(todo.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        return seen

    reach = {name: reached(name) for name in graph}
    found: list[set[str]] = []
    for name in graph:
        if name in reach[name] and not any(name in circle for circle in found):
            found.append({other for other in reach[name] if name in reach.get(other, ())})
    return found


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_imports_inside_functions_serve_the_start_of_a_command(edges, root):
    """Our own modules are imported late only by the command line, or where they need an optional package."""
    files = modules(root)
    late = [
        f"{a} imports {b} inside a function"
        for a, b, lazy in edges
        if lazy and not a.startswith(LAZY) and not needs_optional(files[b])
    ]
    assert not late, "\n".join(sorted(late))


@pytest.mark.parametrize("recipe", ["gsm8k-llama-1b.yaml", "quickstart/pipeline.yaml"])
def test_reading_a_recipe_imports_no_torch(root, recipe):
    """The lowest rooms, the command and `posttrain check`, in an interpreter of their own."""
    light = [name for name in modules(root) if room(name) <= room("posttrain.recipe")]
    light += ["posttrain.cli", "posttrain.commands.check", "posttrain.stages.pipeline"]
    program = (
        "import importlib, sys\n"
        f"for name in {light!r}: importlib.import_module(name)\n"
        "command = importlib.import_module('posttrain.cli').main\n"
        f"code = command(['check', {str(root / 'recipes' / recipe)!r}])\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=root
    )
    assert done.returncode == 0, done.stderr[-2000:]
