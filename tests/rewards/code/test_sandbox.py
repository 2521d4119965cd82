"""Back-ends, slots and the pool: what is refused, ended and cleaned up, from any thread and after a fork."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from posttrain.errors import RequestError
from posttrain.rewards.code import check, code
from posttrain.rewards.code.row import tests_of as row_tests
from posttrain.rewards.code.sandbox import bundle, ladder, pool, runtime, selftest
from posttrain.rewards.code.sandbox.slot import Slot, SlotLost
from posttrain.types import Example
from tests.conftest import ROOT, require

ADD = "def add(a, b):\n    return a + b\n"
ROW = Example(extra={"tests": ["assert add(2, 3) == 5"]})


@pytest.fixture(scope="module", params=["bubblewrap", "namespaces", "landlock"])
def own(request):
    wrong = ladder.tested(request.param)
    require("sandbox", wrong is None, f"{request.param}: {wrong}")
    found = pool.Pool(request.param, size=1)
    yield found
    found.close()


def score(own: pool.Pool, program: str, seconds: float = 5.0, **row):
    row = row or ROW.extra
    return check.verdict_of(program, row_tests(Example(extra=row)), check.Limits(seconds), own)


# ---- the ladder


def test_the_self_test_sees_missing_walls():
    """Without walls the probes get through; a self-test that cannot fail would prove nothing."""
    assert "reads a file outside" in selftest.run("none")


LEAKS = {
    "nothing is closed": ("zygote", "limits.only(*fds)", "pass"),
    "one is left open": ("limits", "low = 3\n", "low = 4\n"),
}
KEEPS_FILES = """
def files():
    import stat
    found = []
    for fd in range(3, 256):
        try:
            found += [fd] if stat.S_ISREG(os.fstat(fd).st_mode) else []
        except OSError:
            pass
    return found
"""


@pytest.mark.slow
@pytest.mark.parametrize("module, wall, worse", LEAKS.values(), ids=LEAKS)
def test_the_self_test_sees_a_leaking_descriptor(monkeypatch, own, module, wall, worse):
    """A sandbox that forgets to close: a program in it then has a descriptor that it must not have."""
    sources = dict(bundle.modules())
    assert sources[module].count(wall) == 1
    sources[module] = sources[module].replace(wall, worse)
    monkeypatch.setattr(bundle, "modules", lambda: list(sources.items()))
    assert "has descriptors of its caller" in selftest.run(own.backend)


@pytest.mark.slow
def test_the_self_test_sees_a_descriptor_that_the_zygote_inherits(monkeypatch, own):
    """Children that keep files open leak nothing until the zygote inherits one."""
    sources = dict(bundle.modules())
    sources["limits"] += KEEPS_FILES
    sources["zygote"] = sources["zygote"].replace("limits.only(*fds)", "limits.only(*fds, *limits.files())")
    monkeypatch.setattr(bundle, "modules", lambda: list(sources.items()))
    assert selftest.run(own.backend) is None
    careless(monkeypatch, close_fds=False)
    assert "has descriptors of its caller" in selftest.run(own.backend)


@pytest.mark.slow
def test_the_self_test_sees_an_environment_that_the_zygote_inherits(monkeypatch, own):
    careless(monkeypatch, env=None)
    assert "has its caller's environment" in selftest.run(own.backend)


def careless(monkeypatch, **options) -> None:
    """Starts processes with `options` instead of what the sandbox says."""
    start = subprocess.Popen
    monkeypatch.setattr("subprocess.Popen", lambda *words, **given: start(*words, **given | options))


def test_a_probe_that_does_not_run_is_no_wall(monkeypatch):
    """A mistake in a probe is reported; it does not pass for a refusal."""
    broken = selftest.PROBES.replace("def is_open(fd):", "def is_shut(fd):")
    monkeypatch.setattr(selftest, "PROBES", broken)
    wrong = selftest.run("landlock")
    assert "could not run all its probes: has descriptors of its caller (NameError" in wrong


def test_a_named_back_end_that_does_not_hold_is_refused(monkeypatch):
    monkeypatch.setitem(ladder._tested, "bubblewrap", "a program in it reads a file outside")
    with pytest.raises(RequestError, match="bubblewrap.*reads a file outside.*install bubblewrap"):
        code(ADD, ROW, backend="bubblewrap")
    assert ladder.choose("auto") != "bubblewrap"


def test_nothing_holds(monkeypatch):
    for name in ladder.LADDER:
        monkeypatch.setitem(ladder._tested, name, "no")
    with pytest.raises(RequestError, match="unsafe_local"):
        code(ADD, ROW)
    from posttrain.rewards.code import missing

    assert "no sandbox back-end" in missing()
    with pytest.raises(RequestError):
        code(ADD, ROW, backend="landlock", unsafe_local=True)  # a named one is never exchanged
    verdict = code(ADD, ROW, unsafe_local=True)
    assert (verdict.value, verdict.details["backend"]) == (1.0, "none")


def test_no_bwrap_is_said(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert selftest.run("bubblewrap") == "`bwrap` is not installed"


# ---- innocent programs


@pytest.mark.parametrize(
    "program",
    [
        "import os\ndef add(a, b):\n    assert os.getcwd() and os.getpid() and os.path.join('a', 'b')\n"
        "    return a + b",
        "import threading, queue\ndef add(a, b):\n    q = queue.Queue()\n"
        "    ts = [threading.Thread(target=q.put, args=(x,)) for x in (a, b)]\n"
        "    [t.start() for t in ts]; [t.join() for t in ts]\n    return q.get() + q.get()",
        "from concurrent.futures import ThreadPoolExecutor\ndef add(a, b):\n"
        "    with ThreadPoolExecutor(4) as p: return sum(p.map(int, (a, b)))",
        "import asyncio\nasync def go(a, b):\n    await asyncio.sleep(0)\n    return a + b\n"
        "def add(a, b): return asyncio.run(go(a, b))",
        "import numpy as np\n"
        "def add(a, b): return int(np.linalg.norm(np.eye(50)) * 0 + np.array([a, b]).sum())",
        "class N:\n    def __init__(s, v): s.v = v\n    def __eq__(s, o): return s.v == o.v\n"
        "    def __hash__(s): return 1\n"
        "def add(a, b):\n    assert N(1) == N(1)\n    return a + b",
        "import sys\nsys.setrecursionlimit(20000)\ndef deep(n): return 0 if not n else 1 + deep(n - 1)\n"
        "def add(a, b): return deep(5000) - 5000 + a + b",
        "import codecs, json, re, decimal, zoneinfo, sqlite3, pickle, ctypes, uuid, hashlib\n"
        "def add(a, b):\n    assert 'x'.encode('utf-16') and 'ä'.encode('cp1252')\n    return a + b",
        "import multiprocessing\ndef add(a, b):\n    try: multiprocessing.Pool(2)\n    except OSError: pass\n"
        "    return a + b",
        "import time, random, signal\ndef add(a, b):\n"
        "    time.sleep(0.01); signal.alarm(0); return a + b + random.random() * 0",
    ],
    ids=[
        "os",
        "threading",
        "executor",
        "asyncio",
        "numpy",
        "eq",
        "recursion",
        "library",
        "multiprocessing",
        "time",
    ],
)
def test_innocent_programs_pass(own, program):
    if "numpy" in program:
        pytest.importorskip("numpy")
    verdict = score(own, program, 20.0)
    assert verdict.value == 1.0, verdict


def test_files_where_there_is_a_folder_for_them(own):
    program = (
        "def add(a, b):\n    with open('x.txt', 'w') as f: f.write('5')\n    return int(open('x.txt').read())"
    )
    assert score(own, program).value == (0.0 if own.backend == "landlock" else 1.0)


# ---- the end of things


@pytest.mark.slow
def test_time_is_enforced_and_the_slot_lives_on(own):
    start = time.monotonic()
    assert score(own, "def add(a, b):\n    while True: pass", 0.5).reason == "limit"
    assert time.monotonic() - start < 3
    slot = own.all[0]
    before = slot.process.pid
    assert score(own, ADD).value == 1.0 and slot.process.pid == before


def test_a_killed_zygote_is_replaced(own):
    assert score(own, ADD).value == 1.0
    slot = own.all[0]
    kill(slot)
    assert score(own, ADD).value == 1.0
    assert slot.process.pid in descendants()


@pytest.mark.slow
def test_a_zygote_that_dies_in_a_check_is_tried_once_more_then_an_error(own):
    score(own, ADD)
    tries = []

    def dies(slot):
        tries.append(1)
        kill(slot)
        return slot.test(b"\0" * 8, 5.0, 512 << 20)

    with pytest.raises(SlotLost):
        own.run(dies, 5.0)
    assert len(tries) == 2
    assert score(own, ADD).value == 1.0
    own.all[0].start, kept = (lambda: (_ for _ in ()).throw(SlotLost("gone"))), own.all[0].start
    own.all[0].stop()
    try:
        verdict = score(own, ADD)
    finally:
        own.all[0].start = kept
    assert (verdict.value, verdict.status) == (None, "error")


def test_a_full_queue_is_a_timeout(own):
    with own.slot(1.0):
        verdict = check.verdict_of(ADD, row_tests(ROW), check.Limits(queue=0.05), own)
    assert (verdict.value, verdict.status) == (None, "timeout")
    assert score(own, ADD).value == 1.0


def test_first_come_first_served(own):
    order, threads = [], []

    def wait(number):
        with own.slot(10.0):
            order.append(number)

    with own.slot(1.0):
        for number in range(5):
            threads.append(threading.Thread(target=wait, args=(number,)))
            threads[-1].start()
            while len(own.waiting) <= number:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_many_threads_agree():
    programs = [ADD if k % 3 else "def add(a, b): return 0" for k in range(60)]
    with ThreadPoolExecutor(12) as threads:
        got = [v.value for v in threads.map(lambda p: code(p, ROW), programs)]
    assert got == [float(k % 3 > 0) for k in range(60)]


@pytest.mark.slow
def test_nothing_is_left_after_many_checks(own):
    programs = [
        ADD,
        "def add(a, b): return 0",
        "import os; os._exit(3)",
        "def add(a, b): raise ValueError",
        "x =",
    ]
    for program in programs * 4:
        score(own, program)
    gc.collect()
    fds, resident = len(os.listdir("/proc/self/fd")), memory()
    children = descendants()
    for program in programs * 40:
        score(own, program)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == fds
    assert descendants() == children
    assert memory() - resident < 8 << 20


def test_close_ends_every_process():
    before = descendants()
    found = pool.Pool(ladder.choose(), size=2)
    score(found, ADD)
    assert descendants() != before
    found.close()
    assert descendants() == before
    assert score(found, ADD).value == 1.0  # starts anew
    found.close()


@pytest.mark.slow
def test_the_end_of_the_caller_ends_the_sandbox():
    """Killed, not closed: the zygote notices the socket."""
    program = (
        "import os, sys, time\nfrom posttrain.rewards.code.sandbox.pool import pool\n"
        "from posttrain.rewards.code.sandbox.ladder import LADDER\n"
        "for b in sys.argv[1:]:\n    with pool(b).slot(9) as s:\n        s.start()\n"
        "print('up', flush=True)\ntime.sleep(60)\n"
    )
    usable = [b for b in ladder.LADDER if ladder.tested(b) is None]
    run = subprocess.Popen(
        [sys.executable, "-c", program, *usable],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.stdout.readline() == b"up\n"
    mine = {pid for pid in zygotes() if of(pid, run.pid)}
    assert len(mine) >= len(usable)
    run.kill()
    run.wait()
    run.stdout.close()
    until = time.monotonic() + 5
    while mine & set(zygotes()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not mine & set(zygotes())


def test_a_forked_copy_has_slots_of_its_own():
    assert code(ADD, ROW).value == 1.0
    here = [s.process.pid for s in pool.pool(ladder.choose()).all if s.process]
    child = os.fork()
    if child == 0:
        try:
            right = not pool._pools and code(ADD, ROW).value == 1.0
            mine = [s.process.pid for s in pool.pool(ladder.choose()).all if s.process]
            pool.close_all()
            os._exit(0 if right and mine and not set(mine) & set(here) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert code(ADD, ROW).value == 1.0
    assert [s.process.pid for s in pool.pool(ladder.choose()).all if s.process][:1] == here[:1]


def test_stop_twice_and_before_start():
    slot = Slot("landlock")
    slot.stop()
    slot.stop()
    assert not slot.alive


def kill(slot: Slot) -> None:
    """The zygote and what started it, from outside."""
    for pid in [pid for pid in descendants() if of(pid, slot.process.pid)]:
        os.kill(pid, signal.SIGKILL)
    slot.process.wait()


def of(pid: int, above: int) -> bool:
    """Whether `pid` is `above` or below it."""
    while pid > 1 and pid != above:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid == above


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descendants() -> list[int]:
    sys.path.insert(0, str(Path(__file__).parent))
    from arena import children

    return sorted(children())


def zygotes() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and b"zygote.main" in Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(int(name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_folders_of_killed_processes_are_swept(tmp_path, monkeypatch):
    """Of a process that is gone; not of one that lives, nor anything else."""
    monkeypatch.setattr(runtime.tempfile, "gettempdir", lambda: str(tmp_path))
    gone = subprocess.Popen(["true"])
    gone.wait()
    names = [
        f"posttrain-python-{gone.pid}-a",
        f"posttrain-python-{os.getpid()}-b",
        "posttrain-python-x",
        "other",
    ]
    for name in names:
        (tmp_path / name / "library").mkdir(parents=True)
    runtime.sweep()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names[1:])
