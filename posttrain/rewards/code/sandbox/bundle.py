"""The sources of `inside` as one message, and the program with which an empty interpreter reads them."""

from __future__ import annotations

import functools
import json
from pathlib import Path

ORDER = (
    "codec",
    "decode",
    "wire",
    "compare",
    "program",
    "proxies",
    "session",
    "seccomp",
    "limits",
    "landlock",
    "walls",
    "host",
    "survey",
    "tester",
    "script",
    "zygote",
)
"""Every module of `inside`, each after those that it imports."""

BOOT = """
import json, os, sys, types
def read(n):
    b = b''
    while len(b) < n:
        p = os.read(0, n - len(b))
        if not p: os._exit(1)
        b += p
    return b
m = json.loads(read(int.from_bytes(read(8), 'big')))
p = types.ModuleType('inside'); p.__path__ = []; sys.modules['inside'] = p
for n, s in m['modules']:
    x = types.ModuleType('inside.' + n); x.__package__ = 'inside'
    sys.modules['inside.' + n] = x; setattr(p, n, x)
    exec(compile(s, n + '.py', 'exec', dont_inherit=True), x.__dict__)
p.zygote.main(m['config'])
"""


@functools.cache
def modules() -> list[tuple[str, str]]:
    """(name, source) of every module, in order of import."""
    folder = Path(__file__).parent / "inside"
    return [(name, (folder / f"{name}.py").read_text(encoding="utf-8")) for name in ORDER]


def message(config: dict) -> bytes:
    """The first message to a zygote: eight bytes of length, then JSON with the sources and `config`."""
    body = json.dumps({"modules": modules(), "config": config}).encode()
    return len(body).to_bytes(8, "big") + body
