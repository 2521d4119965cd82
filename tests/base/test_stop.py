"""Signals become a flag once there is something to save, and end the process before that."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest

from posttrain.base.stop import (
    SIGNALS,
    Stopped,
    StopRequest,
    check_stop,
    leave_signals_to_parent,
    left_at_once,
    stop_main_thread,
)


@pytest.mark.parametrize("number", SIGNALS)
def test_nothing_to_save_yet(number, capsys):
    with StopRequest(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    assert capsys.readouterr().err == f"stopped 0.0 s after {number.name}\n"


def test_long_work_asks_between_its_batches():
    check_stop()
    with StopRequest() as outer:
        with StopRequest() as stop:
            stop.can_save = True
            check_stop()
            os.kill(os.getpid(), signal.SIGUSR1)
            with pytest.raises(Stopped, match="stopped by SIGUSR1"):
                check_stop()
        check_stop()
        assert not outer.requested


def test_a_signal_that_comes_with_a_lost_rank_is_no_request(capsys):
    """The launcher ends the ranks that are left; no checkpoint can be saved without the others."""
    with StopRequest() as stop:
        stop.can_save, stop.is_void = True, lambda: True
        os.kill(os.getpid(), signal.SIGTERM)
        assert not stop.requested
        stop.can_save = False
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert not stop.requested
    assert capsys.readouterr().err == ""


def test_signals_do_not_disturb_the_record_of_a_failure(capsys):
    with StopRequest() as outer:
        with pytest.raises(ValueError), StopRequest() as stop:
            try:
                raise ValueError
            finally:
                stop.ending = True
                os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert not outer.requested and capsys.readouterr().err == ""


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_a_second_ctrl_c_interrupts(number, capsys):
    with StopRequest() as stop:
        stop.can_save = True
        os.kill(os.getpid(), number)
        assert stop.requested
        assert capsys.readouterr().err == f"\n{number.name}: saving a checkpoint, then stopping\n"
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err == f"stopped 0.0 s after {number.name}\n"


def test_a_call_that_cannot_ask_is_left_at_once():
    """The loading of a large model takes minutes."""
    with StopRequest() as stop:
        stop.can_save = True
        threading.Timer(0.1, stop_main_thread).start()
        begun = time.monotonic()
        with pytest.raises(Stopped, match="stopped by SIGTERM"), left_at_once():
            time.sleep(30)
        assert time.monotonic() - begun < 10
        os.kill(os.getpid(), signal.SIGTERM)  # only the first one interrupts
        with pytest.raises(Stopped), left_at_once():
            pytest.fail("begun after a signal")


def work(ready, sender) -> None:
    """A worker that says how often it was asked to go on."""
    leave_signals_to_parent()
    ready.send(os.getpid())
    while sender.recv():
        ready.send("works")


def test_a_worker_is_ended_by_its_parent_only():
    """A launcher signals the process group; `terminate` is the parent's own SIGTERM."""
    here, there = multiprocessing.Pipe()
    ask, asked = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=work, args=(there, asked))
    worker.start()
    pid = here.recv()
    for number in SIGNALS:
        assert os.spawnlp(os.P_WAIT, "kill", "kill", f"-{int(number)}", str(pid)) == 0  # another process
    time.sleep(0.2)
    ask.send(True)
    assert here.poll(5) and here.recv() == "works"
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in SIGNALS] == before
