"""Landlock: lets a process read a few folders, and neither write, use the network nor signal others.

It needs Linux 5.13 with Landlock enabled (landlock(7)), but no privilege and no package. Left out: what
Landlock does not cover (stat, chmod, sockets by path, ioctl); the system call filter refuses these.
"""

import ctypes
import os
import struct

CREATE, ADD, RESTRICT = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | (1 << 14) | (1 << 15)
RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Version of the interface -> the number of file rights that it knows."""


class Unavailable(Exception):
    """Why Landlock cannot be used here."""


def version(libc):
    """The version of the interface; 0 if the kernel has no Landlock."""
    found = libc.syscall(CREATE, None, ctypes.c_size_t(0), 1)
    return max(found, 0)


def restrict(libc, readable, listable, devices):
    """Confines the process for good.

    `readable`: paths that may be read, with everything below them; `listable`: folders whose names may be
    listed; `devices`: files that may be read and written.

    Raises:
        Unavailable: the kernel has no Landlock, or refuses.
    """
    abi = version(libc)
    if not abi:
        raise Unavailable(
            "this kernel has no Landlock (Linux 5.13 with CONFIG_SECURITY_LANDLOCK, `lsm=landlock`)"
        )
    rights = (1 << RIGHTS_BY_VERSION[min(abi, 5)]) - 1
    attributes = struct.pack("=QQQ", rights, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = libc.syscall(CREATE, ctypes.c_char_p(attributes), ctypes.c_size_t(size), 0)
    if ruleset < 0:
        raise Unavailable(f"landlock_create_ruleset: {os.strerror(ctypes.get_errno())}")
    for paths, access in (
        (readable, READ_FILE | READ_DIR | EXECUTE),
        (listable, READ_DIR),
        (devices, READ_FILE | WRITE_FILE),
    ):
        for path in paths:
            allow(libc, ruleset, path, access & rights)
    if libc.prctl(38, ctypes.c_ulong(1), 0, 0, 0) or libc.syscall(RESTRICT, ruleset, 0):
        raise Unavailable(f"landlock_restrict_self: {os.strerror(ctypes.get_errno())}")
    os.close(ruleset)


def allow(libc, ruleset, path, access):
    """Adds a rule for `path` to the ruleset."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # this machine has no such folder
        return
    try:
        if not os.path.isdir(path):
            access &= FILE_RIGHTS
        rule = struct.pack("=Qi", access, fd)
        if libc.syscall(ADD, ruleset, 1, ctypes.c_char_p(rule), 0):
            raise Unavailable(f"landlock_add_rule {path}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(fd)
