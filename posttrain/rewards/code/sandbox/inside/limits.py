"""What a child does to itself between fork and the first foreign instruction: limits, filter, descriptors.

The order matters: everything that needs a privilege first, the filter last. Sizes in bytes, times in seconds.
"""

import _signal
import ctypes
import os
import random
import resource

from . import seccomp

LIBC = ctypes.CDLL(None, use_errno=True)
HOLDING = ctypes.PyDLL(None)
"""The C library, called without releasing the interpreter's lock."""
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
FILE_SIZE = 1 << 20
DESCRIPTORS = 64
STACK = 64 << 20


def prctl(option, value):
    """prctl(2). Raises OSError."""
    if LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option} was refused")


def inherit(tasks):
    """Sets the limits that the zygote's children start with. `tasks` is RLIMIT_NPROC."""
    limits = {
        resource.RLIMIT_FSIZE: FILE_SIZE,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_STACK: STACK,
        resource.RLIMIT_NPROC: tasks,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 64,
    }
    for which, most in limits.items():
        lower(which, most, most)
    prctl(PR_SET_DUMPABLE, 0)
    random.seed(0)  # the same draws in every check


def lower(which, soft, hard):
    """Sets a limit, never above the hard limit that the process already has."""
    try:
        resource.setrlimit(which, (soft, hard))
    except ValueError:  # the hard limit is lower already
        most = resource.getrlimit(which)[1]
        resource.setrlimit(which, (min(soft, most), most))


def confine(memory, seconds, prepared, parent):
    """Binds this process to its parent, limits its memory and time, and installs the system call filter.

    `memory` in bytes, `seconds` of CPU; `prepared` is the filter of `seccomp.prepare`; `parent` is the
    process id that must still be the parent.
    """
    os.setsid()
    prctl(PR_SET_PDEATHSIG, _signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    cpu = int(seconds) + 1
    lower(resource.RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS)
    lower(resource.RLIMIT_AS, memory, memory)
    lower(resource.RLIMIT_CPU, cpu, cpu + 1)
    seccomp.install(LIBC, prepared, os.getpid())


def only(*kept):
    """Closes every descriptor but 0, 1, 2 and `kept`."""
    low = 3
    for fd in sorted(kept):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 4096)


def fork():
    """fork(2) without the interpreter's hooks: they touch a megabyte for threads, and the zygote has none."""
    pid = HOLDING.fork()
    if pid < 0:
        raise OSError(ctypes.get_errno(), "fork")
    return pid
