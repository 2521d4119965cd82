"""Messages between the two processes: eight bytes of length, then JSON. Each end limits what it reads."""

import json
import os

LARGEST = 32 << 20
"""Bytes of one message; a larger value is refused, whichever end sends it."""


class Gone(BaseException):
    """The other end has ended, or broke the format. Not an Exception, so that no test catches it."""


class TooLarge(Exception):
    """A message of ours that the other end would refuse."""


def send(fd, message):
    """Writes one message. Raises `TooLarge`, or `Gone` if the other end is closed."""
    body = json.dumps(message, separators=(",", ":"), check_circular=False).encode()
    if len(body) > LARGEST:
        raise TooLarge(f"a value of {len(body) >> 20} MiB; at most {LARGEST >> 20}")
    view = memoryview(len(body).to_bytes(8, "big") + body)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except OSError:
            raise Gone("the process ended") from None


def receive(fd):
    """The next message, a dict. Raises `Gone` if the other end is closed or breaks the format."""
    size = int.from_bytes(_exactly(fd, 8), "big")
    if size > LARGEST:
        raise Gone("a message that is too large")
    body = _exactly(fd, size)
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        raise Gone("a message that breaks the format") from None
    if not isinstance(message, dict):
        raise Gone("a message that breaks the format")
    return message


def _exactly(fd, size):
    parts = []
    while size:
        try:
            part = os.read(fd, min(size, 1 << 20))
        except OSError:
            part = b""
        if not part:
            raise Gone("the process ended")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
