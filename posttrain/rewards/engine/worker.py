"""The process in which a reward runs; pool.py starts `main(["FD", "MEMORY_MB", "PARENT"])`.

It reads chunks of checks from a socket, answers each check as soon as it is done, and dies with its parent.
Messages are JSON, so that nothing in a completion can make either side construct an object. Left out: time
limits; pool.py measures the time and kills.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
from dataclasses import asdict, fields
from multiprocessing.connection import Connection
from typing import Any

from posttrain.base.process import die_with_parent
from posttrain.errors import RequestError
from posttrain.rewards.engine.call import call
from posttrain.rewards.registry import Bound, Spec, find
from posttrain.types import Example


def pack(message: Any) -> bytes:
    """Plain values as bytes. Lone surrogates, NaN and NUL survive; other objects become their text."""
    return json.dumps(message, default=str).encode("ascii")


def unpack(data: bytes) -> Any:
    """The inverse of `pack`, except that tuples come back as lists."""
    return json.loads(data)


def clocks() -> list[float]:
    """[monotonic seconds, CPU seconds of this process], sent when the next check begins."""
    return [time.monotonic(), time.process_time()]


def as_fields(example: Example) -> dict[str, Any]:
    """The fields of `example` that are set."""
    values = ((f.name, getattr(example, f.name)) for f in fields(example))
    return {name: value for name, value in values if value not in (None, "", {})}


def main(argv: list[str]) -> int:
    """Serves chunks until the socket closes; the exit code."""
    connection, memory_mb, parent = Connection(int(argv[0])), int(argv[1]), int(argv[2])
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            _serve(connection, unpack(connection.recv_bytes()))
        except (EOFError, OSError):
            return 0


def _serve(connection: Connection, chunk: dict[str, Any]) -> None:
    """One chunk: sends `ready` once the reward is loaded, then one verdict for each check."""
    for path in chunk["path"]:
        if path not in sys.path:
            sys.path.append(path)
    try:
        bound = Bound(_prepared(chunk["name"]), chunk["options"])
        connection.send_bytes(pack({"ready": clocks()}))
        for index, completion, example in chunk["checks"]:
            verdict = asdict(call(bound, completion, Example(**example)))
            connection.send_bytes(pack({"index": index, "verdict": verdict, "clocks": clocks()}))
    except RequestError as error:
        connection.send_bytes(pack({"refused": str(error)}))


_PREPARED: dict[str, Spec] = {}


def _prepared(name: str) -> Spec:
    """The reward called `name`, with its slow imports done."""
    if name not in _PREPARED:
        spec = find(name)
        if spec.prepare is not None:
            spec.prepare()
        _PREPARED[name] = spec
    return _PREPARED[name]
