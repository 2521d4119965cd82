"""The process in which a reward runs; pool.py starts `main(["FD", "MEMORY_MB", "PARENT"])` in a new interpreter.

Reads chunks of checks from a socket, answers each check as it is done, and dies with its parent. Messages are JSON,
so that nothing in a completion can make either side build an object. Left out: clocks; pool.py owns them and kills.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from dataclasses import asdict, fields
from multiprocessing.connection import Connection
from typing import Any

PR_SET_PDEATHSIG = 1
EXAMPLE_FIELDS = ("messages", "prompt", "completion", "answer", "p", "where", "extra")


def pack(message: Any) -> bytes:
    """Any plain value as bytes; lone surrogates, NaN and NUL pass."""
    return json.dumps(message, default=str).encode("ascii")


def unpack(data: bytes) -> Any:
    """What `pack` was given; tuples come back as lists, other objects as their text."""
    return json.loads(data)


def clocks() -> list[float]:
    """[monotonic seconds, CPU seconds of this process]: when the next check began."""
    return [time.monotonic(), time.process_time()]


def main(argv: list[str]) -> int:
    connection, memory_mb, parent = Connection(int(argv[0])), int(argv[1]), int(argv[2])
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            _serve(connection, unpack(connection.recv_bytes()))
        except (EOFError, OSError):
            return 0


def _serve(connection: Connection, chunk: dict[str, Any]) -> None:
    """One chunk: `ready` once the reward is loaded, then a verdict a check."""
    from posttrain.errors import RequestError
    from posttrain.rewards.engine.call import call
    from posttrain.types import Example

    for path in chunk["path"]:
        if path not in sys.path:
            sys.path.append(path)
    try:
        bound = _bound(chunk["name"], chunk["options"])
    except RequestError as error:
        connection.send_bytes(pack({"refused": str(error)}))
        return
    connection.send_bytes(pack({"ready": clocks()}))
    for index, completion, example in chunk["checks"]:
        try:
            verdict = asdict(call(bound, completion, Example(**example)))
        except RequestError as error:
            connection.send_bytes(pack({"refused": str(error)}))
            return
        connection.send_bytes(pack({"index": index, "verdict": verdict, "clocks": clocks()}))


_PREPARED: dict[str, Any] = {}


def _bound(name: str, options: dict[str, Any]) -> Any:
    from posttrain.rewards.registry import Bound, find

    if name not in _PREPARED:
        spec = find(name)
        if spec.prepare is not None:
            spec.prepare()
        _PREPARED[name] = spec
    return Bound(_PREPARED[name], options)


def as_fields(example: Any) -> dict[str, Any]:
    """The fields of an `Example` that are set."""
    values = ((f.name, getattr(example, f.name)) for f in fields(example))
    return {name: value for name, value in values if value not in (None, "", {})}


def _die_with(parent: int) -> None:
    """End when the parent ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the line above
        os._exit(1)
