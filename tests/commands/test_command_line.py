"""Words and flags, before any work is done."""

from __future__ import annotations

import pytest

from posttrain.cli import COMMANDS


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
