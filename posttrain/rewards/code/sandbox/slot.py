"""One zygote and the caller's side of its checks: the clock, the streams, the end of every child.

A `Slot` serves one check at a time; `pool` hands slots out. All deadlines are enforced here, by killing.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

from posttrain.rewards.code.sandbox.backends import Unusable, plan
from posttrain.rewards.code.sandbox.bundle import message

START_S = 30.0
"""Seconds a zygote may take to stand ready."""
REPLY_S = 10.0
"""Seconds it may take to end its children."""
GRACE_S = 0.05
LARGEST_REPORT = 1 << 20
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
    """The zygote is gone or does not answer: the checker's failure, not the program's."""


@dataclass(slots=True)
class Ended:
    """How a check ended: `report` of the judge, or the streams of a program."""

    timed_out: bool = False
    report: dict[str, Any] | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    flooded: bool = False
    ended: dict[str, list] = field(default_factory=dict)
    """{role: [exit code or minus signal, seconds of CPU, peak KiB]}"""

    @property
    def code(self) -> int | None:
        """Exit code of the candidate, minus the signal that ended it."""
        return self.ended["candidate"][0] if "candidate" in self.ended else None


class Slot:
    """A zygote behind the walls of `backend`. Not for two threads at once."""

    def __init__(self, backend: str, number: int = 0):
        self.backend, self.number = backend, number
        self.process: subprocess.Popen | None = None
        self.control: socket.socket | None = None
        self.about: dict[str, Any] = {}
        self.owner = os.getpid()

    # ---- life

    def start(self) -> None:
        """Raises `Unusable` with what the zygote says is wrong."""
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
        """What a start that failed wrote to standard error."""
        try:
            self.process.kill()
            lines = self.process.communicate(timeout=REPLY_S)[1].decode(errors="replace").strip()
            return lines.splitlines()[-1][:300] if lines else ""
        except (OSError, subprocess.SubprocessError, ValueError):
            return ""

    def stop(self) -> None:
        """Ends the zygote and all that it started; waits for it. Safe to call twice, and in a forked copy."""
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
            raise SlotLost(f"the sandbox process is gone ({error})") from None

    def hear(self, seconds: float) -> dict:
        try:
            self.control.settimeout(seconds)
            size = int.from_bytes(exactly(self.control, 4), "big")
            return json.loads(exactly(self.control, size))
        except (OSError, ValueError, AttributeError) as error:
            raise SlotLost(f"the sandbox process does not answer ({error})") from None

    # ---- checks

    def judge(self, payload: bytes, seconds: float, memory: int) -> Ended:
        """Tests in the judge, the program in the candidate. `payload` is a message of `inside.wire`."""
        ours, theirs = socket.socketpair()
        with ours:
            try:
                self.say(
                    {"do": "fork", "what": "judge", "memory": memory, "seconds": seconds}, [theirs.fileno()]
                )
            finally:
                theirs.close()
            out = Ended()
            deadline = time.monotonic() + seconds
            answer = exchange({ours: payload}, {ours: 8 + LARGEST_REPORT}, deadline, out)[ours]
            self.finish(out)
            if len(answer) >= 8 and len(answer) == 8 + int.from_bytes(answer[:8], "big"):
                out.report, out.timed_out = json.loads(answer[8:]), False
            return out

    def script(self, payload: bytes, stdin: bytes, seconds: float, memory: int, most: int) -> Ended:
        """One program with its standard input. At most `most` bytes of each stream are read."""
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
            out = Ended()
            deadline = time.monotonic() + seconds
            got = exchange({load: payload, feed: stdin}, {outs[0]: most, outs[1]: 1 << 16}, deadline, out)
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
            raise SlotLost(f"the {out.ended['failed']} could not be confined")
        if not reply["clean"]:
            self.stop()  # the next check gets a fresh one


def frame(message: dict[str, Any]) -> bytes:
    """A message as `inside.wire` reads it."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return len(body).to_bytes(8, "big") + body


def exchange(writes: dict, reads: dict, deadline: float, out: Ended) -> dict:
    """Writes and reads until every read end is closed (or full), or the deadline: then `out.timed_out`."""
    got = {end: bytearray() for end in reads}
    left = {end: memoryview(data) for end, data in writes.items()}
    open_reads = set(reads)
    with selectors.DefaultSelector() as selector:
        for end in {*writes, *reads}:
            os.set_blocking(end.fileno(), False)
            mask = (selectors.EVENT_WRITE if end in left else 0) | (
                selectors.EVENT_READ if end in reads else 0
            )
            selector.register(end, mask)
        while open_reads:
            wait = deadline - time.monotonic()
            if wait <= 0:
                out.timed_out = True
                break
            for key, events in selector.select(wait):
                end, mask = key.fileobj, key.events
                if events & selectors.EVENT_WRITE:
                    try:
                        left[end] = left[end][os.write(end.fileno(), left[end][: 1 << 18]) :]
                    except BlockingIOError:
                        pass
                    except OSError:
                        left[end] = left[end][:0]
                    if not left[end]:
                        mask &= ~selectors.EVENT_WRITE
                        if end not in reads:
                            end.shutdown(socket.SHUT_WR) if isinstance(end, socket.socket) else None
                if events & selectors.EVENT_READ:
                    try:
                        part = os.read(end.fileno(), 1 << 18)
                    except BlockingIOError:
                        continue
                    except OSError:
                        part = b""
                    got[end] += part
                    full = len(got[end]) > reads[end]
                    out.flooded |= full
                    if not part or full or complete(got[end], end in writes):
                        open_reads.discard(end)
                        mask &= ~selectors.EVENT_READ
                if out.flooded:
                    open_reads.clear()
                if mask != key.events:
                    selector.modify(end, mask) if mask else selector.unregister(end)
    return {end: bytes(data) for end, data in got.items()}


def complete(data: bytearray, framed: bool) -> bool:
    """Whether a framed answer is all there."""
    return framed and len(data) >= 8 and len(data) >= 8 + int.from_bytes(data[:8], "big")


def exactly(control: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = control.recv(size - len(data))
        if not part:
            raise OSError("closed")
        data += part
    return data
