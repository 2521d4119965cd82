"""What a back-end must prove on this machine before it is used: a program tries to get out of it, and fails.

Every probe is something that would succeed without walls. A probe that succeeds, a probe that does not run,
or a self-test that does not come back rules the back-end out; nothing is assumed from versions or settings.
The self-test takes about a quarter of a second, once per process. Left out: which back-ends are tried, and in
which order (`ladder`).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from posttrain.rewards.code.sandbox.backends import Unusable
from posttrain.rewards.code.sandbox.slot import Ended, Slot, SlotLost
from posttrain.rewards.code.sandbox.streams import frame

SECONDS = 20.0
MEMORY = 256 << 20

PROBES = r"""
import ctypes, json, os, socket, sys
told = json.loads(sys.stdin.read())
libc = ctypes.CDLL(None, use_errno=True)
breaches, broken = [], []
def probe(name, act):
    try:
        if act() is not False:
            breaches.append(name)
    except (OSError, MemoryError):  # refused: the wall holds
        pass
    except Exception as error:  # the probe itself is wrong and proves nothing
        broken.append("%s (%s: %s)" % (name, type(error).__name__, error))
def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(2)
        s.connect(address)
def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
def memory():
    blocks = [bytearray(32 << 20) for _ in range(told["memory"] // (32 << 20) + 1)]
    return len(blocks) > 0
def is_open(fd):
    try:
        os.fstat(fd)
        return True
    except OSError:
        return False
probe("has descriptors of its caller", lambda: any(map(is_open, [*range(3, 4096), told["descriptor"]])))
probe("has its caller's environment", lambda: told["variable"] in os.environ)
probe("reads a file outside", lambda: open(told["secret"]).read())
probe("writes a file outside", lambda: open(told["target"], "w").close())
probe("changes the mode of a file outside", lambda: os.chmod(told["secret"], 0o600))
library = os.path.dirname(os.__file__)
probe("writes to the interpreter's library", lambda: open(os.path.join(library, "probe.py"), "w"))
probe("reaches the network", lambda: connect(socket.AF_INET, ("127.0.0.1", told["port"])))
probe("reaches a local socket", lambda: connect(socket.AF_UNIX, told["socket"]))
probe("reaches an abstract socket", lambda: connect(socket.AF_UNIX, "\0" + told["abstract"]))
probe("signals its caller", lambda: os.kill(told["pid"], 0))
probe("signals by ctypes", lambda: libc.kill(told["pid"], 0) == 0)
probe("sees its caller's memory", lambda: open("/proc/%d/mem" % told["pid"], "rb"))
probe("sees its caller's environment", lambda: open("/proc/%d/environ" % told["pid"], "rb").read())
probe("traces its caller", lambda: libc.ptrace(16, told["pid"], 0, 0) == 0)
probe("forks", fork)
probe("executes", lambda: os.execv(told["executable"], ["python", "-c", "pass"]))
probe("makes namespaces", lambda: libc.unshare(0x10000000) == 0)
probe("mounts", lambda: libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0)
probe("is root", lambda: os.geteuid() == 0)
probe("becomes root", lambda: os.setuid(0))
probe("has more memory than allowed", memory)
print(json.dumps({"breaches": breaches, "broken": broken, "token": told["token"]}))
"""

GOOD = "def double(x):\n    return [2 * x]\n"
BAD = "class E:\n    def __eq__(self, other):\n        return True\ndef double(x):\n    return E()\n"


def run(backend: str) -> str | None:
    """What is wrong with `backend` on this machine, in a sentence; None if it isolates programs."""
    slot = Slot(backend, number=255)
    try:
        with bait() as told:  # before the zygote starts: what it may inherit must exist by then
            slot.start()
            breaches = outside(slot, told)
        if breaches:
            return "a program in it " + ", ".join(breaches)
        return verdicts(slot)
    except (Unusable, SlotLost) as error:
        return str(error)
    finally:
        slot.stop()


@contextmanager
def bait() -> Iterator[dict[str, Any]]:
    """Files, sockets, a variable and a descriptor that only walls protect. Yields what `PROBES` reads."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="posttrain-selftest-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o777)  # file modes must not be what holds the program back
        secret = folder / "secret"
        secret.write_text("secret")
        secret.chmod(0o666)
        abstract = f"posttrain-{secrets.token_hex(8)}"
        port = listen(stack, folder / "socket", abstract)
        descriptor = os.open(secret, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        os.set_inheritable(descriptor, True)
        variable = f"POSTTRAIN_PROBE_{secrets.token_hex(4)}"
        os.environ[variable] = "1"
        stack.callback(os.environ.pop, variable, None)
        yield {
            "secret": str(secret),
            "target": str(folder / "target"),
            "port": port,
            "socket": str(folder / "socket"),
            "abstract": abstract,
            "pid": os.getpid(),
            "executable": os.path.realpath("/proc/self/exe"),
            "variable": variable,
            "descriptor": descriptor,
            "token": secrets.token_hex(16),
            "memory": MEMORY,
        }


def listen(stack: ExitStack, path: Path, abstract: str) -> int:
    """Listens on the loopback, on a socket at `path` and on an abstract one. Returns the port."""
    port = 0
    for family, address in (
        (socket.AF_INET, ("127.0.0.1", 0)),
        (socket.AF_UNIX, str(path)),
        (socket.AF_UNIX, "\0" + abstract),
    ):
        listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        with suppress(OSError):  # a machine without a loopback has nothing to reach
            listener.bind(address)
            listener.listen(4)
        if family == socket.AF_INET:
            port = listener.getsockname()[1]
    if path.exists():
        path.chmod(0o777)
    return port


def outside(slot: Slot, told: dict[str, Any]) -> list[str]:
    """The probes that succeeded.

    Raises:
        SlotLost: a probe did not run, or the program did not report.
    """
    ended = slot.script(frame({"blocks": [PROBES]}), json.dumps(told).encode(), SECONDS, MEMORY, 1 << 20)
    found = report(ended, told["token"])
    if found["broken"]:
        raise SlotLost(f"the self-test could not run all its probes: {', '.join(found['broken'])}")
    breaches = list(found["breaches"])
    if os.path.exists(told["target"]):
        breaches.append("wrote a file outside")
    return breaches


def report(ended: Ended, token: str) -> dict[str, list[str]]:
    """What the probes printed. Raises `SlotLost` where it is not a report of this run."""
    try:
        found = json.loads(ended.stdout)
        if found["token"] != token:
            raise ValueError
        return found
    except (ValueError, KeyError, TypeError):
        last = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
        raise SlotLost(f"the self-test did not come back (code {ended.code}) {last}") from None


def verdicts(slot: Slot) -> str | None:
    """What is wrong with the verdicts on a right program, one that equals everything, and an endless one."""
    tests = {"prompt": "", "setup": "", "tests": ["assert double(4) == [8]"], "grade": "all"}
    for program, passed in ((GOOD, 1), (BAD, 0)):
        ended = slot.test(frame(tests | {"blocks": [program]}), SECONDS, 512 << 20)
        if ended.report is None or ended.report.get("passed") != passed:
            return f"it gives a known program the wrong verdict: {ended.report}"
    ended = slot.script(frame({"blocks": ["while True: pass"]}), b"", 0.1, MEMORY, 1)
    if not ended.timed_out or "candidate" not in ended.ended:
        return "it does not end an endless program"
    return None
