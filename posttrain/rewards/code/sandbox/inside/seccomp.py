"""The system calls that a candidate or a test may make: an allow-list as a classic BPF program (seccomp(2)).

Everything else is refused with EPERM: fork, exec, sockets but a stream pair, kill, ptrace and other
processes' memory, mount, namespaces, chroot, set*id, keyrings, bpf, perf, io_uring, userfaultfd, memfd,
System V and POSIX message queues, shared memory, extended attributes, ownership. `clone` only makes threads;
`clone3` is ENOSYS, so that the C library falls back to `clone`. `fcntl` cannot name the receiver of a signal.
A call of another architecture kills the process.
"""

import ctypes
import platform
import struct
import sys

# name, number on x86_64, number on aarch64 (-1: none)
ALWAYS = """\
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69,
pwritev 296 70, close 3 57, close_range 436 436, fstat 5 80, stat 4 -1, lstat 6 -1, newfstatat 262 79,
statx 332 291, lseek 8 62, mmap 9 222, mprotect 10 226, munmap 11 215, mremap 25 216, madvise 28 233,
mincore 27 232, msync 26 227, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139,
rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132, access 21 -1,
faccessat 269 48, faccessat2 439 439, pipe 22 -1, pipe2 293 59, select 23 -1, pselect6 270 72, poll 7 -1,
ppoll 271 73, epoll_create 213 -1, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -1,
epoll_pwait 281 22, eventfd2 290 19, timerfd_create 283 85, timerfd_settime 286 86,
timerfd_gettime 287 87, sched_yield 24 124, sched_getaffinity 204 123, sched_getparam 143 121,
sched_getscheduler 145 120, sched_get_priority_max 146 125, sched_get_priority_min 147 126, dup 32 23,
dup2 33 -1, dup3 292 24, nanosleep 35 101, clock_nanosleep 230 115, clock_gettime 228 113,
clock_getres 229 114, gettimeofday 96 169, time 201 -1, times 100 153, alarm 37 -1, getitimer 36 102,
setitimer 38 103, timer_create 222 107, timer_settime 223 110, timer_gettime 224 108,
timer_delete 226 111, pause 34 -1, getpid 39 172, gettid 186 178, getppid 110 173, getuid 102 174,
geteuid 107 175, getgid 104 176, getegid 108 177, getgroups 115 158, getresuid 118 148, getresgid 120 150,
getpgrp 111 -1, getpgid 121 155, getsid 124 156, getpriority 140 141, uname 63 160, open 2 -1,
openat 257 56, readlink 89 -1, readlinkat 267 78, getdents 78 -1, getdents64 217 61, getcwd 79 17,
chdir 80 49, fchdir 81 50, umask 95 166, statfs 137 43, fstatfs 138 44, flock 73 32, fadvise64 221 223,
getrusage 98 165, sysinfo 99 179, getrandom 318 278, futex 202 98, set_robust_list 273 99,
get_robust_list 274 100, rseq 334 293, set_tid_address 218 96, exit 60 93, exit_group 231 94,
membarrier 324 283, getcpu 309 168, arch_prctl 158 -1, restart_syscall 219 128, sendfile 40 71,
shutdown 48 210, getsockname 51 204, getpeername 52 205, getsockopt 55 209, recvfrom 45 207,
sendto 44 206, getrlimit 97 163, setrlimit 160 164, wait4 61 260, waitid 247 95, capget 125 90"""
FILES = """\
creat 85 -1, mkdir 83 -1, mkdirat 258 34, unlink 87 -1, unlinkat 263 35, rmdir 84 -1, rename 82 -1,
renameat 264 38, renameat2 316 276, symlink 88 -1, symlinkat 266 36, truncate 76 45, ftruncate 77 46,
fallocate 285 47, fsync 74 82, fdatasync 75 83, fchmod 91 52, chmod 90 -1, fchmodat 268 53,
utimensat 280 88"""
GUARDED = """\
prlimit64 302 261, fcntl 72 25, ioctl 16 29, socketpair 53 199, clone 56 220, clone3 435 435,
prctl 157 167, tgkill 234 131"""

ARCHITECTURES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}
"""machine -> (column, AUDIT_ARCH, number of seccomp)"""
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
LOAD, EQUAL, GREATER_EQUAL, ANY_BIT, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
NUMBER, ARCHITECTURE = 0, 4
CLONE_THREAD, NAMESPACES = 0x10000, 0x7E020000
FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1033)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK, F_SETLK, F_SETLKW, F_DUPFD_CLOEXEC, F_GET_SEALS"""
IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX"""
PRCTL = (3, 15, 16, 39)
"""PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_GET_NO_NEW_PRIVS"""


MARK = 0x7A7B7C7D
"""Placeholder of the process id until it is known."""


class Unsupported(Exception):
    """There is no filter for this machine."""


def _argument(k):
    return 16 + 8 * k


def _one_of(argument, values):
    """Allows the call if the low half of an argument is one of `values`, otherwise EPERM."""
    code = [(LOAD, 0, 0, _argument(argument))]
    for k, value in enumerate(values):
        code.append((EQUAL, len(values) - k, 0, value))
    return [*code, (RETURN, 0, 0, EPERM), (RETURN, 0, 0, ALLOW)]


def build(files, pid):
    """The filter for process `pid`. `files`: whether it may change files."""
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise Unsupported(f"there is no system call table for {machine}")
    column, architecture, _ = ARCHITECTURES[machine]

    def numbers(text):
        rows = (row.split() for row in text.replace("\n", " ").split(","))
        return {name: n for name, *both in rows if (n := int(both[column])) >= 0}

    plain = sorted((numbers(ALWAYS) | (numbers(FILES) if files else {})).values())
    guarded = numbers(GUARDED)
    code = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
    ]
    if machine == "x86_64":  # the x32 calls share the architecture
        code += [(GREATER_EQUAL, 0, 1, 0x40000000), (RETURN, 0, 0, KILL)]
    for name, rule in rules(pid).items():
        code += [(EQUAL, 0, len(rule), guarded[name]), *rule]
    for number in plain:
        code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    return [*code, (RETURN, 0, 0, EPERM)]


def rules(pid):
    """{call: code} for the calls that depend on their arguments, for process `pid`."""
    thread = [
        (LOAD, 0, 0, _argument(0)),
        (ANY_BIT, 0, 2, CLONE_THREAD),
        (ANY_BIT, 1, 0, NAMESPACES),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, EPERM),
    ]
    pair = [
        (LOAD, 0, 0, _argument(0)),
        (EQUAL, 0, 4, 1),
        (LOAD, 0, 0, _argument(1)),
        (AND, 0, 0, 0xF),
        (EQUAL, 0, 1, 1),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, EPERM),
    ]
    return {
        "clone": thread,
        "socketpair": pair,
        "clone3": [(RETURN, 0, 0, ENOSYS)],
        "fcntl": _one_of(1, FCNTL),
        "ioctl": _one_of(1, IOCTL),
        "prctl": _one_of(0, PRCTL),
        "tgkill": _one_of(0, (pid,)),
        "prlimit64": _one_of(0, (0, pid)),
    }


def prepare(files):
    """The filter as the kernel takes it, built before the forks: a child only adds its process id."""
    body = b"".join(struct.pack("=HBBI", *row) for row in build(files, MARK))
    places, at = [], -1
    while (at := body.find(struct.pack("=I", MARK), at + 1)) >= 0:
        places.append(at)
    buffer = ctypes.create_string_buffer(body, len(body))
    program = struct.pack("@HxxxxxxP", len(body) // 8, ctypes.addressof(buffer))
    number = ARCHITECTURES[platform.machine()][2]
    return buffer, places, (number, 1, 0, ctypes.c_char_p(program))


def install(libc, prepared, pid):
    """Installs the filter in this process for good. Needs no_new_privs."""
    buffer, places, arguments = prepared
    name = pid.to_bytes(4, sys.byteorder)
    for at in places:
        buffer[at : at + 4] = name
    if libc.syscall(*arguments) != 0:
        raise OSError(ctypes.get_errno(), "seccomp was refused")
