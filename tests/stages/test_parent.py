"""A process that belongs to a `posttrain run` ends with it, as on SIGTERM, through sessions and launchers."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from posttrain.base.stop import Stopped
from posttrain.errors import RequestError
from posttrain.stages import parent

PARENT = """\
import os, subprocess, sys, time
from pathlib import Path
from posttrain.stages.parent import child_environment
env = os.environ | child_environment(Path(sys.argv[1]))
print(subprocess.Popen(sys.argv[2:], env=env, start_new_session=True).pid, flush=True)
time.sleep(60)
"""
LAUNCHER = "import subprocess, sys; subprocess.call([sys.executable, *sys.argv[1:]], start_new_session=True)"
STAGE = """\
import logging, os, signal, sys, time
from pathlib import Path
from posttrain.stages import parent
logging.basicConfig(format="%(message)s")
parent.POLL_S, parent.STOP_S = 0.05, 1
signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in sys.argv else signal.SIG_DFL)
parent.end_with_parent()
Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(60)
"""


def until(true, what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.mark.parametrize("words", [[], ["deaf"]])
def test_a_stage_under_a_launcher_ends_with_a_killed_parent(tmp_path, monkeypatch, caplog, words):
    """Also one that is deaf to SIGTERM; the next start waits for it. A parent that nobody has waited for is a
    zombie, which counts as gone."""
    folder, started = tmp_path / "run", tmp_path / "pid"
    stage = [sys.executable, "-c", LAUNCHER, "-c", STAGE, str(started), *words]
    log = tmp_path / "log"
    with log.open("w") as out:
        run = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(folder), *stage], stdout=subprocess.PIPE, stderr=out
        )
    left = []
    try:
        launcher = psutil.Process(int(run.stdout.readline()))
        until(lambda: started.exists() and started.read_text(), "the stage does not start")
        rank = psutil.Process(int(started.read_text()))
        left = [launcher, rank]
        assert parent._orphans(folder) == [], "its parent lives"
        run.kill()
        until(lambda: run.pid not in parent._orphans(folder) and parent._orphans(folder), "not found")
        assert {launcher.pid, rank.pid} >= set(parent._orphans(folder))
        assert parent._orphans(tmp_path / "other") == []
        monkeypatch.setattr(parent, "POLL_S", 0.02)
        begun = time.monotonic()
        parent.wait_for_orphans(folder)
        assert time.monotonic() - begun < 5
        # a process whose memory is gone may still be about to end
        until(lambda: not parent.runs(rank) and not parent.runs(launcher), "still there", 2)
    finally:
        run.kill()
        run.wait()
        for process in left:
            if process.is_running():
                process.kill()
    ended = (
        f"the `posttrain run` that started this stage (process {run.pid}) has ended; stopping as on SIGTERM"
    )
    killed = ["this stage has not ended 1 s later: killed"] if words else []
    assert log.read_text().splitlines() == [ended, *killed]
    assert "of an earlier `posttrain run` to save and end" in caplog.text or not words


def test_what_does_not_end_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(parent, "_orphans", lambda folder: [7, 8])
    with pytest.raises(RequestError, match="process 7, 8 of an earlier `posttrain run` still runs"):
        parent.wait_for_orphans(tmp_path, patience_s=-1)


def test_a_stage_whose_parent_has_ended_before_does_not_start(tmp_path, monkeypatch):
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    for pid in (gone.pid, 2**22 + 1):
        monkeypatch.setenv(parent.PARENT, f"{pid} {tmp_path}")
        with pytest.raises(Stopped, match=rf"not started: .*\(process {pid}\) has ended"):
            parent.end_with_parent()


def test_a_younger_process_is_no_parent():
    """It has only taken the number of one that is gone."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        time.sleep(0.05)  # the clock of process starts ticks every hundredth of a second
        assert parent._older(os.getpid(), psutil.Process(child.pid)).pid == os.getpid()
        assert parent._older(child.pid, psutil.Process()) is None
    finally:
        child.kill()
        child.wait()
