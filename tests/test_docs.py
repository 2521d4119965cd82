"""The documentation: every command in it runs as typed, every file it names exists, every YAML in it is a
recipe's.

Fenced `sh` blocks of README.md, of the rooms' pages and of those beside the data room's are run by bash in an
empty folder, with `posttrain` on the path and `recipes`, `launch` and `kernels` of the checkout beside it. A
block whose first line is a comment `# needs ...` or `# after ...` cannot run here: its commands are only
parsed.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = sorted(
    {ROOT / "README.md"}
    | {
        page
        for top in ("posttrain", "recipes", "launch", "kernels", "tests")
        for page in (ROOT / top).rglob("README.md")
    }
    | set((ROOT / "posttrain" / "data").glob("*.md"))
)
UNRUN = re.compile(r"# (needs|after) ")
COMMANDS = (
    "posttrain",
    "accelerate",
    "make",
    "pip",
    "source",
    "echo",
    "pytest",
    "python",
    "sbatch",
    "git",
    "cat",
    "cd",
)


def blocks() -> list[tuple[Path, int, str]]:
    """(page, line, text) of every `sh` block."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            found.append((page, text.count("\n", 0, match.start()) + 1, match[1]))
    return found


def named(block: tuple[Path, int, str]) -> str:
    return f"{block[0].relative_to(ROOT)}:{block[1]}"


RUN = [block for block in blocks() if not UNRUN.match(block[2])]
PARSED = [block for block in blocks() if UNRUN.match(block[2])]


def test_every_page_is_found():
    assert len(PAGES) >= 8 and len(RUN) >= 5 and len(PARSED) >= 3
    for page in PAGES:
        loose = re.findall(r"^```\n(?:posttrain|accelerate|make|pytest) .*", page.read_text(), re.MULTILINE)
        assert not loose, f"{page}: commands stand in a ```sh block: {loose}"


@pytest.mark.slow
@pytest.mark.parametrize("block", RUN, ids=named)
def test_a_block_runs_as_typed(block, tmp_path):
    page, line, text = block
    for name in ("recipes", "launch", "kernels", "posttrain", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    bin_folder = tmp_path / ".bin"
    bin_folder.mkdir()
    for name, module in (
        ("posttrain", "posttrain"),
        ("pytest", "pytest"),
        ("accelerate", "accelerate.commands.accelerate_cli"),
    ):
        script = bin_folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        script.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{bin_folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, f"{page}:{line}\n{text}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"


@pytest.mark.parametrize("block", PARSED, ids=named)
def test_a_block_that_cannot_run_here_is_made_of_real_commands(block, capsys):
    """Known programs, known subcommands and options, recipes and files that exist."""
    page, line, text = block
    joined = re.sub(r"\\\n\s*", " ", text)
    for command in joined.splitlines():
        words = shlex.split(command, comments=True)
        if not words:
            continue
        while words and re.fullmatch(r"\w+=\S*", words[0]):  # VARIABLE=value in front
            words = words[1:]
        assert words[0] in COMMANDS or words[0].startswith("$"), f"{page}:{line}: {command}"
        for word in words:
            if re.fullmatch(r"(?:recipes|launch|kernels|tests|posttrain)/[\w./-]+", word):
                assert (ROOT / word).exists(), f"{page}:{line}: {word}"
        if words[0] == "make":
            for target in words[1:]:
                if "=" not in target:
                    dry = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
                    assert dry.returncode == 0, f"{page}:{line}: {command}\n{dry.stderr}"
        if words[0] == "posttrain":
            check_options(words[1:], f"{page}:{line}: {command}", capsys)


def check_options(words: list[str], where: str, capsys) -> None:
    """`posttrain COMMAND --help` knows every option of the command line."""
    from posttrain.cli import main

    depth = 2 if words[0] == "rewards" else 1
    with pytest.raises(SystemExit) as leave:
        main([*words[:depth], "--help"])
    helped = capsys.readouterr().out
    assert leave.value.code == 0, where
    for option in re.findall(r"^--[\w-]+", "\n".join(words), re.MULTILINE):
        assert option in helped, f"{where}: {option}"


def test_files_named_in_the_pages_exist():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page}: {target}"
        for path in re.findall(
            r"`((?:recipes|launch|posttrain|kernels|tests)/[\w/.-]+\.(?:yaml|py|sh|png|md|jinja))`", text
        ):
            assert (ROOT / path).is_file(), f"{page}: {path}"


def test_the_readmes_stay_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
    assert len((ROOT / "posttrain" / "data" / "README.md").read_text().split()) <= 1700, "pages beside it"
