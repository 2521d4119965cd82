"""Signals become a flag once there is something to save, and end the process before that."""

from __future__ import annotations

import os
import signal

import pytest

from posttrain.base.stop import SIGNALS, Stopped, StopRequest, check_stop


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


def test_a_request_that_never_interrupts(capsys):
    with StopRequest((signal.SIGINT,), "the stages end first", interrupts=False) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    said = capsys.readouterr().err
    assert stop.requested and said == "\nSIGINT: the stages end first\nstopped 0.0 s after SIGINT\n"


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in SIGNALS] == before
