"""A stage as its pipeline sees it: what it reads of damaged files, a stage that does not stop, a failing
schedule.

The stages are little programs that follow the log of a real one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time

import psutil
import pytest
from rich.console import Console

from posttrain.errors import WorkError
from posttrain.recipe import load
from posttrain.stages import child, schedule, stage_process
from posttrain.stages.stage_process import StageProcess, facts_of, finished, last_step

DEAF = """\
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
{more}
print("deaf", flush=True)
time.sleep(60)
"""
ROW = '{"split": "train", "step": 7, "loss": 2.5}\n'


def row(step: int, split: str = "train", loss: str = "1.5") -> str:
    return f'{{"step": {step}, "split": "{split}", "loss": {loss}}}\n'


@pytest.fixture
def program(monkeypatch):
    """`program(text)`: what every stage runs instead."""

    def use(text: str) -> None:
        monkeypatch.setattr(stage_process, "launcher", lambda accelerate: [sys.executable, "-c", text])

    for name, value in {"STOP_S": 1.0, "ASK_AGAIN_S": 0.3, "HURRY_S": 0.3}.items():
        monkeypatch.setattr(child, name, value)
    monkeypatch.setattr(schedule, "POLL_S", 0.02)
    return use


@pytest.fixture
def pipeline(recipe):
    path = recipe.parent / "pipeline.yaml"
    path.write_text(
        f"pipeline: chain\nparallel: 2\noutput_dir: {recipe.parent}\nstages:\n"
        "  - {name: first, recipe: case.yaml}\n  - {name: second, recipe: case.yaml}\n"
    )
    return path


def run(pipeline) -> None:
    schedule.run_pipeline(str(pipeline), [], Console(stderr=True))


def states(pipeline) -> dict[str, dict]:
    return {s["name"]: s for s in json.loads((pipeline.parent / "chain/pipeline.json").read_text())["stages"]}


def stages() -> list[psutil.Process]:
    """Children of this process that are no workers which earlier tests left to it."""
    children = [p for p in psutil.Process().children() if p.pid not in BEFORE]
    return [p for p in children if p.status() != psutil.STATUS_ZOMBIE]


BEFORE: set[int] = set()


@pytest.fixture(autouse=True)
def _before():
    BEFORE.clear()
    BEFORE.update(p.pid for p in psutil.Process().children())


def send(pipeline, *numbers: int) -> threading.Thread:
    """Sends this process signals, each after a moment, once both stages are deaf."""

    def work() -> None:
        root = pipeline.parent / "chain"
        deadline = time.monotonic() + 30
        while sum("deaf" in file.read_text() for file in root.glob("*.log")) < 2:
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.1)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", (0, None)),
        (row(1) + row(2), (2, 1.5)),
        (row(1) + row(2, "heldout"), (1, 1.5)),
        (row(1) + '{"step": 2, "spl', (1, 1.5)),
        (row(1) + '\x00\x00{"split": "train"}\n[1]\n"a"\nnull\n', (1, 1.5)),
        (row(1) + '{"split": "train", "step": "2"}\n', (1, 1.5)),
        (row(3, loss="null"), (3, None)),
        (row(3, loss='"x"'), (3, None)),
        ("[" * 100_000 + "\n", (0, None)),
    ],
)
def test_the_last_step_of_any_metrics(tmp_path, text, found):
    file = tmp_path / "metrics.jsonl"
    assert last_step(file) == (0, None)
    file.write_text(text)
    assert last_step(file) == found


def test_only_the_end_of_long_metrics_is_read(tmp_path):
    """100,000 steps. Reading all of them takes half a second, which is the time between two looks."""
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(row(i) for i in range(100_000)))
    begun = time.perf_counter()
    assert last_step(file) == (99_999, 1.5)
    assert time.perf_counter() - begun < 0.25


@pytest.mark.parametrize(
    "text", ['{"status": "fini', "[1]", "null", "\udcff", '{"chunks": "many", "steps": [1]}']
)
def test_damaged_facts_are_for_the_stage_to_report(recipe, program, text):
    program("")
    stage = load(recipe)
    process = StageProcess(stage, recipe.parent, 1, None)
    run = recipe.parent / "case"
    run.mkdir()
    (run / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    assert facts_of(run) in ({}, {"chunks": "many", "steps": [1]})
    assert process.progress() == (0, 0, "preparing")
    assert not finished(stage)
    assert process.ending(1)["status"] == "failed"
    process.process.wait()


def test_an_end_by_a_signal_without_a_name(recipe, program):
    program("import os; os.kill(os.getpid(), 40)")
    process = StageProcess(load(recipe), recipe.parent, 1, None)
    assert process.ending(process.process.wait())["error"] == "ended by signal 40"


def test_seconds_are_those_of_all_starts(recipe, program):
    program("")
    process = StageProcess(load(recipe), recipe.parent, 1, None)
    process.process.wait()
    assert process.ending(0)["seconds"] < 60
    (recipe.parent / "case").mkdir()
    (recipe.parent / "case" / "run.json").write_text('{"seconds": 1234.5}')
    assert process.ending(0) == {"seconds": 1234.5, "status": "finished"}


def test_what_an_earlier_start_left_is_not_the_reason(recipe, program):
    """Killed before it has written anything, a stage did not stop as it did the last time."""
    (recipe.parent / "case").mkdir()
    (recipe.parent / "case" / "run.json").write_text('{"status": "stopped", "error": "stopped after step 2"}')
    (recipe.parent / "case.log").write_text("error: stopped after step 2\n")
    program("import os; os.kill(os.getpid(), 9)")
    process = StageProcess(load(recipe), recipe.parent, 1, None)
    found = process.ending(process.process.wait())
    assert (found["status"], found["error"]) == ("failed", "ended by SIGKILL")
    program("1 / 0")
    process = StageProcess(load(recipe), recipe.parent, 1, None)
    found = process.ending(process.process.wait())
    assert (found["status"], found["error"]) == ("failed", "ZeroDivisionError: division by zero")


RANKS = """
import os, signal, subprocess, sys, time
rank = "import signal, sys, time\\ndef save(*_):\\n    print('saved', flush=True)\\n    sys.exit(1)\\n"
rank += "signal.signal(signal.SIGUSR1, save)\\nprint('deaf', flush=True)\\ntime.sleep(60)"
sys.exit(subprocess.call([sys.executable, "-c", rank], start_new_session=True))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_handed_to_the_ranks_of_a_launcher(capfd, number):
    """The launcher itself would kill them; `posttrain run --accelerate` returns once they have saved."""

    def send() -> None:
        time.sleep(1.5)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    assert child.run_launched([sys.executable, "-c", RANKS], {}) == 1
    out, err = capfd.readouterr()
    assert "saved" in out and "the ranks save a checkpoint, then stop" in err


def test_a_stage_that_does_not_stop_is_asked_again_and_killed(pipeline, program):
    """It counts how often it is asked; what it started itself ends with it."""
    count = "signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))\n"
    count += "import subprocess; child = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
    count += "print('child', child.pid, flush=True)"
    program(DEAF.format(more=count).replace("time.sleep(60)", "while True: time.sleep(0.01)"))
    sender, begun = send(pipeline, signal.SIGTERM), time.monotonic()
    with pytest.raises(WorkError, match="stage first: killed: it had not ended 1 s after it was asked to"):
        run(pipeline)
    assert time.monotonic() - begun < 15
    sender.join()
    assert not stages()
    for name, state in states(pipeline).items():
        assert (state["status"], state["error"]) == (
            "stopped",
            "killed: it had not ended 1 s after it was asked to",
        )
        log = (pipeline.parent / "chain" / f"{name}.log").read_text()
        assert log.count("asked") in (3, 4)
        with contextlib.suppress(psutil.NoSuchProcess):
            child = psutil.Process(int(log.partition("child ")[2].split()[0]))
            assert child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("more", ["", "signal.signal(signal.SIGINT, signal.SIG_IGN)"])
def test_a_second_ctrl_c_ends_the_stages_at_once(pipeline, program, more):
    """They are interrupted, and killed where that does not help. No wait for `STOP_S`."""
    program(DEAF.format(more=more))
    child.STOP_S = 60.0  # set back with the others
    send(pipeline, signal.SIGINT, signal.SIGINT)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(pipeline)
    assert time.monotonic() - begun < 15 and not stages()
    for state in states(pipeline).values():
        assert state["status"] == "stopped", state
        assert ("killed" in state["error"]) == bool(more)


def test_a_failure_of_the_schedule_ends_the_stages_before_it_is_reported(pipeline, program, monkeypatch):
    program("import time; time.sleep(60)")
    calls = []

    def progress(self):
        calls.append(self.name)
        if len(calls) > 3:
            raise ValueError("the schedule fails")
        return 0, 0, "preparing"

    monkeypatch.setattr(StageProcess, "progress", progress)
    with pytest.raises(ValueError, match="the schedule fails"):
        run(pipeline)
    assert not stages()
    assert {s["status"] for s in states(pipeline).values()} == {"stopped"}
