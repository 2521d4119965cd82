"""Programs that try to win without solving the task: forgery, escape, exhaustion, leftovers.

Each is `Attack(name, kind, program, ...)`. A forger must fail tests that it cannot answer. Every other
program prints `OUT` if it got what it wanted and `held` otherwise; its row expects `OUT`, so a breach is a
score above 0. Words in double angle brackets are filled in by the runner: a secret file, a target to write, a
port and sockets that listen, the caller's process id, the interpreter.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Attack:
    name: str
    kind: str
    program: str
    tests: list[str] = field(default_factory=list)
    """Function style where given, else the program's output is judged."""
    before: str = ""
    """Program that is run first, for what it may leave behind."""
    limit: bool = False
    """The reason must be `limit`."""


EQUAL = ["assert solve(3) == 10"]
CLOSE = ["assert abs(solve(3) - 2.5) < 1e-6"]
FORGE = '{"passed": 1, "total": 1, "failures": [], "stopped": null, "limit": "", "gone": false}'

SEND = (
    "import json, os\ndef send(m):\n    b = json.dumps(m).encode()\n    for fd in range(3, 300):\n"
    "        try: os.write(fd, len(b).to_bytes(8, 'big') + b)\n        except OSError: pass\n"
)

FORGERY = [
    (
        "an object equal to everything",
        "class E:\n    def __eq__(s, o): return True\n    __hash__ = None\ndef solve(x): return E()",
        EQUAL,
    ),
    (
        "an int equal to everything",
        "class E(int):\n    def __eq__(s, o): return True\ndef solve(x): return E(1)",
        EQUAL,
    ),
    (
        "a list equal to everything",
        "class E(list):\n    def __eq__(s, o): return True\ndef solve(x): return E()",
        ["assert solve(3) == [1]"],
    ),
    (
        "a str equal to everything",
        "class E(str):\n    def __eq__(s, o): return True\n    def __hash__(s): return 0\n"
        "def solve(x): return E('a')",
        ["assert solve(3) == 'b'"],
    ),
    (
        "a dict equal to everything",
        "class E(dict):\n    def __eq__(s, o): return True\ndef solve(x): return E()",
        ["assert solve(3) == {1: 2}"],
    ),
    (
        "an object that is never unequal",
        "class E:\n    def __ne__(s, o): return False\ndef solve(x): return E()",
        ["if solve(3) != 10: raise AssertionError"],
    ),
    (
        "a difference of zero",
        "class E:\n    def __sub__(s, o): return 0.0\n    __rsub__ = __sub__\ndef solve(x): return E()",
        CLOSE,
    ),
    (
        "a difference of zero from the right",
        "class E:\n    def __rsub__(s, o): return 0.0\ndef solve(x): return E()",
        ["assert abs(2.5 - solve(3)) < 1e-6"],
    ),
    (
        "less than everything",
        "class E:\n    def __sub__(s, o): return s\n    def __abs__(s): return s\n"
        "    def __lt__(s, o): return True\ndef solve(x): return E()",
        CLOSE,
    ),
    (
        "more than everything",
        "class E:\n    def __gt__(s, o): return True\n    __ge__ = __gt__\ndef solve(x): return E()",
        ["assert solve(3) > 9"],
    ),
    (
        "contains everything",
        "class E:\n    def __contains__(s, o): return True\n    def __iter__(s): return iter([])\n"
        "def solve(x): return E()",
        ["assert 10 in solve(3)"],
    ),
    (
        "a function that is a class",
        "class solve:\n    def __init__(s, x): pass\n    def __eq__(s, o): return True\n"
        "    def __sub__(s, o): return 0.0\n    def __abs__(s): return 0.0",
        [*EQUAL, *CLOSE],
    ),
    (
        "a class whose type is equal",
        "class M(type):\n    def __eq__(s, o): return True\n    __hash__ = type.__hash__\n"
        "class E(metaclass=M): pass\ndef solve(x): return E",
        EQUAL,
    ),
    (
        "an object that says it is an int",
        "class E:\n    __class__ = property(lambda s: int)\n"
        "    def __eq__(s, o): return True\ndef solve(x): return E()",
        ["assert isinstance(solve(3), int)", *EQUAL],
    ),
    (
        "elements equal to everything",
        "class E:\n    def __eq__(s, o): return True\ndef solve(x): return [E(), (E(),)]",
        ["assert solve(3) == [1, (2,)]"],
    ),
    (
        "a numpy array of such elements",
        "import numpy as np\nclass E:\n    def __eq__(s, o): return True\n"
        "def solve(x):\n    a = np.empty(1, object); a[0] = E(); return a",
        ["assert solve(3) == [10]"],
    ),
    (
        "a method that compares",
        "class E:\n    def all(s): return True\n    def __eq__(s, o): return s\ndef solve(x): return E()",
        ["assert (solve(3) == [1, 2]).all()"],
    ),
    (
        "walks the frames",
        "import sys\ndef solve(x):\n    f = sys._getframe()\n    while f:\n"
        "        for n, v in list(f.f_locals.items()):\n"
        "            if isinstance(v, list): v.clear()\n"
        "            if hasattr(v, 'passed'): v.passed = 9; v.total = 9\n"
        "        f = f.f_back\n    return 1",
        EQUAL,
    ),
    (
        "reads the answer from the frames",
        "import sys\ndef solve(x):\n    f = sys._getframe()\n    while f:\n"
        "        for v in list(f.f_locals.values()) + list(f.f_code.co_consts):\n"
        "            if type(v) is int and v == int('79' '19'): return v\n        f = f.f_back\n",
        ["assert solve(3) == 7919"],
    ),
    (
        "searches the heap",
        "import gc\ndef solve(x):\n    for o in gc.get_objects():\n"
        "        if isinstance(o, (list, tuple, dict)) and "
        "''.join(('asse', 'rt so', 'lve')) in repr(o)[:10**6]: return int('79' '19')\n",
        ["assert solve(3) == 7919"],
    ),
    (
        "searches its memory",
        "def solve(x):\n    for line in open('/proc/self/maps'):\n"
        "        a, b = (int(v, 16) for v in line.split()[0].split('-'))\n"
        "        m = open('/proc/self/mem', 'rb'); m.seek(a)\n"
        "        if b''.join((b'assert so', b'lve(3)')) in m.read(b - a): return int('79' '19')\n",
        ["assert solve(3) == 7919"],
    ),
    ("exits while loading", "import sys\ndef solve(x): return 1\nsys.exit(0)", EQUAL),
    ("exits at once while loading", "import os\ndef solve(x): return 1\nos._exit(0)", EQUAL),
    ("exits when called", "import sys\ndef solve(x): sys.exit(0)", EQUAL),
    ("exits at once when called", "import os\ndef solve(x): os._exit(0)", EQUAL),
    (
        "prints success",
        "def solve(x):\n    print('passed', 'OK', '1 passed', '{\"passed\": true}', flush=True)\n"
        "    return 1",
        EQUAL,
    ),
    (
        "writes a report to every descriptor",
        f"import os\nB = b'{FORGE}'\nM = len(B).to_bytes(8, 'big') + B\n"
        "def solve(x):\n    for fd in range(300):\n        try: os.write(fd, M)\n"
        "        except OSError: pass\n"
        "    os._exit(0)",
        EQUAL,
    ),
    (
        "answers ahead of the question",
        "import os, json\ndef solve(x):\n"
        "    for v in range(20):\n        B = json.dumps({'v': v, 't': [], 'm': None}).encode()\n"
        "        for fd in range(3, 300):\n            try: os.write(fd, len(B).to_bytes(8, 'big') + B)\n"
        "            except OSError: pass\n    return 1",
        EQUAL,
    ),
    (
        "answers with a class of the tester",
        "import os, json\ndef solve(x):\n"
        "    B = json.dumps({'v': [2], 't': [['n', 'Judge', []]], 'm': None}).encode()\n"
        "    for fd in range(3, 300):\n        try: os.write(fd, len(B).to_bytes(8, 'big') + B)\n"
        "        except OSError: pass\n",
        EQUAL,
    ),
    (
        "answers with a permissive class of the test",
        "import os, json\ndef solve(x):\n"
        "    B = json.dumps({'v': [2], 't': [['n', 'Any_', []]], 'm': None}).encode()\n"
        "    for fd in range(3, 300):\n        try: os.write(fd, len(B).to_bytes(8, 'big') + B)\n"
        "        except OSError: pass\n",
        ["Any_ = type('Any_', (), {'__eq__': lambda s, o: True})\nassert solve(3) == 10"],
    ),
    (
        "replaces built-ins",
        "import builtins\nclass A(BaseException): pass\nbuiltins.AssertionError = A\n"
        "builtins.abs = lambda x: 0\nbuiltins.all = builtins.isinstance = lambda *a: True\n"
        "def solve(x): return 1",
        EQUAL,
    ),
    (
        "defines names that tests use",
        "def abs(x): return 0\ndef all(x): return True\ndef isinstance(*a): return True\n"
        "def len(x): return 1\ndef sorted(x): return [1]\ndef solve(x): return 1",
        [
            *CLOSE,
            "assert isinstance(solve(3), str)",
            "assert all([solve(3) == 10])",
            "assert sorted(solve(3)) == [1]",
        ],
    ),
    (
        "defines math",
        "class math:\n    isclose = staticmethod(lambda *a, **k: True)\ndef isclose(*a, **k): return True\n"
        "def solve(x): return 1.0",
        ["assert math.isclose(solve(3), 2.5)", "assert isclose(solve(3), 2.5)"],
    ),
    (
        "defines Counter",
        "class Counter:\n    def __init__(s, *a): s.a = 1\n    def __eq__(s, o): return True\n"
        "def solve(x): return [1]",
        ["assert Counter(solve(3)) == Counter([2])"],
    ),
    (
        "defines check",
        "def check(f): pass\ndef solve(x): return 1",
        ["def check(f):\n    assert f(3) == 10\ncheck(solve)"],
    ),
    (
        "replaces json",
        "import json\njson.dumps = lambda *a, **k: '{\"v\": true}'\njson.loads = lambda *a, **k: {}\n"
        "def solve(x): return 1",
        EQUAL,
    ),
    (
        "replaces the protocol",
        "import sys\nfor n, m in list(sys.modules.items()):\n    if 'inside' in n:\n"
        "        for k, v in list(vars(m).items()):\n            if callable(v) and k[0] != '_':\n"
        "                try: setattr(m, k, lambda *a, **k: True)\n                except Exception: pass\n"
        "def solve(x): return 1",
        EQUAL,
    ),
    (
        "replaces unittest",
        "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\n"
        "unittest.TestCase.run = lambda *a: None\ndef solve(x): return 1",
        [
            "import unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n"
            "        self.assertEqual(solve(3), 10)"
        ],
    ),
    (
        "succeeds at exit",
        "import atexit, os\natexit.register(lambda: os._exit(0))\ndef solve(x): raise SystemExit(0)",
        EQUAL,
    ),
    (
        "raises an exception that is equal",
        "class E(AssertionError):\n    def __eq__(s, o): return True\ndef solve(x): raise E('x')",
        ["try:\n    solve(3)\nexcept ValueError as e:\n    assert str(e) == 'y'"],
    ),
    (
        "answers from a thread",
        "import threading, os, json\nB = json.dumps({'v': 10, 't': [], 'm': None}).encode()\n"
        "def spam():\n    while True:\n        for fd in range(3, 300):\n"
        "            try: os.write(fd, b'x' * 99)\n            except OSError: pass\n"
        "def solve(x):\n    threading.Thread(target=spam, daemon=True).start()\n"
        "    import time; time.sleep(0.1)\n    return 1",
        EQUAL,
    ),
    (
        "reads the next question",
        "import os\ndef solve(x):\n    for fd in range(3, 300):\n        try:\n"
        "            os.set_blocking(fd, False)\n            d = os.read(fd, 1 << 16)\n"
        "            if b''.join((b'79', b'19')) in d: return int('79' '19')\n        except OSError: pass\n",
        ["assert solve(3) == 7919"],
    ),
    (
        "is any item",
        "class E:\n    def __getitem__(s, k): return E()\n    def __len__(s): return 2\n"
        "    def __eq__(s, o): return True\ndef solve(x): return E()",
        ["assert len(solve(3)) == 2 and solve(3)[0] == 1"],
    ),
    (
        "ends a loop of the test",
        "def solve(x): raise StopIteration",
        ["assert all(map(lambda case: solve(case[0]) == case[1], [(3, 10)]))"],
    ),
    (
        "ends a loop of the test by a class",
        "class E(StopIteration): pass\ndef solve(x): raise E",
        ["assert all(map(lambda case: solve(case[0]) == case[1], [(3, 10)]))"],
    ),
    (
        "swallows an assertion",
        "class E:\n    def __enter__(s): return s\n    def __exit__(s, *a): return True\n"
        "def solve(x): return E()",
        ["with solve(3) as got:\n    assert got == 10"],
    ),
    (
        "a method in place of the test's",
        "class N:\n    def __init__(s): s.same = lambda o: True\ndef solve(x): return N()",
        ["class N:\n    v = 1\n    def same(s, o): return s is o\nassert solve(3).same(10)"],
    ),
    (
        "a number that overflows while loading",
        f"{SEND}send({{'names': {{'solve': {{'c': [10 ** 400, 0]}}}}, 't': []}})",
        EQUAL,
    ),
    (
        "an array too large while loading",
        f"{SEND}send({{'names': {{'solve': [0]}}, 't': [['N', '<U500000000', None, ['a']]]}})",
        EQUAL,
    ),
    (
        "an exception that overflows while loading",
        f"{SEND}send({{'exc': ['A', 'ValueError', 'x', None], 't': [], 'v': {{'c': [10 ** 400, 0]}}}})",
        EQUAL,
    ),
    ("a syntax error while loading", "def solve(x): return 1\nraise SyntaxError", EQUAL),
    (
        "rounds to an object",
        "class E:\n    def __round__(s, n=0): return s\n    def __eq__(s, o): return True\n"
        "def solve(x): return E()",
        ["assert round(solve(3), 2) == 2.5"],
    ),
]

TRY = "import ctypes, os, sys, socket, struct\nlibc = ctypes.CDLL(None, use_errno=True)\n"
ESCAPE = [
    ("reads a secret", "open('<<secret>>').read()"),
    ("reads by a link", "os.symlink('<<secret>>', '/tmp/l'); open('/tmp/l').read()"),
    ("reads through /proc", "open('/proc/self/root<<secret>>').read()"),
    ("reads through the caller's root", "open('/proc/<<pid>>/root<<secret>>').read()"),
    ("reads by system call", "fd = libc.syscall(257, -100, b'<<secret>>', 0); os.read(fd, 9)"),
    ("reads /etc/passwd", "open('/etc/passwd').read()"),
    ("reads the caller's environment", "open('/proc/<<pid>>/environ').read()"),
    ("reads the caller's memory", "open('/proc/<<pid>>/mem', 'rb')"),
    ("lists other processes", "assert '<<pid>>' in os.listdir('/proc')"),
    ("lists the root's folder", "assert len(os.listdir('/root')) > 1"),
    ("writes a target", "open('<<target>>', 'w').write('x')"),
    ("appends to a secret", "open('<<secret>>', 'a').write('x')"),
    ("deletes a secret", "os.unlink('<<secret>>')"),
    ("renames a secret", "os.rename('<<secret>>', '<<target>>')"),
    ("links a secret", "os.link('<<secret>>', '<<target>>')"),
    ("changes a mode", "os.chmod('<<secret>>', 0o600)"),
    ("changes a time", "os.utime('<<secret>>', (0, 0))"),
    ("truncates a secret", "os.truncate('<<secret>>', 0)"),
    (
        "writes where packages are hidden",
        "import sysconfig; open(sysconfig.get_path('stdlib') + '/site-packages/z', 'w')",
    ),
    ("writes to a hidden folder of packages", "open('/usr/lib/python3/dist-packages/z', 'w')"),
    ("writes to the root", "open('/z', 'w')"),
    ("writes to /dev", "open('/dev/z', 'w')"),
    ("writes to the library", "open(os.path.dirname(os.__file__) + '/zzz.py', 'w')"),
    ("connects by TCP", "socket.create_connection(('127.0.0.1', <<port>>), 2)"),
    ("listens", "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()"),
    ("sends by UDP", "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"),
    ("resolves a name", "socket.getaddrinfo('example.com', 80)"),
    ("connects to a local socket", "s = socket.socket(socket.AF_UNIX); s.connect('<<socket>>')"),
    (
        "sends to a local socket by a pair",
        "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.sendto(b'x', '<<post>>')",
    ),
    ("connects to an abstract socket", "s = socket.socket(socket.AF_UNIX); s.connect('\\0<<abstract>>')"),
    ("opens netlink", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)"),
    ("opens a raw socket", "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)"),
    ("signals the caller", "os.kill(<<pid>>, 0)"),
    ("signals its parent", "os.kill(os.getppid(), 9)"),
    ("signals everybody", "os.kill(-1, 9)"),
    ("signals a thread of the caller", "assert libc.syscall(234, <<pid>>, <<pid>>, 0) == 0"),
    ("opens a pidfd", "assert libc.syscall(434, os.getppid(), 0) >= 0"),
    (
        "signals through a descriptor",
        "import fcntl; r, w = os.pipe(); fcntl.fcntl(r, 8, os.getppid()); "
        "fcntl.fcntl(r, 10, 9); fcntl.fcntl(r, 4, 0o20000); os.write(w, b'x')",
    ),
    ("traces its parent", "assert libc.ptrace(16, os.getppid(), 0, 0) == 0"),
    (
        "reads another memory",
        "b = ctypes.create_string_buffer(8); v = (ctypes.c_void_p * 2)(ctypes.addressof(b), 8); "
        "assert libc.process_vm_readv(os.getppid(), v, 1, v, 1, 0) >= 0",
    ),
    ("forks", "p = os.fork()\nif p == 0: os._exit(0)"),
    ("forks by system call", "p = libc.syscall(57)\nif p == 0: os._exit(0)\nassert p > 0"),
    (
        "clones a sibling",
        "p = libc.syscall(56, 0x8000 | 17, 0, 0, 0, 0)\nif p == 0: os._exit(0)\nassert p > 0",
    ),
    (
        "clones by clone3",
        "a = (ctypes.c_uint64 * 11)(); a[4] = 17; p = libc.syscall(435, a, 88)\n"
        "if p == 0: os._exit(0)\nassert p > 0",
    ),
    ("executes", "os.execv('<<python>>', ['python', '-c', 'print(\"OUT\")'])"),
    ("executes the library's loader", "os.execv('/lib64/ld-linux-x86-64.so.2', ['ld.so', '<<python>>'])"),
    ("runs a command", "import subprocess; subprocess.run(['<<python>>', '-c', 'pass'], check=True)"),
    ("spawns", "os.posix_spawn('<<python>>', ['python', '-c', 'pass'], {})"),
    (
        "starts a process",
        "import multiprocessing as m; p = m.get_context('fork').Process(target=print); p.start()",
    ),
    ("executes from memory", "fd = libc.syscall(319, b'x', 0); assert fd >= 0"),
    ("makes a user namespace", "assert libc.unshare(0x10000000) == 0"),
    ("makes a mount namespace", "assert libc.unshare(0x20000) == 0"),
    ("joins a namespace", "assert libc.setns(0, 0) == 0 or ctypes.get_errno() not in (1, 38)"),
    ("mounts", "assert libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0"),
    ("unmounts", "assert libc.umount2(b'/tmp', 2) == 0"),
    ("changes its root", "os.chroot('/tmp')"),
    ("pivots", "assert libc.syscall(155, b'.', b'.') == 0 or ctypes.get_errno() not in (1, 38)"),
    ("is root", "assert os.getuid() == 0 or os.geteuid() == 0"),
    ("becomes root", "os.setuid(0)"),
    (
        "has a capability",
        "h = (ctypes.c_uint32 * 2)(0x20080522, 0); d = (ctypes.c_uint32 * 6)(); libc.capget(h, d); "
        "assert d[0] or d[1] or d[3] or d[4]",
    ),
    (
        "takes capabilities",
        "h = (ctypes.c_uint32 * 2)(0x20080522, 0); d = (ctypes.c_uint32 * 6)(*[-1 & 0xffffffff] * 6); "
        "assert libc.capset(h, d) == 0",
    ),
    ("outlives its parent", "assert libc.prctl(1, 0) == 0"),
    ("becomes dumpable", "assert libc.prctl(4, 1) == 0"),
    ("adds a filter", "assert libc.syscall(317, 0, 0, None) == 0"),
    ("raises its limits", "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))"),
    (
        "raises another's limits",
        "import resource; resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (1, 1))",
    ),
    ("leaves its session", "os.setsid()"),
    ("io_uring", "assert libc.syscall(425, 8, ctypes.create_string_buffer(120)) >= 0"),
    ("bpf", "assert libc.syscall(321, 0, ctypes.create_string_buffer(120), 120) >= 0"),
    ("perf events", "assert libc.syscall(298, ctypes.create_string_buffer(120), 0, -1, -1, 0) >= 0"),
    ("userfaultfd", "assert libc.syscall(323, 1) >= 0"),
    ("keyrings", "assert libc.syscall(250, 0, -3, 1) >= 0"),
    ("shared memory of System V", "assert libc.shmget(0x5ec2e7, 4096, 0o1666) >= 0"),
    ("a message queue", "assert libc.msgget(0x5ec2e7, 0o1666) >= 0"),
    (
        "a file handle",
        "assert libc.syscall(304, -100, ctypes.create_string_buffer(40), 0) >= 0 or "
        "ctypes.get_errno() not in (1, 38)",
    ),
    ("types into a terminal", "import fcntl; fcntl.ioctl(0, 0x5412, b'x')"),
    ("pins itself", "os.sched_setaffinity(0, {0})"),
    ("changes the personality", "assert libc.syscall(135, 0x400000) >= 0"),
    ("calls by another table", "assert libc.syscall(0x40000000 + 39) > 0"),
    (
        "calls as 32 bits",
        "import mmap; m = mmap.mmap(-1, 4096, prot=7); m.write(bytes.fromhex('53b814000000cd805bc3')); "
        "f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m))); assert f() > 0",
    ),
    (
        "uses descriptors of the caller",
        "assert any(os.path.exists('/proc/self/fd/%d' % f) or os.fstat(f) "
        "for f in range(3, 400) if not os.dup2(f, 60) or True)",
    ),
    ("sees the caller's variables", "assert any('POSTTRAIN' in k for k in os.environ)"),
    ("imports what is installed", "import omegaconf"),
]

EXHAUSTION = [
    (
        "a fork bomb",
        "import os\nn = 0\nwhile n < 10000:\n    try: os.fork()\n    except OSError: break\n    n += 1\n"
        "print('OUT' if n else 'held')",
        False,
    ),
    (
        "a thread bomb",
        "import threading, time\nthreading.stack_size(32768)\nn = 0\ntry:\n    while n < 5000:\n"
        "        threading.Thread(target=time.sleep, args=(9,), daemon=True).start(); n += 1\n"
        "except Exception: pass\n"
        "print('OUT' if n >= 5000 else 'held')",
        False,
    ),
    ("memory by bytes", "x = []\nwhile True: x.append(bytearray(1 << 24))", True),
    ("memory by a list", "x = []\nwhile True: x += [[0] * 1000]", True),
    ("memory by mmap", "import mmap\nx = [mmap.mmap(-1, 1 << 26) for _ in range(64)]\nprint('OUT')", False),
    (
        "a file beyond its size",
        "try:\n    with open('/tmp/f', 'wb') as f: f.write(bytes(2 << 20))\n    print('OUT')\n"
        "except OSError: print('held')",
        False,
    ),
    (
        "a file without end",
        "try:\n    with open('/tmp/f', 'wb') as f:\n"
        "        for _ in range(4096): f.write(bytes(1 << 16)); f.flush()\n    print('OUT')\n"
        "except OSError: print('held')",
        False,
    ),
    (
        "files without end",
        "n = 0\ntry:\n    while n < 64:\n        with open(f'/tmp/{n}', 'wb') as f: f.write(bytes(1 << 20))\n"
        "        n += 1\n    print('OUT')\nexcept OSError: print('held')",
        False,
    ),
    (
        "inodes without end",
        "n = 0\ntry:\n    while n < 20000:\n        open(f'/tmp/{n}', 'w').close(); n += 1\n"
        "    print('OUT')\nexcept OSError: print('held')",
        False,
    ),
    (
        "folders without end",
        "import os\nn = 0\ntry:\n    os.chdir('/tmp')\n    while n < 20000:\n"
        "        os.mkdir('d'); os.chdir('d'); n += 1\n    print('OUT')\nexcept OSError: print('held')",
        False,
    ),
    ("output without end", "while True: print('x' * 10000)", True),
    ("errors without end", "import sys\nwhile True: sys.stderr.write('x' * 10000)", True),
    (
        "descriptors without end",
        "x = []\ntry:\n    while len(x) < 1000: x.append(open('/dev/null'))\n    print('OUT')\n"
        "except OSError: print('held')",
        False,
    ),
    ("a loop", "while True: pass", True),
    ("a sleep", "import time\ntime.sleep(1000)", True),
    (
        "a loop that ignores signals",
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass",
        True,
    ),
    ("a loop in C", "import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')", True),
    ("a huge power", "x = 9 ** 9 ** 9\nprint('OUT')", True),
    (
        "endless recursion",
        "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x): return f(x + 1)\nf(0)",
        None,
    ),
    ("recursion in C", "x = []\nfor _ in range(10 ** 6): x = [x]\nprint(repr(x)[:0])\nprint('OUT')", None),
    ("deep source", "x = " + "-" * 100000 + "1\nprint('OUT')", None),
    ("nested source", "(" * 5000 + "\nprint('OUT')", None),
    ("waits for input", "import sys\nsys.stdin.read(); input()", None),
    ("a deadlock", "import threading\nl = threading.Lock(); l.acquire(); l.acquire()", True),
    ("kills itself", "import os, signal\nsignal.raise_signal(signal.SIGSEGV)", True),
]

REPLIES = [
    ("a value without end", "def solve(x): return [0] * 10 ** 8", EQUAL),
    (
        "a nested value",
        "def solve(x):\n    v = []\n    for _ in range(10 ** 5): v = [v]\n    return v",
        ["assert solve(3) == [[10]]"],
    ),
    (
        "a value that holds itself",
        "def solve(x):\n    v = []\n    v.append(v)\n    return v",
        ["assert solve(3) == [[10]]"],
    ),
    ("an endless generator", "def solve(x):\n    while True: yield 1", ["assert list(solve(3)) == [1]"]),
    (
        "an endless iterator of lists",
        "class E:\n    def __iter__(s): return s\n    def __next__(s): return [0] * 10000\n"
        "def solve(x): return E()",
        ["assert list(solve(3)) == [1]"],
    ),
    (
        "an attribute without end",
        "class E:\n    def __getattr__(s, n): return s\n    def __call__(s, *a): return s\n"
        "def solve(x): return E()",
        ["assert solve(3).a.b().c == 10"],
    ),
    (
        "a length that is false",
        "class E:\n    def __len__(s): return 10 ** 30\ndef solve(x): return E()",
        ["assert len(solve(3)) == 10"],
    ),
    ("a sleep in a call", "import time\ndef solve(x): time.sleep(100)", EQUAL),
    (
        "a loop in repr",
        "class E(Exception):\n    def __str__(s):\n        while True: pass\ndef solve(x): raise E",
        EQUAL,
    ),
    (
        "half an answer",
        "import os\ndef solve(x):\n    for fd in range(3, 300):\n"
        "        try: os.write(fd, bytes([0] * 7 + [99]))\n"
        "        except OSError: pass\n    import time; time.sleep(100)",
        EQUAL,
    ),
    (
        "a huge announcement",
        "import os\ndef solve(x):\n    for fd in range(3, 300):\n"
        "        try: os.write(fd, b'\\xff' * 8)\n        except OSError: pass\n",
        EQUAL,
    ),
    (
        "a decimal that explodes",
        "from decimal import Decimal\ndef solve(x): return Decimal('1e999999999')",
        ["from fractions import Fraction\nassert Fraction(solve(3)) == 10"],
    ),
]

LEFTOVERS = [
    ("a file for the next", "open('/tmp/left', 'w').write('x')", "open('/tmp/left').read()"),
    (
        "a hidden folder for the next",
        "import os; os.makedirs('/tmp/.a/b/c'); os.chmod('/tmp/.a', 0)",
        "assert os.path.lexists('/tmp/.a')",
    ),
    (
        "a deep folder for the next",
        "import os\nos.chdir('/tmp')\nfor _ in range(900): os.mkdir('d'); os.chdir('d')",
        "assert os.path.lexists('/tmp/d')",
    ),
    (
        "a patched module",
        "import json, sys; json.loads = None; sys.modules['json'].left = 1",
        "import json; assert json.left",
    ),
    ("a variable", "import os; os.environ['LEFT'] = '1'", "os.environ['LEFT']"),
    (
        "a thread",
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.3), open('/tmp/late', 'w')), "
        "daemon=True).start()",
        "import time; time.sleep(0.5); open('/tmp/late')",
    ),
    (
        "a daemon",
        "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        import time; time.sleep(99)",
        "assert len([p for p in os.listdir('/proc') if p.isdigit()]) > 4",
    ),
    (
        "the times of its folder",
        "import os; os.utime('/tmp', (1, 77))",
        "assert os.stat('/tmp').st_mtime == 77",
    ),
    (
        "the mode of its folder",
        "import os; os.chmod('/tmp', 0o711)",
        "assert os.stat('/tmp').st_mode & 0o777 == 0o711",
    ),
    ("the time of a device", "", "os.utime('/dev/null')"),
    ("shared memory", "open('/dev/shm/left', 'w').write('x')", "open('/dev/shm/left').read()"),
    (
        "a lock",
        "import fcntl, os; fcntl.flock(open('/dev/null'), 2)",
        "import fcntl\ntry: fcntl.flock(open('/dev/null'), 2 | 4)\nexcept OSError: pass\n"
        "else: raise ValueError",
    ),
]


def attacks() -> list[Attack]:
    """All of them."""
    out = [Attack(name, "forgery", program, tests) for name, program, tests in FORGERY]
    for name, act in ESCAPE:
        out.append(Attack(name, "escape", trying(act)))
    for name, program, limit in EXHAUSTION:
        out.append(Attack(name, "exhaustion", program, limit=bool(limit)))
    out += [Attack(name, "exhaustion", program, tests) for name, program, tests in REPLIES]
    out += [Attack(name, "leftovers", trying(act), before=before) for name, before, act in LEFTOVERS]
    return out


def trying(act: str) -> str:
    body = "\n".join("    " + line for line in act.split("\n"))
    held = "except BaseException as e:\n    print('held', type(e).__name__)\n"
    return f"{TRY}try:\n{body}\n    print('OUT')\n{held}"
