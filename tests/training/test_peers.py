"""A rank that is lost: the others learn which one it was, and why, from the store and from the processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time

import psutil
import pytest
import torch.distributed as dist

from posttrain.base.stop import StopRequest
from posttrain.errors import RequestError, WorkError
from posttrain.training import peers as module
from posttrain.training.peers import PeerLost, Peers, watched

HOST = socket.gethostname()


@pytest.fixture
def store(monkeypatch):
    """The store of a launch of two ranks, of which this process is rank 0."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(module, "POLL_S", 0.02)
    monkeypatch.setattr(module, "GRACE_S", 0.1)
    return dist.TCPStore("127.0.0.1", 0, 1, True)


@pytest.fixture
def other():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def come(store, process, host: str = HOST, begun: float | None = None) -> None:
    """Rank 1, as it puts itself into the store."""
    begun = psutil.Process(process.pid).create_time() if begun is None else begun
    store.set("1", json.dumps({"pid": process.pid, "host": host, "begun": begun}))


def watching(store, end=lambda sentence: None, stop: StopRequest | None = None) -> Peers:
    found = Peers(store, end, stop or StopRequest())
    time.sleep(0.2)
    return found


@pytest.mark.parametrize("reaped", [True, False])
def test_a_rank_that_is_killed(store, other, reaped):
    """A zombie, which nobody has waited for yet, has ended too."""
    ended = []
    come(store, other)
    peers = watching(store, ended.append)
    assert not peers.gone() and peers.lost() is None
    other.kill()
    if reaped:
        other.wait()
    sentence = f"rank 1 (process {other.pid} on host {HOST}) was killed or crashed"
    assert peers.lost(2) == sentence and peers.gone()
    assert store.get("lost").decode() == sentence, "the others say the same"
    time.sleep(0.5)
    assert ended[0] == sentence, "the main thread did nothing"
    peers.leaving.set()


def test_a_main_thread_that_ends_by_itself_is_left_alone(store, other):
    ended = []
    come(store, other)
    peers = watching(store, ended.append)
    peers.leaving.set()
    other.kill()
    time.sleep(0.5)
    assert not ended


def test_the_first_reason_is_the_one_of_all(store, other):
    come(store, other)
    peers = watching(store)
    store.set("lost", "rank 1 (process 7 on host a) failed: the disk is full")
    other.kill()
    assert peers.lost(2) == "rank 1 (process 7 on host a) failed: the disk is full"
    peers.tell("failed: because of that")
    assert store.get("lost") == b"rank 1 (process 7 on host a) failed: the disk is full"
    peers.leaving.set()


@pytest.mark.parametrize("about", [{"host": "elsewhere"}, {"begun": 1.0}])
def test_processes_that_cannot_be_seen_are_not_watched(store, other, about):
    """Of another host, or with ids of another container."""
    come(store, other, **about)
    peers = watching(store)
    other.kill()
    assert peers.lost(0.3) is None
    peers.leaving.set()


@pytest.fixture
def block(store, monkeypatch):
    """`watched` in a process group that has this store."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(module, "_get_default_store", lambda: store)
    monkeypatch.setattr(module, "PATIENCE_S", 1.0)
    monkeypatch.setattr(module, "_blocks", iter(range(1)))
    return dist.PrefixStore("posttrain/0", store)


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_error_of_a_collective_becomes_the_sentence(block, other, wrapped):
    """Also where it was turned into a sentence about what was being done, such as taking up a checkpoint."""
    with (
        pytest.raises(PeerLost, match=rf"rank 1 \(process {other.pid} on host .*\) was killed.*; go on"),
        StopRequest() as stop,
        watched(stop, lambda: "go on", lambda error: None),
    ):
        come(block, other)
        time.sleep(0.2)
        stop.can_save = True
        other.kill()
        other.wait()
        os.kill(os.getpid(), signal.SIGTERM)  # the launcher ends the ranks that are left
        assert not stop.requested
        error = RuntimeError("gloo: Connection closed by peer")
        if wrapped:
            raise WorkError("step-000003 cannot be resumed") from error
        raise error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RequestError("only here"), "failed: only here"),
        (MemoryError(), "failed: out of memory"),
        (KeyError("x"), "failed: KeyError: 'x'"),
        (OSError(28, "No space left on device"), "failed: the disk is full"),
    ],
)
def test_a_rank_that_fails_says_why(block, error, told):
    with (
        pytest.raises(type(error)),
        StopRequest() as stop,
        watched(stop, lambda: "go on", lambda error: None),
    ):
        raise error
    assert block.get("lost").decode() == f"rank 0 (process {os.getpid()} on host {HOST}) {told}"


def test_a_signal_to_one_rank_is_one_to_all(store, other):
    come(store, other)
    with StopRequest() as stop:
        stop.can_save = True
        peers = watching(store, stop=stop)
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.2)
        assert store.check([module.ASKED]), "the others are told"
        peers.leaving.set()
    with StopRequest() as stop:  # as on another rank
        peers = watching(store, stop=stop)
        assert not stop.requested, "nothing can be saved yet, and a signal would interrupt"
        stop.can_save = True
        time.sleep(0.2)
        assert stop.requested
        peers.leaving.set()


def test_a_rank_alone_has_no_peers():
    with StopRequest() as stop, watched(stop, lambda: "", lambda error: None):
        assert not stop.is_void()
