"""The caller's ends of the streams of a check: framed messages, and exchanges that stop at a deadline.

Left out: what the messages mean (`slot`), and the other end (`inside.wire`).
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import time
from typing import Any

PART = 1 << 18
"""Bytes that are read or written at once."""


def frame(message: dict[str, Any]) -> bytes:
    """A message as `inside.wire` reads it: eight bytes of length, then JSON."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return len(body).to_bytes(8, "big") + body


def unframe(data: bytes) -> dict[str, Any] | None:
    """The message that is exactly `data`; None if it is incomplete or followed by something else."""
    if len(data) < 8 or len(data) != 8 + int.from_bytes(data[:8], "big"):
        return None
    return json.loads(data[8:])


def exactly(control: socket.socket, size: int) -> bytes:
    """The next `size` bytes. Raises OSError if the socket closes before."""
    data = b""
    while len(data) < size:
        part = control.recv(size - len(data))
        if not part:
            raise OSError("closed")
        data += part
    return data


class Exchange:
    """Writes to some ends and reads from others until every read end is closed or full, or until a deadline.

    `writes`: {end: bytes to send}; `reads`: {end: most bytes}. An end is a socket or a file; one that is in
    both carries one message each way. After `run`, `timed_out` and `flooded` (an end sent more than it may)
    say why it stopped.
    """

    def __init__(self, writes: dict[Any, bytes], reads: dict[Any, int]):
        self.writes, self.most = frozenset(writes), reads
        self.left = {end: memoryview(data) for end, data in writes.items()}
        self.got = {end: bytearray() for end in reads}
        self.open = set(reads)
        self.timed_out = self.flooded = False

    def run(self, deadline: float) -> dict[Any, bytes]:
        """What each read end sent until `deadline`, a time of `time.monotonic`."""
        with selectors.DefaultSelector() as selector:
            for end in {*self.writes, *self.most}:
                os.set_blocking(end.fileno(), False)
                writing = selectors.EVENT_WRITE if end in self.writes else 0
                selector.register(end, writing | (selectors.EVENT_READ if end in self.most else 0))
            while self.open:
                wait = deadline - time.monotonic()
                if wait <= 0:
                    self.timed_out = True
                    break
                for key, events in selector.select(wait):
                    mask = self.serve(key.fileobj, events, key.events)
                    if self.flooded:
                        self.open.clear()
                    if mask != key.events:
                        selector.modify(key.fileobj, mask) if mask else selector.unregister(key.fileobj)
        return {end: bytes(data) for end, data in self.got.items()}

    def serve(self, end: Any, events: int, mask: int) -> int:
        """Writes and reads what an end is ready for. Returns the events to wait for next."""
        if events & selectors.EVENT_WRITE and self.write(end):
            mask &= ~selectors.EVENT_WRITE
        if events & selectors.EVENT_READ and self.read(end):
            mask &= ~selectors.EVENT_READ
        return mask

    def write(self, end: Any) -> bool:
        """Sends the next part. Returns whether all is sent, or nobody reads any more."""
        try:
            self.left[end] = self.left[end][os.write(end.fileno(), self.left[end][:PART]) :]
        except BlockingIOError:
            pass
        except OSError:
            self.left[end] = self.left[end][:0]
        if self.left[end]:
            return False
        if end not in self.most and isinstance(end, socket.socket):
            end.shutdown(socket.SHUT_WR)
        return True

    def read(self, end: Any) -> bool:
        """Takes the next part. Returns whether the end is closed or full, or its message complete."""
        try:
            part = os.read(end.fileno(), PART)
        except BlockingIOError:
            return False
        except OSError:
            part = b""
        got = self.got[end]
        got += part
        full = len(got) > self.most[end]
        self.flooded |= full
        complete = end in self.writes and len(got) >= 8 and len(got) >= 8 + int.from_bytes(got[:8], "big")
        if part and not full and not complete:
            return False
        self.open.discard(end)
        return True
