"""The reward `code`: programs tested in a sandbox, with the verdict made outside the program's process.

A program never has access to a test or an expected value. With function tests, its process answers calls with
plain data and a second process runs the tests; with tests by standard input, the caller compares what it
printed. See `sandbox` for the walls and `sandbox/inside/proxies` for the rule that keeps a verdict from being
forged. Left out: languages other than Python, tests that need the network, files, or packages other than
`sandbox.runtime.PACKAGES`. Imports `posttrain.base`, `posttrain.types`, `posttrain.errors` and from `rewards`
only `registry` and `simple.visible`.
"""

from __future__ import annotations

from typing import Literal

from posttrain.errors import RequestError
from posttrain.rewards.code import check, remote, row
from posttrain.rewards.code.sandbox import ladder
from posttrain.rewards.code.sandbox.backends import Unusable
from posttrain.rewards.code.sandbox.pool import pool
from posttrain.rewards.registry import reward
from posttrain.types import Example, Verdict

Backend = Literal["auto", "bubblewrap", "namespaces", "landlock", "remote"]


def check_row(example: Example) -> None:
    """Raises ValueError if the tests of a row are missing, of the wrong type or do not compile."""
    row.tests_of(example)


def missing() -> str | None:
    """Why no program can be isolated on this machine; None if programs can be."""
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
    """Whether a Python program passes its tests, run in a sandbox.

    `grade`: `all` tests must pass, or the `fraction` that passes. `timeout`: seconds of wall time for the
    tests of a row (for each of its stdin tests); the column `timeout` replaces it, up to 120. `memory_mb`:
    address space of the program. `backend`: `auto` takes the first that passes its self-test on this machine,
    a named one is used or refused, `remote` sends checks to a server at `url` that implements SandboxFusion's
    `/run_code`. `unsafe_local`: with `auto` and no usable back-end, run programs without isolation.
    `float_tolerance`: numbers in printed lines may differ by it, absolutely or relatively. `queue_timeout`:
    seconds to wait for a free slot before the status is `timeout`.

    `details`: `backend`, `passed`, `total`, `failures`, and `limit` if the program exhausted one.

    Raises:
        RequestError: an option is out of range, or no back-end can isolate programs (with what to install).
    """
    if not 0 < timeout <= row.LONGEST_TIMEOUT:
        raise RequestError(
            f"reward 'code': timeout = {timeout} must be more than 0 and at most {row.LONGEST_TIMEOUT:g}"
        )
    if not 64 <= memory_mb <= row.MOST_MEMORY:
        raise RequestError(f"reward 'code': memory_mb = {memory_mb} must be from 64 to {row.MOST_MEMORY}")
    if float_tolerance is not None and not 0 <= float_tolerance < float("inf"):
        raise RequestError(f"reward 'code': float_tolerance = {float_tolerance} must be 0 or more")
    tests = row.tests_of(example)
    limits = check.Limits(timeout, memory_mb << 20, queue_timeout, grade, float_tolerance)
    if backend == "remote":
        if not url:
            raise RequestError("reward 'code': backend 'remote' needs `url`, the address of the server")
        return remote.verdict_of(completion, tests, limits, url)
    chosen = ladder.choose(backend, unsafe_local)
    try:
        return check.verdict_of(completion, tests, limits, pool(chosen))
    except Unusable as error:
        return Verdict(None, "error", f"the sandbox does not start: {error}", details={"backend": chosen})
