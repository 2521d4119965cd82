"""Processes of rewards killed from outside while a batch is checked: all verdicts are what they would have
been, or the check that was running is an `error`."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import psutil
import pytest

from posttrain.base.stop import Stopped, StopRequest
from posttrain.rewards import bind, score_batch
from posttrain.rewards.engine.pool import pool
from posttrain.types import Example
from tests.rewards import probes  # noqa: F401  (registers)

PROBES = "tests.rewards.probes"
PROGRAM = "import time\ndef add(a, b):\n    time.sleep(0.4)\n    return a + b\n"
WRONG = PROGRAM.replace("a + b", "a - b")
SCRIPT = "import time\ntime.sleep(0.4)\nprint(int(input()) + 1)\n"


class Killer(threading.Thread):
    """Kills a child of this process that `chosen` accepts, up to `times` times, every `every` seconds."""

    def __init__(self, chosen, times: int, every: float = 0.3) -> None:
        super().__init__(daemon=True)
        self.chosen, self.times, self.every = chosen, times, every
        self.killed, self.done = 0, threading.Event()

    def run(self) -> None:
        while self.killed < self.times and not self.done.wait(self.every):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if self.chosen(process):
                        process.kill()
                        self.killed += 1
                        break

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.join()


def is_worker(process: psutil.Process) -> bool:
    return "posttrain.rewards.engine.worker" in " ".join(process.cmdline())


@pytest.mark.slow
def test_workers(capfd):
    texts = ["0.05"] * 120
    sleeps = bind(f"{PROBES}:sleeps")
    score_batch(sleeps, ["0"], [Example()], workers=2)

    def at_work(process: psutil.Process) -> bool:
        """In a check: five in a row that are killed while they start are taken for ones that cannot."""
        return process.pid in {w.process.pid for w in list(pool(2)._all) if w.began}

    with Killer(at_work, 6) as killer:
        verdicts = score_batch(sleeps, texts, [Example()] * len(texts), workers=2)
    assert killer.killed >= 3
    failed = [v for v in verdicts if v.status == "error"]
    assert len(failed) <= killer.killed // 2 and all("died twice" in v.reason for v in failed)
    assert {v.value for v in verdicts if v.status != "error"} == {1.0}
    assert "Traceback" not in capfd.readouterr().err


def code_rows() -> tuple[list[str], list[Example], list[float]]:
    functions = Example(extra={"tests": ["assert add(1, 2) == 3"]})
    script = Example(extra={"stdin_tests": [{"stdin": "1\n", "stdout": "2\n"}]})
    texts = [PROGRAM, WRONG, SCRIPT] * 4
    return texts, [functions, functions, script] * 4, [1.0, 0.0, 1.0] * 4


def sandboxed(process: psutil.Process) -> bool:
    """A process of the sandbox: it does not run our interpreter's command lines of workers."""
    return not is_worker(process)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["zygote", "check"])
def test_the_sandbox(which, capfd):
    """Its zygotes, or the processes they fork for a check: a tester, a candidate."""
    code, (texts, rows, values) = bind("code", {"timeout": 5.0}), code_rows()
    assert [v.value for v in score_batch(code, texts[:3], rows[:3])] == values[:3]

    def chosen(process: psutil.Process) -> bool:
        leaf = not process.children()
        return sandboxed(process) and leaf == (which == "check") and time.time() - process.create_time() > 0.1

    with Killer(chosen, 3, every=0.7) as killer:
        verdicts = score_batch(code, texts, rows)
    assert killer.killed >= 1
    failed = [v for v in verdicts if v.status == "error"]
    assert len(failed) <= killer.killed // 2
    assert [v.value for v in verdicts if v.status != "error"] == [
        value for v, value in zip(verdicts, values, strict=True) if v.status != "error"
    ]
    assert [v.value for v in score_batch(code, texts[:3], rows[:3])] == values[:3]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"{PROBES}:sleeps", "probe-thread"])
def test_checks_in_progress_are_abandoned_when_the_process_is_asked_to_stop(name):
    began = time.monotonic()
    with StopRequest() as stop, pytest.raises(Stopped):
        stop.can_save = True
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        score_batch(bind(name), ["1.5"] * 40, [Example()] * 40, workers=2)
    assert time.monotonic() - began < 6


@pytest.mark.slow
def test_a_program_that_kills_itself_is_still_zero():
    texts = ["import os, signal\nos.kill(os.getpid(), 9)", "import os\nos.kill(os.getppid(), 9)"]
    row = Example(extra={"tests": ["assert add(1, 2) == 3"]})
    verdicts = score_batch(bind("code", {"timeout": 5.0}), texts, [row] * 2)
    assert [(v.status, v.value) for v in verdicts] == [("scored", 0.0)] * 2
