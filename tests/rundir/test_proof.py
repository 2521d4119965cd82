"""The proof of a checkpoint ends with the request to stop: a large model takes minutes to read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from posttrain.base.files import hash_of
from posttrain.base.stop import Stopped, StopRequest, left_at_once, stop_main_thread
from posttrain.rundir import proof
from posttrain.rundir.proof import FACTS, MARKER, damage, proved

pytestmark = pytest.mark.slow
SIZE = 200 << 30
"""Of a sparse file, which takes no room."""
SAMPLE = 128 << 20
"""Part that is read to tell how long all of it would take."""
SHARE = 0.5
"""Of that time, in which a process that was asked to stop ends."""


@pytest.fixture
def bound_s(large) -> float:
    """Of the machine as it is now, which may be loaded."""
    part = large.parent / "part"
    with part.open("wb") as file:
        file.truncate(SAMPLE)
    begun = time.monotonic()
    hash_of(part)
    return (time.monotonic() - begun) * SIZE / SAMPLE * SHARE


@pytest.fixture
def large(tmp_path):
    folder = tmp_path / "step-000004"
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(SIZE)
    entry = {"bytes": SIZE, "xxh3": "0" * 32}
    (folder / FACTS).write_text(json.dumps({"step": 4, "files": {"model.safetensors": entry}}))
    (folder / MARKER).write_text(hash_of(folder / FACTS))
    return folder


@pytest.mark.parametrize("saving", [False, True])
def test_a_model_that_is_proved_while_it_loads(large, bound_s, saving):
    """Also the loading of a checkpoint to score it, during training."""
    with StopRequest() as stop:
        stop.can_save = saving
        threading.Timer(0.3, stop_main_thread).start()
        begun = time.monotonic()
        with pytest.raises(Stopped if saving else KeyboardInterrupt), left_at_once(), proved(large):
            time.sleep(2 * bound_s)
    assert time.monotonic() - begun < bound_s


ALONE = """\
import sys, time
from pathlib import Path
from posttrain.base.stop import StopRequest
from posttrain.rundir.directory import RunDir
from posttrain.stages.resume import start_proof
with StopRequest() as stop:
    found = start_proof(RunDir(sys.argv[1]), 6)
    print("begun", flush=True)
    try:
        time.sleep(float(sys.argv[2]))
        raise ValueError("the model cannot be loaded")
    finally:
        stop.ending = True
"""


@pytest.mark.parametrize("how", ["signal", "failure"])
def test_the_proof_of_a_run_does_not_outlive_it(large, bound_s, root, how):
    """It runs in a thread, for which the interpreter waits before it exits."""
    run = large.parent / "run"
    (run / "checkpoints").mkdir(parents=True)
    large.rename(run / "checkpoints" / large.name)
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE, str(run), str(2 * bound_s if how == "signal" else 0.2)],
        env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.3)
        if how == "signal":
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=bound_s)
    finally:
        process.kill()
        process.communicate()


def test_a_checkpoint_of_an_earlier_version_too(large, bound_s, monkeypatch):
    facts = {"step": 4, "digest": "0" * 16}
    (large / FACTS).write_text(json.dumps(facts))
    (large / MARKER).write_text("")
    monkeypatch.setattr(proof, "THREADS", 1)
    with StopRequest() as stop:
        stop.can_save = True
        threading.Timer(0.3, stop_main_thread).start()
        begun = time.monotonic()
        with pytest.raises(Stopped):
            damage(large)
    assert time.monotonic() - begun < bound_s
