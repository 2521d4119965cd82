"""Ranks without a process group: each notices within a second that another has ended, and says how."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from posttrain.base.stop import Stopped, StopRequest
from posttrain.errors import RequestError, WorkError
from posttrain.rundir.directory import RunDir
from posttrain.rundir.lock import DirectoryLock
from posttrain.stages.ranks import Ranks

OTHER = """\
import sys
from posttrain.base.process import rank
from posttrain.base.stop import Stopped
from posttrain.errors import WorkError
from posttrain.rundir.directory import RunDir
from posttrain.stages.ranks import Ranks
run = RunDir(sys.argv[1])
if rank() == 0:
    run.lock()
with Ranks(run):
    print("in", flush=True)
    how = sys.stdin.readline().strip()
    if rank() == 0:
        run.update(status=how, error="why")
    elif how != "finished":
        raise (Stopped if how == "stopped" else WorkError)("why")
"""


@pytest.fixture
def other(tmp_path, monkeypatch):
    """`other(rank)`: a process that is that rank of two; this one is the other."""
    started = []
    RunDir(tmp_path / "run").path.mkdir()
    RunDir(tmp_path / "run").update(status="running", recipe_hash="h")

    def start(rank: int) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(tmp_path / "run")],
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "in\n"
        monkeypatch.setenv("RANK", str(1 - rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def unwatched(monkeypatch):
    """The thread does not look; the test does."""
    monkeypatch.setattr(Ranks, "_watch", lambda self: None)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("how", "kind", "text"),
    [
        ("finished", None, ""),
        ("stopped", Stopped, "rank {rank} was stopped: why"),
        ("failed", WorkError, "rank {rank} failed: why"),
        (
            "killed",
            WorkError,
            "rank {rank} (process {pid} on host {host}) has died; run the same command to resume",
        ),
    ],
)
def test_how_another_rank_has_ended(tmp_path, other, unwatched, rank, how, kind, text):
    run, process = RunDir(tmp_path / "run"), other(rank)
    with Ranks(run) as ranks:
        assert ranks.look() is None, "it lives"
        if how == "killed":
            process.kill()
            process.wait()
        else:
            process.communicate(how + "\n")
        found = ranks.look()
        expected = text.format(rank=rank, pid=process.pid, host=socket.gethostname())
        assert (type(found) if found else None, str(found or "")) == (
            kind,
            expected,
        )
    assert not (run.path / ".ranks" / "0").exists()
    assert rank == 0 or not (run.path / ".ranks").exists(), "rank 0 has finished: nothing is left"


def test_a_rank_of_an_earlier_start_is_not_one_that_died(tmp_path, other, unwatched):
    process = other(1)
    process.kill()
    process.wait()
    with Ranks(RunDir(tmp_path / "run")) as ranks:
        assert ranks.look() is None


def test_what_is_done_is_cut_off_where_a_rank_dies(tmp_path, other):
    process, begun = other(1), time.monotonic()
    with pytest.raises(KeyboardInterrupt), StopRequest(), Ranks(RunDir(tmp_path / "run")) as ranks:
        while not ranks._seen:
            time.sleep(0.01)
        process.kill()
        time.sleep(30)
    assert "has died" in str(ranks.trouble) and time.monotonic() - begun < 10


def test_a_rank_is_one_process(tmp_path, other, unwatched, monkeypatch):
    process = other(1)
    monkeypatch.setenv("RANK", "1")
    with (
        pytest.raises(RequestError, match=rf"is being written by process {process.pid} of"),
        Ranks(RunDir(tmp_path / "run")),
    ):
        pass


def test_the_others_wait_until_the_main_process_has_begun(tmp_path, monkeypatch):
    monkeypatch.setattr("posttrain.stages.ranks.PATIENCE_S", 0.2)
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    ranks = Ranks(run)
    ranks.wait_for_start("h")  # this is the main process
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(WorkError, match="rank 0 has not begun"):
        ranks.wait_for_start("h")
    run.update(recipe_hash="other")
    with pytest.raises(WorkError, match="rank 0 has not begun"):
        ranks.wait_for_start("h")
    run.update(recipe_hash="h")
    ranks.wait_for_start("h")


def test_looking_at_a_lock_keeps_nobody_from_taking_it(tmp_path):
    lock = DirectoryLock(tmp_path / "a")
    assert lock.holder() is None
    lock.take()
    assert DirectoryLock(lock.folder).holder()["pid"] == os.getpid()
    lock.release()
    lock.folder.mkdir(exist_ok=True)
    lock.file.touch()
    looking = os.open(lock.file, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.05, os.close, (looking,)).start()
    lock.take()
    lock.release()
