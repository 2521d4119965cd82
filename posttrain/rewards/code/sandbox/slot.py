"""A slot: one zygote and the caller's side of its checks: the clock, the streams, the end of every child.

A slot serves one check at a time. All deadlines are enforced here, by killing. Left out: who gets a slot
(`pool`).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

from posttrain.rewards.code.sandbox.backends import Unusable, plan
from posttrain.rewards.code.sandbox.bundle import message
from posttrain.rewards.code.sandbox.streams import Exchange, exactly, unframe

START_S = 30.0
"""Seconds a zygote may take to become ready."""
REPLY_S = 10.0
"""Seconds a zygote may take to end its children."""
GRACE_S = 0.05
"""Seconds that a process may take to end by itself once it has nothing left to do."""
LARGEST_REPORT, LARGEST_STDERR = 1 << 20, 1 << 16
"""Bytes."""
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "TZ": "UTC",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class SlotLost(Exception):
    """The zygote ended or does not answer: the checker's failure, not the program's."""


@dataclass(slots=True)
class Ended:
    """How a check ended: the report of the tester, or the streams of a program."""

    timed_out: bool = False
    report: dict[str, Any] | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    flooded: bool = False
    ended: dict[str, list] = field(default_factory=dict)
    """{role: [exit code or minus signal, seconds of CPU, peak KiB]}"""

    @property
    def code(self) -> int | None:
        """Exit code of the candidate, or minus the signal that ended it."""
        return self.ended["candidate"][0] if "candidate" in self.ended else None


class Slot:
    """A zygote behind the walls of `backend`. For one thread at a time."""

    def __init__(self, backend: str, number: int = 0):
        self.backend, self.number = backend, number
        self.process: subprocess.Popen | None = None
        self.control: socket.socket | None = None
        self.about: dict[str, Any] = {}
        self.owner = os.getpid()

    # ---- life

    def start(self) -> None:
        """Starts the zygote. Raises `Unusable` with the reason that it reports."""
        command, config = plan(self.backend, self.number)
        ours, theirs = socket.socketpair()
        try:
            self.process = subprocess.Popen(
                command,
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                env=ENVIRONMENT,
                close_fds=True,
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise Unusable(f"{command[0]}: {error.strerror}") from None
        finally:
            theirs.close()
        self.control = ours
        ours.settimeout(START_S)
        try:
            ours.sendall(message(config))
            self.about = self.hear(START_S)
        except (SlotLost, OSError) as error:
            said = self.complaint()
            self.stop()
            raise Unusable(said or f"the zygote did not start ({error})") from None
        self.process.stderr.close()
        if "failed" in self.about:
            self.stop()
            raise Unusable(self.about["failed"])

    def complaint(self) -> str:
        """The last line that a zygote which failed to start wrote to standard error."""
        try:
            self.process.kill()
            lines = self.process.communicate(timeout=REPLY_S)[1].decode(errors="replace").strip()
            return lines.splitlines()[-1][:300] if lines else ""
        except (OSError, subprocess.SubprocessError, ValueError):
            return ""

    def stop(self) -> None:
        """Ends the zygote and everything it started, and waits for it. Safe to call twice or in a fork."""
        control, process = self.control, self.process
        self.control = self.process = None
        if control is not None:
            control.close()
        if process is None or self.owner != os.getpid():
            return
        if process.stderr:
            process.stderr.close()
        try:
            process.wait(1.0)  # it ends its children, then itself
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.owner == os.getpid() and self.process.poll() is None

    # ---- talk

    def say(self, what: dict, fds: list[int] | None = None) -> None:
        body = json.dumps(what).encode()
        try:
            socket.send_fds(self.control, [len(body).to_bytes(4, "big") + body], fds or [])
        except (OSError, AttributeError) as error:
            raise SlotLost(f"the sandbox process has ended ({error})") from None

    def hear(self, seconds: float) -> dict:
        try:
            self.control.settimeout(seconds)
            size = int.from_bytes(exactly(self.control, 4), "big")
            return json.loads(exactly(self.control, size))
        except (OSError, ValueError, AttributeError) as error:
            raise SlotLost(f"the sandbox process does not answer ({error})") from None

    # ---- checks

    def test(self, payload: bytes, seconds: float, memory: int) -> Ended:
        """Runs the tests in a tester and the program in a candidate. `payload`: a message of `frame`."""
        ours, theirs = socket.socketpair()
        with ours:
            try:
                self.say(
                    {"do": "fork", "what": "tests", "memory": memory, "seconds": seconds}, [theirs.fileno()]
                )
            finally:
                theirs.close()
            exchange = Exchange({ours: payload}, {ours: 8 + LARGEST_REPORT})
            answer = exchange.run(time.monotonic() + seconds)[ours]
            out = Ended(timed_out=exchange.timed_out, flooded=exchange.flooded)
            self.finish(out)
            report = unframe(answer)
            if report is not None:
                out.report, out.timed_out = report, False
            return out

    def script(self, payload: bytes, stdin: bytes, seconds: float, memory: int, most: int) -> Ended:
        """Runs one program with its standard input. Reads at most `most` bytes of standard output."""
        pairs = [socket.socketpair() for _ in range(2)] + [os.pipe() for _ in range(2)]
        (load, load_in), (feed, feed_in), (stdout, out_in), (stderr, err_in) = pairs
        handed = [load_in.fileno(), feed_in.fileno(), out_in, err_in]
        outs = [open(fd, "rb", buffering=0) for fd in (stdout, stderr)]  # noqa: SIM115
        try:
            try:
                self.say({"do": "fork", "what": "script", "memory": memory, "seconds": seconds}, handed)
            finally:
                load_in.close()
                feed_in.close()
                os.close(out_in)
                os.close(err_in)
            exchange = Exchange({load: payload, feed: stdin}, {outs[0]: most, outs[1]: LARGEST_STDERR})
            got = exchange.run(time.monotonic() + seconds)
            out = Ended(timed_out=exchange.timed_out, flooded=exchange.flooded)
            self.finish(out, 0.0 if out.timed_out or out.flooded else GRACE_S * 20)
            out.stdout, out.stderr = got[outs[0]], got[outs[1]]
            return out
        finally:
            for each in (load, feed, *outs):
                each.close()

    def finish(self, out: Ended, grace: float = GRACE_S) -> None:
        self.say({"do": "wait", "grace": 0.0 if out.timed_out else grace})
        reply = self.hear(REPLY_S)
        out.ended = reply["ended"]
        if "failed" in out.ended and not out.timed_out:
            raise SlotLost(f"the process of the {out.ended['failed']} could not be confined")
        if not reply["clean"]:
            self.stop()  # the next check gets a fresh one
