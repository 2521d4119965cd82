"""Text of rows, names and files cannot drive the terminal, and no encoding of it ends a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from posttrain.base.printable import UNSAFE, printable, server_of
from tests.recipe.minimal import MINIMAL

HOSTILE = "\x1b]0;owned\x07\x1b[2J\rover\u202egnp\x9b31m"
ROW = json.dumps({"prompt": f"Say {HOSTILE}", "completion": f"[bold]no[/bold] {HOSTILE} \u2713"})
CODES = "\\x1b]0;owned\\x07\\x1b[2J\\x0dover\\u202egnp\\x9b31m"


def test_what_is_spelt_out():
    assert printable(HOSTILE) == CODES
    assert printable("a\r\nb\tc \u2713 \u8bad \ud83d") == "a\nb\tc \u2713 \u8bad \\ud83d"


def test_of_a_url_the_host():
    assert server_of("https://user:pw@host:8000/v1/KEY?k=KEY#KEY") == "https://host:8000"


def test_log_lines_are_printable(capfd):
    """In a process of its own: logging is set up once."""
    program = (
        "import logging; from posttrain.base.process import log_to_stderr; log_to_stderr();"
        f"logging.getLogger('posttrain').info('source %s', {HOSTILE!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == f"source {CODES}\n"


@pytest.fixture
def rows(tmp_path) -> Path:
    """A recipe on rows with control sequences, under a name and a template of letters beyond ASCII."""
    (tmp_path / "rows.jsonl").write_text(ROW + "\n")
    values = yaml.safe_load(MINIMAL) | {"name": "\u8bad\u7ec3", "output_dir": str(tmp_path / "runs")}
    values["data"]["sources"][0] |= {"path": str(tmp_path / "rows.jsonl"), "name": "\u884c"}
    values["data"]["template"] = "chatml"
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values, allow_unicode=True))
    return tmp_path / "r.yaml"


ENCODINGS = [
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "utf-8"},
]


def posttrain(*words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | environment
    return subprocess.run([sys.executable, "-m", "posttrain", *words], capture_output=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS, ids=["ascii", "C", "utf-8"])
def test_rows_are_shown_whatever_they_hold(rows, encoding):
    done = posttrain("check", str(rows), "--rows", "1", **encoding)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    text = done.stdout.decode("ascii" if encoding != ENCODINGS[2] else "utf-8")
    assert not UNSAFE.search(text) and CODES in text and "[bold]no[/bold]" in text
    assert ("\u2713" if encoding == ENCODINGS[2] else "\\u2713") in text


@pytest.mark.slow
@pytest.mark.parametrize("command", ["show", "report", "rewards", "help", "missing", "json"])
def test_no_command_ends_at_an_encoding(rows, command):
    run = rows.parent / "runs" / "\u8bad\u7ec3"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(rows.read_text())
    status = {"name": "\u8bad\u7ec3", "stage": "sft", "status": "failed", "error": f"\u274c {HOSTILE}"}
    (run / "run.json").write_text(json.dumps(status))
    words = {
        "show": ["show", str(run)],
        "report": ["report", str(run)],
        "rewards": ["rewards", "list"],
        "help": ["check", "--help"],
        "missing": ["show", str(run) + "\u202e"],
        "json": ["show", str(run), "--json"],
    }[command]
    done = posttrain(*words, **ENCODINGS[0])
    assert b"Traceback" not in done.stderr
    assert done.returncode == (2 if command == "missing" else 0)
    assert not UNSAFE.search((done.stdout + done.stderr).decode("ascii"))
    if command == "json":
        assert json.loads(done.stdout)["name"] == "\u8bad\u7ec3"


@pytest.mark.slow
def test_half_a_character_on_the_command_line(rows):
    """Bytes that are not UTF-8 reach Python as halves of surrogate pairs."""
    done = posttrain("check", str(rows), b"name=a\xff".decode(errors="surrogateescape"))
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert rb"name contains '\udcff', which no text file can hold" in done.stderr
    done = posttrain(b"ch\xffck".decode(errors="surrogateescape"))
    assert done.returncode == 2 and rb"unknown command 'ch\udcffck'" in done.stderr
