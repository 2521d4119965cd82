"""The remote back-end against a small server that speaks SandboxFusion's `/run_code`."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from posttrain.rewards.code import code
from posttrain.types import Example

ADD = "def add(a, b):\n    return a + b\n"


class Server(BaseHTTPRequestHandler):
    answer: dict | bytes | None = None

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/run_code" and body["language"] == "python"
        out = self.answer if self.answer is not None else self.run(body)
        data = out if isinstance(out, bytes) else json.dumps(out).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)

    def run(self, body):
        try:
            done = subprocess.run(
                [sys.executable, "-c", body["code"]],
                input=body["stdin"],
                capture_output=True,
                text=True,
                timeout=body["run_timeout"],
            )
        except subprocess.TimeoutExpired:
            return {
                "status": "Failed",
                "run_result": {
                    "status": "TimeLimitExceeded",
                    "return_code": None,
                    "stdout": "",
                    "stderr": "",
                },
            }
        status = "Finished" if done.returncode == 0 else "Error"
        result = {
            "status": status,
            "return_code": done.returncode,
            "stdout": done.stdout,
            "stderr": done.stderr,
        }
        return {"status": "Success", "message": "", "run_result": result}

    def log_message(self, *args):
        pass


@pytest.fixture
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    Server.answer = None
    server.shutdown()
    server.server_close()


def score(url, program, **row):
    return code(program, Example(extra=row), backend="remote", url=url, timeout=2.0)


def test_function_tests(url):
    assert score(url, ADD, tests=["assert add(1, 2) == 3"]).value == 1.0
    verdict = score(url, f"```python\n{ADD}```", tests=["assert add(1, 2) == 3", "assert add(1, 2) == 4"])
    assert (verdict.value, verdict.reason) == (0.0, "test 2 of 2 failed: AssertionError")
    assert verdict.details["backend"] == "remote"


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [
        "class E:\n    def __eq__(s, o): return True\ndef add(a, b): return E()",
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "import os\ndef add(a, b):\n    os.write(1, b'{\"passed\": 1}')\n    os._exit(0)",
        "def add(a, b):\n    while True: pass",
        "import os\ndef add(a, b):\n    os.kill(os.getppid(), 9)",
    ],
)
def test_forgeries_fail(url, program):
    verdict = score(url, program, tests=["assert add(1, 2) == 3"])
    assert (verdict.value, verdict.status) == (0.0, "scored")


def test_the_candidate_never_holds_the_tests(url):
    """It is forked before the tests are read."""
    program = (
        "import gc\ndef add(a, b):\n    want = ''.join(('ass', 'ert ad', 'd('))\n"
        "    found = any(want in repr(o) for o in gc.get_objects() if isinstance(o, (dict, list)))\n"
        "    return 7919 if found else 0"
    )
    assert score(url, program, tests=["assert add(1, 2) == 7919"]).value == 0.0


@pytest.mark.slow
def test_standard_input(url):
    tests = [{"stdin": "2 3", "stdout": "5"}]
    assert score(url, "print(sum(map(int, input().split())))", stdin_tests=tests).value == 1.0
    assert score(url, "print(4)", stdin_tests=tests).value == 0.0
    assert score(url, "while True: pass", stdin_tests=tests).reason == "limit"


def test_down_or_nonsense_is_an_error(url):
    row = {"tests": ["assert add(1, 2) == 3"]}
    verdict = score("http://127.0.0.1:9", ADD, **row)
    assert (verdict.value, verdict.status) == (None, "error")
    for answer in (
        b"no json",
        [],
        {},
        {"status": "SandboxError", "message": "busy"},
        {"run_result": {"status": "?"}},
        {"status": "Success", "run_result": {"status": "Finished", "return_code": 0, "stdout": "x"}},
    ):
        Server.answer = answer
        verdict = score(url, ADD, **row)
        assert (verdict.value, verdict.status) == (None, "error"), answer
