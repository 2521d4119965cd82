"""The candidate's process for tests by standard input: runs one program as `__main__` with its streams."""

import atexit
import contextlib
import os
import sys
import threading
import types

from .host import remember
from .program import choose
from .wire import receive


def main(payload, stdin, stdout, stderr):
    """Reads the program from descriptor `payload`, runs it and ends the process with its exit code."""
    request = receive(payload)
    os.close(payload)
    for fd, number in ((stdin, 0), (stdout, 1), (stderr, 2)):
        os.dup2(fd, number)
        os.close(fd)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    sys.argv = ["solution.py"]
    code = run(request)
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except BaseException:
        code = code or 120
    os._exit(code)


def run(request):
    """The exit code of the program: that of `sys.exit`, 1 for an exception."""
    codes, source, wrong = choose(request["blocks"], "", [])
    if codes is None:
        print(wrong, file=sys.stderr)
        return 1
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    remember(source)
    try:
        exec(codes[-1], module.__dict__)
        join_threads()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code & 255 if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException as error:
        with contextlib.suppress(BaseException):
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def join_threads():
    """Waits for the program's threads, as the interpreter does at its end."""
    threading._shutdown()
