"""Batches of checks: order, deadlines, hostile checks, dying workers, threads, forks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from posttrain.errors import RequestError, WorkError
from posttrain.rewards import bind, score, score_batch
from posttrain.rewards.engine import pool
from posttrain.rewards.engine.pool import Pool
from posttrain.types import Example
from tests.rewards import probes  # noqa: F401  (registers)

PROBES = "tests.rewards.probes"
EXAMPLE = Example(answer="5")


def values(name: str, completions: list[str], **how) -> list[float | None]:
    return [v.value for v in score_batch(bind(name), completions, [EXAMPLE] * len(completions), **how)]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 16])
def test_order_and_verdicts_do_not_depend_on_the_number_of_workers(workers):
    texts = [str(i) for i in range(200)]
    rows = [Example(answer=str(i if i % 3 else -1)) for i in range(200)]
    verdicts = score_batch(bind(f"{PROBES}:equal"), texts, rows, workers=workers)
    assert [v.value for v in verdicts] == [float(i % 3 > 0) for i in range(200)]


def test_all_workers_are_used_and_none_is_this_process():
    verdicts = score_batch(bind(f"{PROBES}:where"), ["x"] * 400, [EXAMPLE] * 400, workers=3)
    pids = {v.details["pid"] for v in verdicts}
    assert 2 <= len(pids) <= 3 and os.getpid() not in pids
    assert {v.details["parent"] for v in verdicts} == {os.getpid()}


def test_any_text_arrives_as_it_was():
    """NUL, a lone surrogate, 10 MB, and columns of every kind."""
    text = "\x00\ud800é" + "x" * 10_000_000
    row = Example(answer="\ud83d", extra={"a": [1, None, {"b": 0.5}], "c": float("inf")})
    verdict = score(f"{PROBES}:columns", text, row)
    assert verdict.details == {"answer": "\ud83d", "extra": row.extra, "completion": text}


def test_an_empty_batch():
    assert score_batch(bind(f"{PROBES}:equal"), [], []) == []
    assert score_batch(bind("probe-thread"), [], []) == []


# ---- checks that hang, starve or die -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_check_that_hangs_in_c_is_killed_and_the_others_are_judged():
    began = time.monotonic()
    verdicts = score_batch(bind(f"{PROBES}:busy"), ["", "hang", "", "hang"] + [""] * 60, [EXAMPLE] * 64)
    took = time.monotonic() - began
    assert [v.value for v in verdicts] == [1.0, 0.0, 1.0, 0.0] + [1.0] * 60
    assert (verdicts[1].status, verdicts[1].reason) == ("scored", "limit")
    assert verdicts[1].details == {"limit": "2 s"} and verdicts[1].ms >= 2000
    assert took < 20


@pytest.mark.slow
def test_a_check_that_sleeps_is_ended_at_its_limit():
    began = time.monotonic()
    verdict = score(f"{PROBES}:sleeps", "60", EXAMPLE)
    assert (verdict.value, verdict.reason) == (0.0, "limit")
    assert 2.0 <= time.monotonic() - began < 6


def test_memory_is_limited():
    verdict = score(f"{PROBES}:hungry", "", EXAMPLE)
    assert (verdict.value, verdict.reason, verdict.details) == (0.0, "limit", {"limit": "memory"})


@pytest.mark.slow
def test_a_worker_that_dies_once_costs_nothing_twice_is_an_error(tmp_path):
    texts = ["fine", "always", f"once {tmp_path / 'mark'}", "fine"]
    verdicts = score_batch(bind(f"{PROBES}:dies"), texts, [EXAMPLE] * 4, workers=1)
    assert [v.value for v in verdicts] == [1.0, None, 1.0, 1.0]
    assert verdicts[1].status == "error"
    assert "the worker process died twice (signal SIGKILL, signal SIGKILL)" in verdicts[1].reason


@pytest.mark.slow
def test_idle_workers_may_be_killed_from_outside():
    where = bind(f"{PROBES}:where")
    for _ in range(3):
        os.kill(score_batch(where, ["x"], [EXAMPLE])[0].details["pid"], signal.SIGKILL)
    assert values(f"{PROBES}:dies", ["a", "b"]) == [1.0, 1.0]


def test_workers_that_cannot_start_are_a_sentence(monkeypatch):
    monkeypatch.setattr(pool.sys, "executable", "/bin/false")
    with pytest.raises(WorkError, match="the worker processes do not start .exit code 1"):
        score_batch(bind(f"{PROBES}:equal"), ["x"], [EXAMPLE], workers=7)


def test_a_check_that_waits_for_a_core_gets_its_time_back(monkeypatch):
    """Past its limit by the clock, but runnable and short of CPU time: it continues. One that sleeps ends."""
    worker = pool.Worker()
    try:
        worker.began = (time.monotonic() - 3.0, 0.0)
        monkeypatch.setattr(worker, "_cpu", lambda: (True, 0.5))
        assert 0 < worker.left(2.0) <= 1.5
        worker.began = (time.monotonic() - 9.0, 0.0)
        assert worker.left(2.0) <= 0, "not for ever"
        worker.began = (time.monotonic() - 3.0, 0.0)
        monkeypatch.setattr(worker, "_cpu", lambda: (False, 0.5))
        assert worker.left(2.0) <= 0
        monkeypatch.setattr(worker, "_cpu", lambda: (True, 2.5))
        assert worker.left(2.0) <= 0
    finally:
        worker.close()


def test_a_real_worker_reports_its_state_and_cpu_time():
    worker = pool.Worker()
    try:
        running, cpu = worker._cpu()
        assert cpu >= 0 and isinstance(running, bool)
    finally:
        worker.close()
    assert worker.process.returncode is not None


# ---- deadlines ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_has_no_verdict_at_the_deadline_is_a_timeout():
    began = time.monotonic()
    verdicts = score_batch(
        bind(f"{PROBES}:sleeps"), ["0", "1.5", "1.5", "1.5"], [EXAMPLE] * 4, deadline_s=1.0, workers=1
    )
    assert time.monotonic() - began < 5
    assert [v.status for v in verdicts] == ["scored", "timeout", "timeout", "timeout"]
    assert verdicts[3].value is None and "deadline" in verdicts[3].reason


def test_a_worker_at_work_when_a_batch_ends_is_not_given_to_the_next():
    """It would answer checks of a batch that nobody waits for."""
    sleeps = bind(f"{PROBES}:sleeps")
    late = score_batch(sleeps, ["0.8", "0.8"], [EXAMPLE] * 2, deadline_s=0.4, workers=1)
    assert [v.status for v in late] == ["timeout", "timeout"]
    texts = ["5", "6", "5", "6"]
    assert values(f"{PROBES}:equal", texts, workers=1) == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.slow
def test_deadline_of_threads_and_lists():
    verdicts = score_batch(bind("probe-thread"), ["0", "30", "0"], [EXAMPLE] * 3, deadline_s=1.0)
    assert [v.status for v in verdicts] == ["scored", "timeout", "scored"]
    assert score_batch(bind("probe-lists"), ["a"], [EXAMPLE], deadline_s=-1.0)[0].status == "timeout"
    assert score_batch(bind("probe-bonus"), ["a"], [EXAMPLE], deadline_s=-1.0)[0].status == "timeout"


def test_threads_keep_order_and_errors_to_themselves():
    texts = ["0.2", "boom", "0", "0.1"]
    verdicts = score_batch(bind("probe-thread"), texts, [EXAMPLE] * 4)
    assert [v.status for v in verdicts] == ["scored", "error", "scored", "scored"]
    assert verdicts[0].details["pid"] == os.getpid() and verdicts[0].ms >= 200


# ---- callers -----------------------------------------------------------------------------------------------


def test_from_several_threads_at_once():
    found: dict[int, list[float | None]] = {}

    def work(k: int) -> None:
        rows = [Example(answer=str(i % (k + 2))) for i in range(120)]
        texts = ["1"] * 120
        found[k] = [v.value for v in score_batch(bind(f"{PROBES}:equal"), texts, rows)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert found == {k: [float(i % (k + 2) == 1) for i in range(120)] for k in range(6)}


def test_workers_outlive_the_thread_that_first_needed_them():
    """The kernel's parent-death signal is sent when the starting *thread* ends."""
    pool, seen = Pool(1), []

    def first() -> None:
        worker = pool.take()
        seen.append(worker)
        header = {"name": f"{PROBES}:equal", "options": {"ignore_case": False}, "path": sys.path}
        worker.send(header | {"checks": []})
        assert "ready" in worker.receive()
        pool.give(worker)

    thread = threading.Thread(target=first)
    thread.start()
    thread.join()
    time.sleep(0.3)
    try:
        worker = pool.take()
        assert worker is seen[0] and worker.process.poll() is None
    finally:
        pool.give(worker)
        pool.close()


PROGRAM = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored
from posttrain.rewards import bind, score, score_batch
from posttrain.types import Example
row = Example(answer="x")
first = score("tests.rewards.probes:where", "x", row).details["pid"]
print(first, flush=True)
{then}
"""


def run(then: str, root: Path, **how) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(then=then)],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


def gone(pid: int, within_s: float = 10) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_workers_end_with_a_process_that_exits_and_with_one_that_is_killed(root):
    ended = run("", root)
    out, err = ended.communicate(timeout=60)
    assert ended.returncode == 0 and err == "" and gone(int(out))
    killed = run("score('tests.rewards.probes:sleeps', '60', row)", root)
    worker = int(killed.stdout.readline())
    time.sleep(1.0)
    killed.kill()
    killed.communicate()
    assert gone(worker, 0.8), "while it was still in a check of 2 s"


@pytest.mark.slow
def test_ctrl_c_ends_a_batch_and_leaves_no_process(root):
    work = run("score_batch(bind('tests.rewards.probes:sleeps'), ['1.5'] * 99, [row] * 99)", root)
    worker = int(work.stdout.readline())
    time.sleep(1.0)
    work.send_signal(signal.SIGINT)
    _, err = work.communicate(timeout=30)
    assert "KeyboardInterrupt" in err and gone(worker)


@pytest.mark.slow
def test_a_forked_child_gets_its_own_workers(root):
    then = """
child = os.fork()
if child == 0:
    mine = score("tests.rewards.probes:where", "x", row).details
    os._exit(0 if mine["pid"] != first and mine["parent"] == os.getpid() else 7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert score("tests.rewards.probes:where", "x", row).details["pid"] == first
"""
    work = run(then, root)
    _, err = work.communicate(timeout=60)
    assert work.returncode == 0, err


def test_ranks_of_one_machine_share_its_cores(monkeypatch):
    alone = pool.share_of_cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert pool.share_of_cores() == max(1, alone // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "999")
    assert pool.share_of_cores() == 1


def test_a_refusal_inside_a_worker_reaches_the_caller():
    with pytest.raises(RequestError, match="no such rule"):
        score(f"{PROBES}:refuses", "x", EXAMPLE)
    assert values(f"{PROBES}:equal", ["5"]) == [1.0]


@pytest.mark.slow
def test_thousands_of_checks_leave_nothing_behind():
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    values(f"{PROBES}:equal", ["5"])
    before, processes = descriptors(), threading.active_count()
    for _ in range(6):
        assert values(f"{PROBES}:equal", ["5"] * 300) == [1.0] * 300
        values(f"{PROBES}:dies", ["always"])
    assert descriptors() <= before and threading.active_count() <= processes


@pytest.mark.slow
def test_slow_checks_do_not_take_the_time_of_others(monkeypatch):
    """By default a batch may take what its checks may take by their own limits, however many are slow."""
    from posttrain.rewards.engine import batch

    monkeypatch.setattr(batch, "DEADLINE_S", 0.0)
    verdicts = score_batch(bind("probe-thread"), ["0.4"] * 12, [EXAMPLE] * 12, workers=2)
    assert [v.value for v in verdicts] == [1.0] * 12
    assert values(f"{PROBES}:sleeps", ["9", "9", "0.1"], workers=1) == [0.0, 0.0, 1.0]
