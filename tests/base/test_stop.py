"""Signals become a flag once there is something to save, and end the process before that."""

from __future__ import annotations

import os
import signal

import pytest

from posttrain.base.stop import SIGNALS, StopRequest


def test_nothing_to_save_yet():
    with StopRequest() as stop:
        for number in SIGNALS:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        assert not stop.requested


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


def test_a_request_that_never_interrupts(capsys):
    with StopRequest((signal.SIGINT,), "the stages end first", interrupts=False) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested and capsys.readouterr().err == "\nSIGINT: the stages end first\n"


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in SIGNALS] == before
