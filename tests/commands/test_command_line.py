"""Words and flags, before any work is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from posttrain.cli import COMMANDS, main


def test_no_command_shows_what_there_is(call):
    answer = call()
    assert answer.code == 2
    for name in COMMANDS:
        assert any(f"\n    {name}{end}" in answer.err for end in " \n")


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help(call, name):
    answer = call(*([name] if name else []), "--help")
    assert answer.code == 0
    assert answer.out.startswith("usage: posttrain")
    for text in (line for line in answer.out.splitlines() if line.startswith("  --")):
        assert text.strip(), "every flag is described"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["sweep", "r.yaml", "loss.n=1,2", "--name", ""], "--name"),
        (["sweep", "r.yaml", "loss.n=1,2", "--seeds="], "--seeds"),
        (["run", "r.yaml", "--accelerate", ""], "--accelerate"),
        (["report", "runs/x", "--out", ""], "--out"),
        (["report", "runs/x", ""], "runs"),
        (["compare", "a", "b", "--task", ""], "--task"),
        (["show", ""], "run"),
    ],
)
def test_an_empty_value_does_not_count_as_left_out(call, words, what):
    """As an unset variable of a shell gives it."""
    call(*words).refuses(f"{what} is empty; give a value, or leave it out")


@pytest.mark.parametrize("name", ["run", "check"])
def test_what_a_file_may_be(call, name):
    assert "a recipe, pipeline or sweep YAML" in " ".join(call(name, "--help").out.split())
    assert "recipe, pipeline or sweep" in next(text for key, (_, text) in COMMANDS.items() if key == name)


LOADED = """
import contextlib, io, json, sys
from posttrain.cli import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main(sys.argv[1:])
print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_imports_the_module_of_its_command_only(root, name):
    """No other command, and nothing that takes seconds to import."""
    words = [name, "--help"] if name else ["--help"]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words],
        env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    loaded = set(json.loads(done.stdout))
    modules = {f"posttrain.commands.{module}" for module, _ in COMMANDS.values()}
    parts = {"train"} if name == "run" else set()  # `run` starts a stage as `train` does
    asked = {f"posttrain.commands.{part}" for part in ({COMMANDS[name][0]} if name else set()) | parts}
    assert loaded & modules == asked
    assert not loaded & {"torch", "transformers", "datasets", "trl", "matplotlib"}


def test_every_command_declares_arguments_and_work():
    import importlib

    for module in {module for module, _ in COMMANDS.values()}:
        loaded = importlib.import_module(f"posttrain.commands.{module}")
        assert callable(loaded.arguments) and callable(loaded.run), module


@pytest.mark.parametrize("module", ["posttrain", "posttrain.cli"])
def test_it_runs_as_a_module(root, module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"],
        env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.split()[:1]) == (0, ["posttrain"]), done.stderr


def test_the_script_calls_main():
    """`posttrain` of pyproject.toml."""
    from importlib.metadata import entry_points

    (script,) = {e.value: e for e in entry_points(group="console_scripts", name="posttrain")}.values()
    assert script.load() is main


def test_version(call):
    from posttrain import __version__

    assert call("--version").out == f"posttrain {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["chekc", "x.yaml"], ["unknown command 'chekc' (did you mean 'check'?)"]),
        (["check"], ["required: recipe\n"]),
        (["check", "x.yaml", "--rnaks", "2"], ["'--rnaks' (did you mean '--ranks'?)"]),
        (["check", "x.yaml", "--ranks", "0"], ["--ranks: '0' must be a whole number of at least 1"]),
        (["check", "x.yaml", "--ranks", "two"], ["'two' must be a whole number"]),
        (["check", "x.yaml", "--rows", "-1"], ["'-1' must be a whole number"]),
        (["show", "a", "b"], ["unrecognized argument 'b'"]),
        (["eval", "a", "--tsak", "gsm8k"], ["'--tsak' (did you mean '--task'?)"]),
        (["chat", "a", "--temperature", "nan"], ["'nan' must be a number of at least 0"]),
        (["export", "a", "b", "--dtype", "int8"], ["'int8' (choose from"]),
        (["report"], ["required: runs"]),
        (["--quiet", "check", "x.yaml"], ["unrecognized argument '--quiet'"]),
    ],
)
def test_wrong_words(call, argv, words):
    answer = call(*argv)
    assert answer.code == 2
    for word in words:
        assert word in answer.err
    assert "Traceback" not in answer.err


def test_settings_may_follow_an_option(call, plain_recipe):
    """argparse alone refuses `check R --ranks 2 key=value`."""
    answer = call("check", plain_recipe, "train.max_steps=9", "--ranks", "2", "train.max_steps=7")
    assert answer.code == 0
    assert "= 1 (micro) x 2 (ranks) x 4 (accumulation)" in answer.out
    assert "steps: 7" in answer.out


def test_a_stage_run_by_its_path_is_told_how(root):
    """The folder of the script comes first on the path, and with it a module called types."""
    command = [sys.executable, "-S", str(root / "posttrain" / "sft.py"), "recipe.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 1 and done.stderr.startswith("error: run a stage by `posttrain run RECIPE`")
    assert len(done.stderr.splitlines()) == 1
