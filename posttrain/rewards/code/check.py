"""Runs one completion against the tests of one row, and makes the verdict from how it ended.

A program that is wrong, too slow or too large is `scored` 0. Only a failure of our own processes is `error`,
and only after a second try, as for a process that somebody killed; no free slot before the queue deadline is
`timeout`. Left out: walls (`sandbox`) and what a row's tests are (`row`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from posttrain.rewards.code import extract, stdio
from posttrain.rewards.code.row import LONGEST_TIMEOUT, Tests
from posttrain.rewards.code.sandbox.pool import Pool, QueueFull
from posttrain.rewards.code.sandbox.slot import Ended, Slot, SlotLost
from posttrain.rewards.code.sandbox.streams import frame
from posttrain.rewards.simple.visible import after_thinking
from posttrain.types import Verdict

OUTPUT = 1 << 20
"""Bytes that a program may print in addition to the expected output."""
MOST_LIMITS = 3
"""Tests by standard input of one row that may hit a limit before the rest is skipped."""
ROW_S = 60.0
"""Seconds for all tests by standard input of one row together."""
SHOWN = 5
"""Failures that a verdict lists."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one check, and how it is graded."""

    seconds: float = 10.0
    """Wall time."""
    memory: int = 512 << 20
    """Bytes of address space."""
    queue: float = 300.0
    """Seconds to wait for a slot."""
    grade: str = "all"
    """`all` or `fraction`."""
    tolerance: float | None = None
    """Of numbers in printed lines, absolute or relative."""


def verdict_of(completion: str, tests: Tests, limits: Limits, pool: Pool) -> Verdict:
    """The verdict on one completion, from a slot of `pool`."""
    found = programs(completion)
    if isinstance(found, Verdict):
        found.details["backend"] = pool.backend
        return found
    check = _script if tests.kind == "stdin" else _functions
    try:
        verdict = pool.run(lambda slot: check(slot, found, tests, limits), limits.queue)
    except QueueFull as error:
        verdict = Verdict(None, "timeout", str(error))
    except SlotLost as error:
        verdict = Verdict(None, "error", f"the sandbox was lost twice: {error}")
    verdict.details["backend"] = pool.backend
    return verdict


def programs(completion: str) -> list[str] | Verdict:
    """The blocks that may be the program, or the verdict if there is none."""
    text = after_thinking(completion)
    if text is None:
        return Verdict(0.0, "unparseable", "thinking that never ended")
    if len(text) > extract.LONGEST:
        return Verdict(0.0, "scored", "limit", details={"limit": f"a program of {len(text)} characters"})
    found = extract.blocks(text)
    return found or Verdict(0.0, "unparseable", "no program")


def payload(found: list[str], tests: Tests, grade: str) -> dict[str, Any]:
    """The message to the tester."""
    return {
        "blocks": found,
        "prompt": tests.prompt,
        "setup": tests.setup,
        "tests": tests.tests,
        "grade": grade,
        "entry_point": tests.entry_point,
        "inputs": tests.inputs,
        "reference": tests.reference,
        "atol": tests.atol,
    }


def clock(tests: Tests, limits: Limits) -> float:
    """Seconds of wall time that a row's tests may take."""
    return min(tests.timeout or limits.seconds, LONGEST_TIMEOUT)


def _functions(slot: Slot, found: list[str], tests: Tests, limits: Limits) -> Verdict:
    seconds = clock(tests, limits)
    whole = seconds * 2 if tests.kind == "inputs" else seconds  # the reference takes time too
    given = frame(payload(found, tests, limits.grade))
    ended = twice_if_killed(slot, lambda: slot.test(given, whole, limits.memory))
    return functions_verdict(ended, tests, limits.grade, seconds)


def twice_if_killed(slot: Slot, run: Callable[[], Ended]) -> Ended:
    """`run()`, once more where a process of it ended by SIGKILL: from outside, or because of the program,
    which then shows again."""
    for last in (False, True):
        if not slot.alive:
            slot.stop()
            slot.start()
        ended = run()
        cut = ended.timed_out or ended.flooded or (ended.report is not None and not ended.report.get("gone"))
        if last or cut or all(code != -9 for code, *_ in ended.ended.values()):
            break
    return ended


def functions_verdict(ended: Ended, tests: Tests, grade: str, seconds: float) -> Verdict:
    """The verdict from the tester's report, or from its absence."""
    report, total = ended.report, tests.total
    if report is None:
        if ended.timed_out:
            return limited(f"{seconds:g} s of time", 0, total)
        return limited(f"resources: {signal_name(ended)}", 0, total)
    if "broken" in report:
        return Verdict(None, "error", f"the tests cannot be run: {printable(report['broken'])}")
    passed, failures = report["passed"], report["failures"]
    if report["limit"]:
        return limited(report["limit"], passed, total, grade)
    code = ended.code
    if report["gone"] and code is not None and code in (-9, -24, -11, -7, -6):
        return limited(signal_name(ended), passed, total, grade)
    details: dict[str, Any] = {"passed": passed, "total": total}
    if failures:
        details["failures"] = [printable(f"test {n}: {cause}") for n, cause in failures[:SHOWN]]
    if passed == total and not report["stopped"]:
        return Verdict(1.0, "scored", "", details=details)
    reason = report["stopped"] or f"test {failures[0][0]} of {total} failed: {failures[0][1]}"
    value = passed / total if grade == "fraction" else 0.0
    return Verdict(value, "scored", printable(reason[:400]), details=details)


def printable(text: str) -> str:
    """`text` without lone surrogates, which a program may raise and which cannot be written as UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def limited(what: str, passed: int, total: int, grade: str = "all") -> Verdict:
    """The verdict on a program that exhausted time, memory or output."""
    value = passed / total if grade == "fraction" else 0.0
    return Verdict(value, "scored", "limit", details={"limit": what, "passed": passed, "total": total})


def signal_name(ended: Ended) -> str:
    """What ended the candidate, in words."""
    names = {
        -9: "killed",
        -24: "CPU time",
        -11: "a crash of the interpreter",
        -6: "an abort",
        -7: "a bus error",
    }
    return names.get(ended.code or 0, f"ended with code {ended.code}")


def _script(slot: Slot, found: list[str], tests: Tests, limits: Limits) -> Verdict:
    load = frame({"blocks": found})

    def run(stdin: str, expected: str, seconds: float) -> Ended:
        most = OUTPUT + 2 * len(expected.encode("utf-8", "surrogatepass"))
        given = stdin.encode("utf-8", "surrogatepass")
        return twice_if_killed(slot, lambda: slot.script(load, given, seconds, limits.memory, most))

    return scripts(run, tests, limits)


def scripts(run: Callable[[str, str, float], Ended], tests: Tests, limits: Limits) -> Verdict:
    """The verdict on tests by standard input; `run(stdin, expected, seconds)` runs one.

    With `fraction`, the third test that hits a limit ends the row, since the others would take as long. So
    does `ROW_S` for all tests together, even if each of them was quick enough.
    """
    passed, failures, limit, hit = 0, [], "", 0
    total, seconds = len(tests.stdin), clock(tests, limits)
    until = time.monotonic() + max(ROW_S, seconds)
    for number, (stdin, expected) in enumerate(tests.stdin, 1):
        allowed = min(seconds, until - time.monotonic())
        if allowed <= 0:
            limit = limit or f"{ROW_S:g} s for all tests"
            failures.append(f"test {number}: out of time")
            break
        why, what = script_failure(run(stdin, expected, allowed), expected, limits.tolerance, allowed)
        if not why:
            passed += 1
            continue
        limit = limit or what
        hit += bool(what)
        failures.append(f"test {number}: {why}")
        if limits.grade == "all" or hit == MOST_LIMITS:
            break
    if limit and (limits.grade == "all" or not passed):
        return limited(limit, passed, total, limits.grade)
    details: dict[str, Any] = {"passed": passed, "total": total}
    if not failures:
        return Verdict(1.0, "scored", "", details=details)
    details["failures"] = failures[:SHOWN]
    value = passed / total if limits.grade == "fraction" else 0.0
    number, _, why = failures[0].partition(": ")
    return Verdict(value, "scored", f"{number} of {total} failed: {why}"[:400], details=details)


def script_failure(ended: Ended, expected: str, tolerance: float | None, seconds: float) -> tuple[str, str]:
    """(why a run failed, the limit that it hit); two empty strings if it passed."""
    if ended.timed_out:
        return "out of time", f"{seconds:g} s of time"
    if ended.flooded:
        return "too much output", "output"
    code = ended.code
    last = ended.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
    if code is not None and code < 0:
        return signal_name(ended), signal_name(ended)
    if code:
        if last.startswith("MemoryError"):
            return last, "memory"
        return f"the program ended with code {code}" + (f" ({last})" if last else ""), ""
    return stdio.difference(ended.stdout.decode("utf-8", "surrogateescape"), expected, tolerance), ""
