"""Exit codes of commands: 0 success, 1 the work failed, 2 the request was wrong.

A failure is printed as one message on stderr, control characters spelt out. Failures of the machine that a
user can fix (a full disk, a missing permission, too little memory) count as failed work. Any other exception
is a bug in posttrain and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from posttrain.base.disk import no_space
from posttrain.base.printable import print_anything, printable
from posttrain.errors import PosttrainError

REFUSED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EIO,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENFILE,
)
"""Errors that the user can fix. ENOENT is not one: if posttrain misses a file of its own, that is a bug."""


def exit_code_of(work: Callable[[], Any]) -> int:
    """Run `work` and return the exit code: its result if that is an int, else 0; 1 or 2 if it fails."""
    print_anything()
    try:
        code = work()
    except PosttrainError as error:
        say_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `posttrain show | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        file = error.filename if isinstance(error, OSError) else None
        if full := no_space(error):
            place = f" ({os.fspath(file)})" if file else ""
            reason = f"{full}{place}; make room and run the same command again"
        elif isinstance(error, MemoryError):
            reason = "out of memory"
        elif file and error.errno in REFUSED:
            reason = f"{os.fspath(file)}: {error.strerror}"
        else:
            raise
        say_error(reason)
        return 1
    return code if isinstance(code, int) else 0


def say_error(reason: object) -> None:
    """Prints `error: <reason>`, and lets torch's launcher, if it started this process, print it as well."""
    text = printable(reason)
    # in one piece: `print` writes the end of the line by itself, and other ranks write there, too
    sys.stderr.write(f"error: {text}\n")
    sys.stderr.flush()
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        about = {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError), open(file, "w", encoding="utf-8") as out:
            json.dump({"message": about}, out)
