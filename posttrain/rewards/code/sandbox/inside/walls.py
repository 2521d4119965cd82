"""Walls around the zygote, built before it forks anything: mounts, namespaces, the unprivileged user.

`bubblewrap`: bwrap has made the mounts; the private /tmp is mounted here, with a limit on its inodes.
`namespaces`: everything is built here. `landlock`: no mounts, nothing to write to. Root always becomes an
unprivileged user that owns nothing.
"""

import ctypes
import os
import signal

from . import landlock
from .limits import LIBC, PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, prctl

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
NEW_NS, NEW_CGROUP, NEW_UTS, NEW_IPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEW_USER, NEW_PID, NEW_NET = 0x10000000, 0x20000000, 0x40000000
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
UNMAPPED = 65534
"""The user id that root takes where the slot's own user id is not mapped."""


def build(config):
    """Builds the walls of `config`. Raises OSError or landlock.Unavailable with the reason."""
    kind, root = config["backend"], os.geteuid() == 0
    os.umask(0o022)
    if kind == "namespaces":
        namespaces(config, root)
    elif kind == "bubblewrap":
        scratch("/tmp", config)
        for path in filter(os.path.exists, config["devices"]):
            seal(path, device=True)
    if kind == "landlock":
        if root:
            drop(config["uid"])
        landlock.restrict(LIBC, config["readable"], config["listable"], config["devices"])
    elif root and config["root"]:
        drop(config["uid"])
    no_capabilities()
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    os.umask(0o077)
    if kind != "landlock":
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.chdir("/tmp" if kind not in ("landlock", "none") else "/")


def drop(uid):
    """Becomes the slot's own user, without groups."""
    os.setgroups([])
    for number in (uid, UNMAPPED):
        try:
            os.setresgid(number, number, number)
            os.setresuid(number, number, number)
            break
        except OSError:
            if number == UNMAPPED:
                raise
    if os.geteuid() == 0 or os.getegid() == 0:
        raise PermissionError("still root after setresuid")


def no_capabilities():
    """Drops every capability of this process."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    if LIBC.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def mount(source, target, kind, flags, data=None):
    encode = [None if part is None else part.encode() for part in (source, target, kind, data)]
    if LIBC.mount(encode[0], encode[1], encode[2], ctypes.c_ulong(flags), encode[3]) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {target}: {os.strerror(number)}")


def scratch(path, config):
    """Mounts a private folder to write to, limited in bytes and in files."""
    data = f"size={config['scratch_bytes']},nr_inodes={config['scratch_inodes']},mode=0700"
    if config["root"]:
        data += f",uid={config['uid']},gid={config['uid']}"
    mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, data)


def namespaces(config, root):
    """Enters new namespaces and a new root that contains only what is readable.

    The namespaces are user (unless root), mount, process, network, IPC, host name and cgroup. Returns in the
    first process of the new process namespace.
    """
    uid, gid = os.geteuid(), os.getegid()
    wanted = NEW_NS | NEW_PID | NEW_NET | NEW_IPC | NEW_UTS | NEW_CGROUP | (0 if root else NEW_USER)
    if LIBC.unshare(wanted) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")
    if not root:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    base = config["base"]
    mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=4096,mode=0755")
    for path in [*config["readable"], *config["devices"]]:
        bind(path, base + path)
    for path in config["hidden"]:
        if os.path.isdir(base + path):
            mount("tmpfs", base + path, "tmpfs", MS_NOSUID | MS_NODEV, "size=64k,nr_inodes=64,mode=0755")
    for path, place in config["shown"]:
        bind(path, base + place)
    for path in config["hidden"]:
        if os.path.isdir(base + path):
            mount(None, base + path, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.makedirs(base + "/tmp", exist_ok=True)
    scratch(base + "/tmp", config)
    os.chdir(base)
    if LIBC.syscall(PIVOT_ROOT[os.uname().machine], b".", b".") != 0:
        raise OSError(ctypes.get_errno(), "pivot_root")
    if LIBC.umount2(b".", 2) != 0:
        raise OSError(ctypes.get_errno(), "umount of the old root")
    os.chdir("/")
    mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    child = os.fork()
    if child:
        wait_for(child)


def wait_for(child):
    """The outer process: has no descriptors and ends with the inner one."""
    os.closerange(0, 4096)
    prctl(PR_SET_PDEATHSIG, 0)
    while True:
        try:
            os.waitpid(child, 0)
        except InterruptedError:
            continue
        except OSError:
            pass
        os._exit(0)


def bind(path, target):
    """Mounts `path` read-only at `target`. A missing path is skipped; a link is copied as a link."""
    if os.path.islink(path):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.lexists(target):
            os.symlink(os.readlink(path), target)
        return
    if not os.path.exists(path):
        return
    device = not os.path.isdir(path) and not os.path.isfile(path)
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.exists(target):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(path, target, None, MS_BIND)
    seal(target, device)


def seal(target, device):
    """Makes a mount read-only. A write to a device changes no time stamp."""
    locked = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC | 1024 | 2048 | 0x200000)
    locked = (locked & 14) | (1024 if locked & 1024 else 0) | (2048 if locked & 2048 else 0)
    flags = locked | MS_NOSUID | (0 if device else MS_NODEV)
    mount(None, target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | flags)
