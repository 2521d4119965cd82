"""One writer in a directory: who has the lock is said, the dead do not keep it, links do not go around it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from posttrain.base.files import append_jsonl, read_jsonl
from posttrain.errors import RequestError
from posttrain.rundir import lock as module
from posttrain.rundir.lock import DirectoryLock
from posttrain.rundir.scores import ScoreStore
from posttrain.stages.schedule import run_pipeline
from tests.recipe.minimal import MINIMAL
from tests.rundir.written import stored

HERE = socket.gethostname()
HOLDS = """\
import os, sys, time
from pathlib import Path
from posttrain.rundir.lock import DirectoryLock
DirectoryLock(Path(sys.argv[1])).take()
if "fork" in sys.argv and os.fork():
    os._exit(0)
print("taken", os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder():
    """`holder(folder)` starts a process that holds the lock of `folder`."""
    started = []

    def start(folder: Path, *more: str) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLDS, str(folder), *more]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        word, pid = process.stdout.readline().split()
        started.append((process, int(pid)))
        assert word == "taken"
        return process

    yield start
    for process, pid in started:
        for end in (process.kill, lambda pid=pid: os.kill(pid, 9)):
            with contextlib.suppress(ProcessLookupError):
                end()
        process.wait()


def refusal(folder: Path) -> str:
    with pytest.raises(RequestError) as caught:
        DirectoryLock(folder).take()
    return str(caught.value)


def test_the_refused_one_is_told_who_writes_and_the_killed_one_does_not_count(tmp_path, holder):
    run = tmp_path / "run"
    process = holder(run)
    text = refusal(run)
    owner = rf"process {process.pid} of {getpass.getuser()} on host {re.escape(HERE)} \(since 20.*Z\)"
    assert re.match(rf"{re.escape(str(run))} is being written by {owner}; wait until it has ended", text)
    process.kill()
    process.wait()
    assert json.loads((run / ".lock").read_text())["pid"] == process.pid, "its text is left behind"
    lock = DirectoryLock(run)
    lock.take()
    assert json.loads((run / ".lock").read_text())["pid"] == os.getpid()
    lock.release()
    assert not run.exists(), "nothing else was in it"


def test_a_child_that_outlives_its_parent_holds_the_lock_and_is_said_to(tmp_path, holder):
    process = holder(tmp_path / "run", "fork")
    process.wait()
    assert "is being written by a child of process" in refusal(tmp_path / "run")
    assert "which itself has ended" in refusal(tmp_path / "run")


@pytest.mark.parametrize("text", ["", "{", '{"pid": 1}', "[1]", "\x00\xff"])
def test_text_that_is_not_whole_is_no_obstacle(tmp_path, text):
    (tmp_path / ".lock").write_text(text)
    lock = DirectoryLock(tmp_path)
    lock.take()
    (tmp_path / ".lock").write_text(text)
    assert "is being written by another process; wait" in refusal(tmp_path)
    lock.release()


def test_a_link_is_the_same_directory(tmp_path):
    run, link = tmp_path / "run", tmp_path / "link"
    run.mkdir()
    link.symlink_to(run)
    for first, second in ((run, link), (link, run)):
        (run / "file").touch()
        lock = DirectoryLock(first)
        lock.take()
        assert f"{second} is being written by process {os.getpid()} of" in refusal(second)
        lock.release()
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    assert f"it is a link to {tmp_path / 'gone'}, which does not exist" in refusal(tmp_path / "dangling")


def test_a_file_removed_while_it_was_opened_is_no_lock(tmp_path, monkeypatch):
    """Another process released its lock, and removed the empty directory, between our open and our flock."""
    real, calls = fcntl.flock, []

    def flock(handle, operation):
        if not calls:
            (tmp_path / ".lock").unlink()
        calls.append(handle)
        real(handle, operation)

    monkeypatch.setattr(module.fcntl, "flock", flock)
    lock = DirectoryLock(tmp_path)
    lock.take()
    monkeypatch.undo()
    assert len(calls) == 2 and "is being written by" in refusal(tmp_path)
    lock.release()


@pytest.fixture
def no_locks(monkeypatch):
    """As on a file system without locks."""

    def refuse(handle, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(module.fcntl, "flock", refuse)


def write_lock(folder: Path, age: float, **owner) -> None:
    file = folder / ".lock"
    values = {"pid": os.getppid(), "user": "alice", "host": HERE, "since": "2026-01-01T00:00:00Z"} | owner
    file.write_text(json.dumps(values))
    os.utime(file, (time.time() - age,) * 2)


def gone() -> int:
    """The id of a process that has ended."""
    done = subprocess.Popen(["true"])
    done.wait()
    return done.pid


@pytest.mark.parametrize(
    ("age", "owner", "held"),
    [
        (10, {"host": "elsewhere", "pid": 7}, True),
        (module.SILENT_S + 10, {"host": "elsewhere", "pid": 7}, False),
        (10, {}, True),
        (10, {"pid": gone()}, False),
    ],
    ids=["alive elsewhere", "silent elsewhere", "alive here", "gone here"],
)
def test_without_locks_the_time_of_the_file_and_the_process_tell(tmp_path, no_locks, age, owner, held):
    write_lock(tmp_path, age, **owner)
    if held:
        text = refusal(tmp_path)
        assert f"of alice on host {owner.get('host', HERE)} (since 2026-01-01T00:00:00Z)" in text
        assert time.time() - (tmp_path / ".lock").stat().st_mtime > age - 1, "the refused one renewed it"
        return
    lock = DirectoryLock(tmp_path)
    lock.take()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    lock.release()
    DirectoryLock(tmp_path).take()


def test_without_locks_the_owner_renews_the_time(tmp_path, no_locks, monkeypatch):
    monkeypatch.setattr(module, "RENEW_S", 0.05)
    lock = DirectoryLock(tmp_path)
    lock.take()
    (tmp_path / "file").touch()
    os.utime(tmp_path / ".lock", (0, 0))
    until = time.monotonic() + 10
    while (tmp_path / ".lock").stat().st_mtime == 0 and time.monotonic() < until:
        time.sleep(0.02)
    assert (tmp_path / ".lock").stat().st_mtime > 0
    lock.release()
    time.sleep(0.2)
    os.utime(tmp_path / ".lock", (0, 0))
    time.sleep(0.2)
    assert (tmp_path / ".lock").stat().st_mtime == 0, "renewed after it was released"


def test_without_locks_lines_and_scores_are_written(tmp_path, no_locks):
    append_jsonl(tmp_path / "metrics.jsonl", {"step": 1})
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1}]
    assert ScoreStore(tmp_path).append([stored(1)]) == 1


def test_a_pipeline_is_run_by_one_process(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "r.yaml").write_text(MINIMAL.replace("a.jsonl", str(tmp_path / "rows.jsonl")))
    stages = [{"name": "s", "recipe": "r.yaml"}]
    values = {"pipeline": "p", "output_dir": str(tmp_path / "runs"), "stages": stages}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(values))
    lock = DirectoryLock(tmp_path / "runs" / "p")
    lock.take()
    with pytest.raises(RequestError, match=rf"p is being written by process {os.getpid()} of "):
        run_pipeline(str(tmp_path / "p.yaml"), [], Console())
    assert not (tmp_path / "runs" / "p" / "pipeline.json").exists()
    lock.release()
