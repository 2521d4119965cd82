"""Checks on a server that implements SandboxFusion's `POST /run_code`, instead of our own walls.

The server isolates; the verdict is still made outside the program's process. Each test by standard input is
one request, and its output is compared here. Function tests are one request: its script contains our host and
tester but no test, forks the candidate before it reads the tests from standard input, and reports under a
nonce that arrived the same way. If the server allows it, the candidate also gets our system call filter and
another user. A server that is down or breaks the protocol gives the status `error`, never 0. Left out: other
languages, upload of files, retries.
"""

from __future__ import annotations

import json
import secrets
import urllib.error
import urllib.request
from typing import Any

from posttrain.base.printable import server_of
from posttrain.rewards.code import check
from posttrain.rewards.code.row import Tests
from posttrain.rewards.code.sandbox import bundle
from posttrain.rewards.code.sandbox.slot import Ended
from posttrain.types import Verdict

NOT_SENT = ("landlock", "walls", "script", "zygote")
"""Modules of `inside` that a check on a server does not need."""
SPARE_S = 30.0
"""Seconds that the server may take in addition to the program's own."""
LARGEST = 64 << 20
"""Bytes of a response."""

SCRIPT = """
import json, os, socket, sys, types
p = types.ModuleType('inside'); p.__path__ = []; sys.modules['inside'] = p
for n, s in json.loads({modules!r}):
    x = types.ModuleType('inside.' + n); x.__package__ = 'inside'
    sys.modules['inside.' + n] = x; setattr(p, n, x)
    exec(compile(s, n + '.py', 'exec', dont_inherit=True), x.__dict__)
a, b = socket.socketpair()
pid = os.fork()
if not pid:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2): os.dup2(null, fd)
    c = os.dup2(a.fileno(), 100)
    os.closerange(3, 100)
    try:
        if os.getuid() == 0:
            os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3)
        p.limits.prctl(p.limits.PR_SET_NO_NEW_PRIVS, 1)
        p.limits.confine({memory}, {seconds}, p.seccomp.prepare(False), os.getppid())
    except Exception: pass  # then only the server's walls isolate
    try: p.host.Host(c).serve()
    finally: os._exit(0)
a.close()
p.limits.prctl(p.limits.PR_SET_DUMPABLE, 0)
told = json.loads(sys.stdin.read())
report = p.tester.Tester(b.fileno(), told['payload']).run()
os.kill(pid, 9)
_, status = os.waitpid(pid, 0)
print(told['nonce'] + json.dumps(report))
"""


class Down(Exception):
    """The server does not answer, or breaks its protocol."""


def verdict_of(completion: str, tests: Tests, limits: check.Limits, url: str) -> Verdict:
    """The verdict on one completion, from the server at `url`."""
    found = check.programs(completion)
    try:
        if isinstance(found, Verdict):
            verdict = found
        elif tests.kind == "stdin":
            verdict = check.scripts(
                lambda stdin, _, seconds: script(url, found[-1], stdin, seconds), tests, limits
            )
        else:
            verdict = functions(url, found, tests, limits)
    except Down as error:
        verdict = Verdict(None, "error", f"the sandbox server at {server_of(url)}: {error}")
    verdict.details["backend"] = "remote"
    return verdict


def functions(url: str, found: list[str], tests: Tests, limits: check.Limits) -> Verdict:
    """The verdict on function tests. Raises `Down`."""
    seconds = check.clock(tests, limits)
    nonce = secrets.token_hex(16)
    modules = json.dumps([(n, s) for n, s in bundle.modules() if n not in NOT_SENT])
    told = {"nonce": nonce, "payload": check.payload(found, tests, limits.grade)}
    run = post(
        url, SCRIPT.format(modules=modules, memory=limits.memory, seconds=seconds), json.dumps(told), seconds
    )
    ended = Ended(timed_out=run["status"] == "TimeLimitExceeded")
    for line in reversed((run.get("stdout") or "").splitlines()):
        if line.startswith(nonce):
            ended.report = json.loads(line[len(nonce) :])
            break
    if ended.report is None and not ended.timed_out and run.get("return_code") == 0:
        raise Down("the response contains no report")
    return check.functions_verdict(ended, tests, limits.grade, seconds)


def script(url: str, program: str, stdin: str, seconds: float) -> Ended:
    """One run of a program with its standard input. Raises `Down`."""
    run = post(url, program, stdin, seconds)
    code = run.get("return_code")
    return Ended(
        timed_out=run["status"] == "TimeLimitExceeded",
        stdout=(run.get("stdout") or "").encode("utf-8", "surrogatepass"),
        stderr=(run.get("stderr") or "").encode("utf-8", "surrogatepass"),
        ended={"candidate": [code if isinstance(code, int) else 0, 0.0, 0]},
    )


def post(url: str, program: str, stdin: str, seconds: float) -> dict[str, Any]:
    """The `run_result` of one request. Raises `Down`."""
    address = url.rstrip("/")
    address = address if address.endswith("/run_code") else address + "/run_code"
    body = {
        "code": program,
        "language": "python",
        "stdin": stdin,
        "run_timeout": seconds,
        "compile_timeout": seconds,
    }
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=seconds + SPARE_S) as response:
            data = response.read(LARGEST + 1)
        answer = json.loads(data)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise Down(str(getattr(error, "reason", error))[:200]) from None
    if not isinstance(answer, dict):
        raise Down("the response is not a JSON object")
    if answer.get("status") == "SandboxError":
        raise Down(f"SandboxError: {str(answer.get('message'))[:200]}")
    run = answer.get("run_result")
    if not isinstance(run, dict) or run.get("status") not in ("Finished", "Error", "TimeLimitExceeded"):
        raise Down("the response has no valid `run_result`")
    return run
