"""Imports go downward: a file may use its own floor and the ones below. A file that has no floor fails too."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

FLOORS = [
    ["posttrain.__init__", "posttrain.cores", "posttrain.errors", "posttrain.files", "posttrain.types", "posttrain.registry",
     "posttrain.guarded", "posttrain.quiet"],
    ["posttrain.recipe"],
    ["posttrain.data", "posttrain.rewards"],
    ["posttrain.losses", "posttrain_kernels"],
    ["posttrain.model", "posttrain.fused", "posttrain.generate", "posttrain.generate_vllm"],
    ["posttrain.training", "posttrain.rollouts"],
    ["posttrain.sft", "posttrain.dpo", "posttrain.rlvr", "posttrain.pairs", "posttrain.pass_rate", "posttrain.kto", "posttrain.entry", "posttrain.stage", "posttrain.sampling", "posttrain.preflight", "posttrain.export", "posttrain.chat",
     "posttrain.evaluate"],
    ["posttrain.check", "posttrain.pipeline", "posttrain.running", "posttrain.cli", "posttrain.parser"],
]  # fmt: skip
HEAVY = ("torch", "transformers", "datasets", "trl", "accelerate")


def floor(module: str) -> int:
    """The floor of `module`: that of the longest name in the table which it is or lies below."""
    module = "posttrain.__init__" if module == "posttrain" else module
    named = [
        (len(n), i)
        for i, names in enumerate(FLOORS)
        for n in names
        if f"{module}.".startswith(f"{n}.")
    ]
    assert named, (
        f"{module} has no floor: give it one in tests/test_layers.py and in the tree of README.md"
    )
    return max(named)[1]


def modules(root: Path) -> dict[str, Path]:
    files = [
        *(root / "posttrain").rglob("*.py"),
        *(root / "kernels" / "posttrain_kernels").rglob("*.py"),
    ]
    bases = {"posttrain": root, "posttrain_kernels": root / "kernels"}
    return {
        ".".join(f.relative_to(bases["posttrain" if (root / "posttrain") in f.parents else "posttrain_kernels"])
                 .with_suffix("").parts): f for f in files
    }  # fmt: skip


def imports(name: str, path: Path, known: set[str]) -> set[str]:
    """Modules of ours that module `name` imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = name.split(".")[: -node.level] if node.level else []  # from . import x
            base = ".".join([*start, *([node.module] if node.module else [])])
            below = {f"{base}.{alias.name}" for alias in node.names}
            found |= {each if each in known else base for each in below}
    return {each for each in found if each.split(".")[0] in ("posttrain", "posttrain_kernels")}


def test_imports_go_downward(root):
    known = modules(root)
    assert len(known) > 50 and all(floor(name) >= 0 for name in known)
    packages = {name.removesuffix(".__init__") for name in known}
    edges = [
        (name, other) for name, path in known.items() for other in imports(name, path, packages)
    ]
    assert len(edges) > 100
    upward = [
        f"{a} (floor {floor(a)}) imports {b} (floor {floor(b)})"
        for a, b in edges
        if floor(b) > floor(a)
    ]
    assert not upward, "\n".join(upward)
    foreign = [
        f"{a} imports {b}"
        for a, b in edges
        if a.startswith("posttrain_kernels") and b.split(".")[0] == "posttrain"
    ]
    assert not foreign, "\n".join(foreign)


@pytest.mark.parametrize("recipe", ["gsm8k-llama-1b.yaml", "quickstart/pipeline.yaml"])
def test_reading_a_recipe_imports_no_torch(root, recipe):
    """Floors 0 and 1, the command and `posttrain check`, in an interpreter of their own."""
    light = [name.removesuffix(".__init__") for name in modules(root) if floor(name) <= 1]
    light += [
        "posttrain.cli",
        "posttrain.check",
        "posttrain.pipeline",
        "posttrain.running",
        "posttrain.training.plan",
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {light!r}: importlib.import_module(name)\n"
        f"code = importlib.import_module('posttrain.cli').main(['check', {str(root / 'recipes' / recipe)!r}])\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=root
    )
    assert done.returncode == 0, done.stderr[-2000:]
