"""The command as a user meets it: `call(...)` runs it in this process, `spawn(...)` in one of its own."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from posttrain.cli import main
from tests.commands.prepared import LONG, write
from tests.tiny import RECIPE, rows_file, tied, tiny
from tests.unigram import digits, write_recipe

ADDITION = (
    "evaluate.tasks=[{name: arithmetic, options: "
    "{generator: addition, digits: 1, train_size: 10, test_size: 20}}]"
)


@dataclass
class Answer:
    code: int
    out: str
    err: str

    def refuses(self, *words: str, code: int = 2) -> None:
        """A sentence on stderr that holds `words`, no traceback, the exit code."""
        assert self.code == code, self
        assert self.err.startswith("error: ") or "\nerror: " in self.err, self
        assert "Traceback" not in self.out + self.err
        for word in words:
            assert word in self.err, (word, self.err)


@pytest.fixture
def recipe(tmp_path, tiny, rows_file, monkeypatch) -> Path:
    """`case.yaml` in the working directory; its run would be `case` beside it."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "case.yaml"
    path.write_text(RECIPE.format(out=tmp_path, model=tiny, rows=rows_file))
    return path


@pytest.fixture
def plain_recipe(tmp_path, rows_file, monkeypatch) -> Path:
    """As `recipe`, from scratch: nothing here has to import torch."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "case.yaml"
    model = (
        "{init: null, tokenizer: 'builtin:bytes', from_config: {model_type: llama, "
        "options: {hidden_size: 32, max_position_embeddings: 512}}}"
    )
    text = RECIPE.replace("{{init: {model}}}", model.replace("{", "{{").replace("}", "}}"))
    path.write_text(text.format(out=tmp_path, rows=rows_file))
    return path


@pytest.fixture
def few(tmp_path):
    """19 rows: "ab" and "cde" are 26 tokens, 4 trained; and one that is too long."""
    return write(tmp_path / "few.jsonl", [{"prompt": "ab", "completion": "cde"}] * 19 + [LONG])


@pytest.fixture
def call(capfd, monkeypatch):
    def run(*argv: object, stdin: str = "") -> Answer:
        capfd.readouterr()
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            code = main([str(word) for word in argv])
        except SystemExit as exit:
            code = exit.code
        captured = capfd.readouterr()
        return Answer(code, captured.out, captured.err)

    return run


@pytest.fixture
def spawn(root, tmp_path):
    """Popen of the command in a process group of its own, as a terminal starts it."""
    started = []

    def start(*argv: object, **environment: str) -> subprocess.Popen:
        paths = f"{root}{os.pathsep}{root / 'kernels'}"
        process = subprocess.Popen(
            [sys.executable, "-m", "posttrain.cli", *map(str, argv)],
            env=os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""} | environment,
            # as at a terminal: a job started in the background inherits SIGINT as ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture(scope="session")
def finished(tiny, rows_file, tmp_path_factory) -> Path:
    """A run of four steps with checkpoints 0, 2, 4, each scored. Do not change it: copy it."""
    folder = tmp_path_factory.mktemp("finished")
    path = folder / "case.yaml"
    path.write_text(RECIPE.format(out=folder, model=tiny, rows=rows_file))
    steps = ("train.max_steps=4", "checkpoints.save_steps=2", "train.optim=adamw_torch")
    assert main(["run", str(path), *steps, "train.learning_rate=1e-3", ADDITION]) == 0
    return folder / "case"


@pytest.fixture
def run_copy(finished, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(finished, tmp_path / "case"))
