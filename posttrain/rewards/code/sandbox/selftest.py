"""What a back-end must prove on this machine before it is used: a program that tries to get out, and fails at it.

Every probe is something that would succeed without walls. A probe that succeeds, or a self-test that does not come back,
rules the back-end out; nothing is assumed from versions or settings. About a quarter of a second, once a process.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import tempfile
from pathlib import Path

from posttrain.rewards.code.sandbox.backends import Unusable
from posttrain.rewards.code.sandbox.slot import Slot, SlotLost, frame

SECONDS = 20.0
MEMORY = 256 << 20

PROBES = r"""
import ctypes, json, os, socket, sys
told = json.loads(sys.stdin.read())
libc = ctypes.CDLL(None, use_errno=True)
out = []
def probe(name, act):
    try:
        if act() is not False:
            out.append(name)
    except MemoryError:
        pass
    except Exception:
        pass
def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(2)
        s.connect(address)
def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
def call(number, *args):
    return libc.syscall(number, *args) >= 0
def memory():
    blocks = [bytearray(32 << 20) for _ in range(told["memory"] // (32 << 20) + 1)]
    return len(blocks) > 0
probe("reads a file outside", lambda: open(told["secret"]).read())
probe("writes a file outside", lambda: open(told["target"], "w").close())
probe("changes the mode of a file outside", lambda: os.chmod(told["secret"], 0o600))
probe("writes to the interpreter's library", lambda: open(os.path.join(os.path.dirname(os.__file__), "probe.py"), "w"))
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
probe("has descriptors of its caller", lambda: any(fd_open(fd) for fd in range(3, 256)))
probe("has its caller's environment", lambda: told["variable"] in os.environ)
probe("has more memory than allowed", memory)
def fd_open(fd):
    try:
        os.fstat(fd)
        return True
    except OSError:
        return False
probe("has descriptors of its caller", lambda: any(fd_open(fd) for fd in range(3, 256)))
print(json.dumps({"breaches": out, "token": told["token"]}))
"""

GOOD = "def double(x):\n    return [2 * x]\n"
BAD = "class E:\n    def __eq__(self, other):\n        return True\ndef double(x):\n    return E()\n"


def run(backend: str) -> str | None:
    """What is wrong with `backend` on this machine, in a sentence; None if it holds."""
    slot = Slot(backend, number=255)
    try:
        slot.start()
        breaches = outside(slot)
        if breaches:
            return "a program in it " + ", ".join(breaches)
        return verdicts(slot)
    except (Unusable, SlotLost) as error:
        return str(error)
    finally:
        slot.stop()


def outside(slot: Slot) -> list[str]:
    """The probes that succeeded."""
    folder = Path(tempfile.mkdtemp(prefix="posttrain-selftest-"))
    variable = f"POSTTRAIN_PROBE_{secrets.token_hex(4)}"
    token, abstract = secrets.token_hex(16), f"posttrain-{secrets.token_hex(8)}"
    listeners = []
    try:
        folder.chmod(0o777)  # only the walls stand between the program and these
        secret, target = folder / "secret", folder / "target"
        secret.write_text("secret")
        secret.chmod(0o666)
        for family, address in (
            (socket.AF_INET, ("127.0.0.1", 0)),
            (socket.AF_UNIX, str(folder / "socket")),
            (socket.AF_UNIX, "\0" + abstract),
        ):
            listener = socket.socket(family, socket.SOCK_STREAM)
            listeners.append(listener)
            try:
                listener.bind(address)
                listener.listen(4)
            except OSError:  # no loopback here: then there is nothing to reach
                pass
        (folder / "socket").exists() and (folder / "socket").chmod(0o777)
        port = listeners[0].getsockname()[1]
        os.environ[variable] = "1"
        told = {
            "secret": str(secret),
            "target": str(target),
            "port": port,
            "socket": str(folder / "socket"),
            "abstract": abstract,
            "pid": os.getpid(),
            "executable": os.path.realpath("/proc/self/exe"),
            "variable": variable,
            "token": token,
            "memory": MEMORY,
        }
        ended = slot.script(frame({"blocks": [PROBES]}), json.dumps(told).encode(), SECONDS, MEMORY, 1 << 20)
        try:
            found = json.loads(ended.stdout)
            if found["token"] != token:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            said = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
            raise SlotLost(f"the self-test did not come back (code {ended.code}) {said}") from None
        breaches = list(found["breaches"])
        if target.exists():
            breaches.append("wrote a file outside")
        return breaches
    finally:
        os.environ.pop(variable, None)
        for listener in listeners:
            listener.close()
        shutil.rmtree(folder, ignore_errors=True)


def verdicts(slot: Slot) -> str | None:
    """Whether a right program passes, one that calls itself equal to everything fails, an endless one is ended."""
    tests = {"prompt": "", "setup": "", "tests": ["assert double(4) == [8]"], "grade": "all"}
    for program, passed in ((GOOD, 1), (BAD, 0)):
        ended = slot.judge(frame(tests | {"blocks": [program]}), SECONDS, 512 << 20)
        if ended.report is None or ended.report.get("passed") != passed:
            return f"a known program is judged wrongly: {ended.report}"
    ended = slot.script(frame({"blocks": ["while True: pass"]}), b"", 0.1, MEMORY, 1)
    if not ended.timed_out or "candidate" not in ended.ended:
        return "an endless program is not ended"
    return None
