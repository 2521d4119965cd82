"""The checkout as a whole: what is at the top, sizes, ignored files, recipes, make, integration."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import KINDS, ROOT

TOP = {
    "pyproject.toml",
    "recipes",
    "posttrain",
    "kernels",
    "tests",
    "launch",
    "README.md",
    "LICENSE",
    "Makefile",
    "CHANGELOG.md",
}
PUBLIC = {
    *("sft", "dpo", "rlvr", "pairs", "pass_rate"),  # one stage each
    *("cli", "__main__", "__init__", "types", "errors"),
}
"""Modules at the root of `posttrain/`: what a user runs or imports. Everything else belongs in a room."""
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
INDEX = re.compile(
    "|".join(
        ("pypi" + r"\.org", "python" + r"hosted\.org", r"download\.pytorch" + r"\.org", r"index" + "-url")
    )
)


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """Every file that is in the repository or would be after `git add .`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return sorted({ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()})


def test_nothing_else_lies_at_the_top(files):
    top = {path.relative_to(ROOT).parts[0] for path in files}
    assert {name for name in top if not name.startswith(".")} == TOP


def test_no_file_is_long(files):
    sizes = {
        str(p.relative_to(ROOT)): len(p.read_text().splitlines())
        for p in files
        if p.suffix == ".py" and p.relative_to(ROOT).parts[0] in ("posttrain", "kernels")
    }
    assert len(sizes) > 50
    assert not {name: n for name, n in sizes.items() if n > 300}


def test_only_the_public_surface_is_at_the_root_of_the_package():
    assert {path.stem for path in (ROOT / "posttrain").glob("*.py")} == PUBLIC


def test_every_room_says_what_it_does():
    """In the paragraph that opens its `__init__.py`."""
    rooms = list((ROOT / "posttrain").glob("*/__init__.py"))
    assert len(rooms) > 10
    for path in rooms:
        about = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert len(about) > 200 and "TODO" not in about, path


def test_format_and_line_length_have_no_exceptions(files):
    """A comment that switches the formatter off for a line, or allows a long one, hides it from review."""
    exception = re.compile(r"#\s*fmt:\s*(?:skip|off)|#\s*noqa\b(?!:)|#\s*noqa:.*\bE501\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        if path.suffix == ".py" and path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if exception.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("place", "ignored"),
    [
        ("runs/x/run.json", True),
        ("eval/x/scores.jsonl", True),
        ("posttrain/evaluate/eval/new.py", False),
        ("tests/runs/test_new.py", False),
        ("posttrain/build/new.py", False),
        ("posttrain/evaluate/__pycache__/new.pyc", True),
    ],
)
def test_git_ignores_outputs_and_no_sources(files, place, ignored):
    done = subprocess.run(["git", "check-ignore", "--no-index", "-q", place], cwd=ROOT)
    assert done.returncode == (0 if ignored else 1), place


@pytest.mark.slow
def test_kernels_is_no_package():
    """transformers probes a PyPI package of the name `kernels`; the folder must not pass for it."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    program = "import kernels, transformers; assert kernels.__file__ is None; transformers.LlamaForCausalLM"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_package_index_is_named(files):
    """Where packages come from is the machine's setting."""
    for path in files:
        found = INDEX.search(path.read_text(encoding="utf-8", errors="replace"))
        assert not found, f"{path}: {found[0]}"


# ---- recipes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(ROOT / "recipes")))
def test_recipes_load_and_pass_preflight(path, request, monkeypatch):
    from posttrain.recipe import Pipeline, load
    from posttrain.stages.pipeline import stage_recipes
    from posttrain.stages.preflight import preflight

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # on the machines they are for
    text = path.read_text()
    if "POSTTRAIN_DATA" in text:
        request.getfixturevalue("data_dir")
    recipe = load(str(path), [])
    if isinstance(recipe, Pipeline):
        stages = made = list(stage_recipes(recipe, path).values())
    else:  # what the recipes beside it make may be missing
        beside = [load(str(other), []) for other in path.parent.glob("*.yaml")]
        stages, made = [recipe], [other for other in beside if not isinstance(other, Pipeline)]
    coming = {f"{stage.output_dir}/{stage.name}" for stage in made}
    for stage in stages:
        preflight(stage, coming)
    header = text.split("\n", 1)[0] + "".join(line for line in text.splitlines() if line.startswith("#"))
    assert str(path.relative_to(ROOT)) in header, "the header shows the command"
    assert "Measured:" in header


def test_there_are_recipes():
    assert len(RECIPES) >= 5


# ---- make and continuous integration -----------------------------------------------------------------------


def dry_run(target: str) -> str:
    done = subprocess.run(["make", "-n", "-B", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_does_what_the_readme_says():
    readme = (ROOT / "README.md").read_text()
    assert "make quickstart" in readme and "make test" in readme
    quickstart, test = dry_run("quickstart"), dry_run("test")
    named = re.search(r"posttrain run (\S+)", quickstart)[1]
    assert (ROOT / named).is_file()
    for plan in (quickstart, test):  # torch by version before anything that would pull a newer one
        assert plan.index("pip install -q torch==") < plan.index("pip install -q -e .")
    assert "ruff check ." in test and "-m pytest" in test
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name.strip() for group in re.findall(r'"\.\[(.+?)\]"', test) for name in group.split(",")} <= set(
        extras
    )


def test_make_leaves_out_what_the_markers_say():
    """`make fast` leaves out every kind, `make test` the exhaustive tests, which `make exhaustive` runs."""
    assert f'-m "not ({" or ".join(KINDS)})"' in dry_run("fast")
    assert '-m "not exhaustive"' in dry_run("test") and "-m exhaustive" in dry_run("exhaustive")
    for target in ("fast", "test"):
        assert "ruff check ." in dry_run(target) and "ruff format --check ." in dry_run(target)
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert {line.split(":")[0] for line in options["markers"]} == set(KINDS)


def test_ci_runs_make_test_and_requires_kinds_that_tests_know():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    text = script.read_text()
    assert text.rstrip().endswith("make test")
    asked = set(re.search(r"POSTTRAIN_REQUIRE=(\S+)", text)[1].split(","))
    known = {
        kind
        for path in (ROOT / "tests").rglob("*.py")
        for kind in re.findall(
            r'require\(\s*"(\w+)"|"(\w+)" in os.environ.get\("POSTTRAIN_REQUIRE"', path.read_text()
        )
        for kind in kind
        if kind
    }
    assert {"data", "slurm", "chromium"} <= known <= asked
