"""Exit codes of commands: 0 success, 1 the work failed, 2 the request was wrong.

A failure is printed as one message on stderr, control characters spelt out. Failures of the machine that a
user can fix (a full disk, a missing permission) count as failed work. Any other exception is a bug in
posttrain and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any

from posttrain.base.printable import print_anything, printable
from posttrain.errors import PosttrainError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
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
        print(f"error: {printable(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; finished work is kept, and the same command resumes it", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `posttrain show | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno in DISK_FULL:
            place = f" ({error.filename})" if error.filename else ""
            reason = f"the disk is full{place}; free some space and run the same command again"
        elif error.errno in REFUSED and error.filename:
            reason = f"{os.fspath(error.filename)}: {error.strerror}"
        else:
            raise
        print(f"error: {printable(reason)}", file=sys.stderr)
        return 1
    return code if isinstance(code, int) else 0
