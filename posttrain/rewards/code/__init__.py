"""Programs judged by tests, in a sandbox, with the verdict made outside the program's process.

A program never holds a test or an expected value: its process answers calls with plain data, a second process holds the
tests (function style), or the caller compares what it printed (standard input style). See `sandbox` for the walls and
`sandbox/inside/proxies` for the rule that keeps a verdict from being forged. Left out: languages other than Python,
tests that need the network, files or packages beyond `sandbox.runtime.PACKAGES`.
"""

from __future__ import annotations

from typing import Literal

from posttrain.errors import RequestError
from posttrain.rewards.code import check, row
from posttrain.rewards.code.sandbox import ladder
from posttrain.rewards.code.sandbox.backends import Unusable
from posttrain.rewards.code.sandbox.pool import pool
from posttrain.rewards.registry import reward
from posttrain.types import Example, Verdict

Backend = Literal["auto", "bubblewrap", "namespaces", "landlock", "remote"]


def check_row(example: Example, **options) -> None:
    """Raises ValueError where a row's tests are missing, of the wrong type or do not compile."""
    row.tests_of(example)


def missing() -> str | None:
    """Why no program can be isolated on this machine; None if one can."""
    try:
        ladder.choose("auto")
    except RequestError as error:
        return str(error)
    return None


@reward(
    "code",
    columns=("tests|stdin_tests|test|base_input|plus_input",),
    check_row=check_row,
    runs="thread",
    limit_s=60.0,
    missing=missing,
)
def code(
    completion: str,
    example: Example,
    grade: Literal["all", "fraction"] = "all",
    timeout: float = 10.0,
    memory_mb: int = 512,
    backend: Backend = "auto",
    unsafe_local: bool = False,
    float_tolerance: float | None = None,
    url: str | None = None,
    queue_timeout: float = 300.0,
) -> Verdict:
    """Python programs judged by tests or by standard input, in a sandbox, verdict outside the program's process.

    `grade`: all tests must pass, or the fraction that does. `timeout`: seconds of wall time for the tests of a row (for
    each of its stdin tests); the column `timeout` takes its place, up to 120. `memory_mb`: address space of the program.
    `backend`: which walls; `auto` takes the first that proves itself here, a named one is used or refused, `remote` asks
    a server that speaks SandboxFusion's `/run_code` at `url`. `unsafe_local`: with `auto` and no walls, run anyway.
    `float_tolerance`: numbers in printed lines may differ by it, absolutely or relatively. `queue_timeout`: seconds to
    wait for a free slot before the status is `timeout`.

    `details`: `backend`, `passed`, `total`, `failures`, and `limit` where the program exhausted one.

    Raises:
        RequestError: an option out of range, or a back-end that cannot isolate here (with what to install).
    """
    if not 0 < timeout <= row.LONGEST_TIMEOUT:
        raise RequestError(
            f"reward 'code': timeout = {timeout} must be over 0 and at most {row.LONGEST_TIMEOUT:g}"
        )
    if not 64 <= memory_mb <= row.MOST_MEMORY:
        raise RequestError(f"reward 'code': memory_mb = {memory_mb} must be 64 to {row.MOST_MEMORY}")
    if float_tolerance is not None and not 0 <= float_tolerance < float("inf"):
        raise RequestError(f"reward 'code': float_tolerance = {float_tolerance} must be 0 or more")
    tests = row.tests_of(example)
    limits = check.Limits(timeout, memory_mb << 20, queue_timeout, grade, float_tolerance)
    if backend == "remote":
        from posttrain.rewards.code import remote

        if not url:
            raise RequestError("reward 'code': backend 'remote' needs `url`, the server's address")
        return remote.judge(completion, tests, limits, url)
    chosen = ladder.choose(backend, unsafe_local)
    try:
        return check.judge(completion, tests, limits, pool(chosen))
    except Unusable as error:
        return Verdict(None, "error", f"the sandbox does not start: {error}", details={"backend": chosen})
