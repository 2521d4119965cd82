"""The zygote: an interpreter that waits behind the walls and forks one candidate and one tester per check.

It never sees a program or a test: they reach the children over descriptors that are passed on unread. It
talks to the caller over descriptor 0, a stream socket; when that closes, it kills its children and ends.
"""

import contextlib
import fcntl
import gc
import json
import mmap
import os
import resource
import signal
import site
import socket
import sys
import time

from . import host, limits, script, seccomp, tester, walls

PRELOAD = str.split(
    """
    abc array base64 bisect calendar cmath collections contextlib copy csv dataclasses datetime decimal
    difflib enum fractions functools hashlib heapq inspect io itertools json linecache math numbers
    operator queue random re secrets statistics string struct textwrap threading time traceback types
    typing unittest uuid warnings zlib
    """
)
"""Modules that programs and tests often import, loaded once before the forks."""
HIGH = 100
"""Our descriptors start here, above those that a program may open and may close."""


class Zygote:
    """Serves one slot."""

    def __init__(self, config):
        self.config = config
        self.control = socket.socket(fileno=os.dup(0))
        self.children = {}
        self.filter = seccomp.prepare(config["backend"] in ("bubblewrap", "namespaces"))
        self.ready = mmap.mmap(-1, mmap.PAGESIZE)  # shared with the children until they are confined
        self.null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(self.null, fd)

    def serve(self):
        gc.collect()
        gc.freeze()
        self.say({"ready": os.getpid(), "uid": os.getuid(), "python": sys.version.split()[0]})
        while True:
            message, fds = self.hear()
            if message is None:
                self.reap()
                os._exit(0)
            if message["do"] == "fork":
                self.fork(message, fds)
            elif message["do"] == "wait":
                self.say({"ended": self.reap(message.get("grace", 0.0)), "clean": self.clean()})

    def say(self, message):
        body = json.dumps(message).encode()
        self.control.sendall(len(body).to_bytes(4, "big") + body)

    def hear(self):
        """The next message with its descriptors; (None, []) if the caller has closed the socket."""
        try:
            data, fds, _, _ = socket.recv_fds(self.control, 4, 8)
            while 0 < len(data) < 4:
                more = self.control.recv(4 - len(data))
                if not more:
                    return None, []
                data += more
            size, body = int.from_bytes(data, "big"), b""
            while len(body) < size:
                part = self.control.recv(size - len(body))
                if not part:
                    return None, []
                body += part
            return (json.loads(body), fds) if data else (None, [])
        except OSError:
            return None, []

    def fork(self, message, fds):
        """Forks a tester with its candidate, or one program with its three streams."""
        self.ready[0] = self.ready[1] = 0
        if message["what"] == "tests":
            ours, theirs = socket.socketpair()
            self.child("candidate", message, lambda fd: host.Host(fd).serve(), [ours.fileno()])
            self.child("tester", message, tester.main, [theirs.fileno(), fds[0]])
            ours.close()
            theirs.close()
        else:
            self.child("candidate", message, script.main, fds)
        for fd in fds:
            os.close(fd)

    def child(self, role, message, serve, fds):
        parent = os.getpid()
        pid = limits.fork()
        if pid:
            self.children[pid] = role
            return
        try:
            fds = [fcntl.fcntl(fd, fcntl.F_DUPFD, HIGH) for fd in fds]
            limits.only(*fds)
            limits.confine(message["memory"], message["seconds"], self.filter, parent)
            self.ready[role == "tester"] = 1
            self.ready.close()  # the program cannot reach the flag any more
            serve(*fds)
        except BaseException:  # the zygote notices by the flag and the exit
            pass
        finally:
            os._exit(0)

    def reap(self, grace=0.0):
        """Ends every child and waits for it. {role: [exit code or minus signal, seconds of CPU, peak KiB]}

        Children that end by themselves within `grace` seconds are not killed. `failed` names the role of a
        child that could not be confined.
        """
        ended, until = {}, time.monotonic() + grace
        while self.children:
            if time.monotonic() >= until:
                for pid in self.children:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                pid, status, usage = os.wait4(-1, 0)
            else:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if not pid:
                    time.sleep(0.0005)
                    continue
            role = self.children.pop(pid, None)
            if role and not self.ready[role == "tester"]:
                ended["failed"] = role
            elif role:
                ended[role] = [
                    os.waitstatus_to_exitcode(status),
                    usage.ru_utime + usage.ru_stime,
                    usage.ru_maxrss,
                ]
        return ended

    def clean(self):
        """Empties the folder that candidates may write to. Returns whether that worked.

        Deep trees are flattened first, so that depth costs nothing.
        """
        if self.config["backend"] not in ("bubblewrap", "namespaces"):
            return True
        number = 0
        try:
            while names := os.listdir("/tmp"):
                for name in names:
                    path = f"/tmp/{name}"
                    if os.path.islink(path) or not os.path.isdir(path):
                        os.unlink(path)
                        continue
                    os.chmod(path, 0o700)
                    for inner in os.listdir(path):
                        number += 1
                        if os.path.isdir(f"{path}/{inner}") and not os.path.islink(f"{path}/{inner}"):
                            os.chmod(f"{path}/{inner}", 0o700)
                            os.rename(f"{path}/{inner}", f"/tmp/.{number}-{os.getpid()}")
                        else:
                            os.unlink(f"{path}/{inner}")
                    os.rmdir(path)
            os.chmod("/tmp", 0o700)
            os.utime("/tmp", (0, 0))
            return True
        except OSError:
            return False


def main(config):
    """Builds the walls, then serves. The caller is told what went wrong before that."""
    control = socket.socket(fileno=os.dup(0))
    try:
        here = os.path.dirname(os.__file__)
        for module in list(sys.modules.values()):  # packages that were loaded from where only root can read
            if place := getattr(module, "__path__", None):
                module.__path__ = [p.replace(here, config["path"][0], 1) for p in place]
        sys.path[:] = config["path"]
        for name in PRELOAD:
            __import__(name)
        site.setquit()  # `exit` and `quit`, which programs call
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        walls.build(config)
        limits.inherit(config["tasks"])
        zygote = Zygote(config)
    except BaseException as error:
        body = json.dumps({"failed": f"{type(error).__name__}: {error}"}).encode()
        control.sendall(len(body).to_bytes(4, "big") + body)
        os._exit(1)
    control.close()
    zygote.serve()
