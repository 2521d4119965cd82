"""Runs the attacks against back-ends. Prints a table, or JSON for the tests: `held` or what broke.

    python tests/rewards/code/arena.py [--json] [--only KIND] [back-end ...]

Every attack is scored like a completion. It is a breach if it scores above 0, makes the checker fail, takes
much longer than its time, changes a file of ours or leaves a process. Run it as root and as an ordinary user.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from attacks import Attack, attacks

from posttrain.rewards.code import check
from posttrain.rewards.code.row import tests_of
from posttrain.rewards.code.sandbox import ladder, pool
from posttrain.rewards.code.sandbox.backends import Unusable
from posttrain.types import Example

SECONDS = 1.5
LATE = 4.0
"""Seconds over its time before a check counts as stuck."""


class Arena:
    """Files, sockets and a caller for the attacks to reach for; `run` says `held` or what broke."""

    def __init__(self, backend: str, seconds: float = SECONDS, size: int = 1):
        self.seconds = seconds
        self.pool = pool.Pool(backend, size=size)
        self.folder = Path(tempfile.mkdtemp(prefix="posttrain-arena-"))
        self.folder.chmod(0o777)
        self.secret, self.target = self.folder / "secret", self.folder / "target"
        self.listeners = []
        os.environ["POSTTRAIN_SECRET"] = "1"
        self.words = {
            "secret": self.secret,
            "target": self.target,
            "pid": os.getpid(),
            "python": os.path.realpath(sys.executable),
            "socket": self.folder / "socket",
            "abstract": f"posttrain-arena-{os.getpid()}",
        }
        for family, address, kind in (
            (socket.AF_INET, ("127.0.0.1", 0), socket.SOCK_STREAM),
            (socket.AF_UNIX, str(self.folder / "socket"), socket.SOCK_STREAM),
            (socket.AF_UNIX, "\0" + self.words["abstract"], socket.SOCK_STREAM),
        ):
            listener = socket.socket(family, kind)
            listener.bind(address)
            listener.listen(16)
            self.listeners.append(listener)
        post = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        post.bind(str(self.folder / "post"))
        self.listeners.append(post)
        self.words["post"] = self.folder / "post"
        for name in ("socket", "post"):
            (self.folder / name).chmod(0o777)
        self.words["port"] = self.listeners[0].getsockname()[1]

    def close(self) -> None:
        self.pool.close()
        for listener in self.listeners:
            listener.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, attack: Attack) -> str:
        """`held`, or what broke."""
        self.secret.write_text("a secret")
        self.secret.chmod(0o666)
        before = self.secret.stat()
        if attack.before:
            self.score(attack.before, {"stdin_tests": [{"stdin": "", "stdout": ""}]})
        row = {"tests": attack.tests} if attack.tests else {"stdin_tests": [{"stdin": "", "stdout": "OUT"}]}
        start = time.monotonic()
        verdict = self.score(attack.program, row)
        spent = time.monotonic() - start
        if verdict.value is None or verdict.status not in ("scored", "unparseable"):
            return f"the checker failed: {verdict.status} {verdict.reason}"
        if verdict.value > 0:
            return "it scored"
        if spent > self.seconds * max(1, len(attack.tests)) + LATE:
            return f"took {spent:.1f} s"
        if attack.limit and verdict.reason != "limit":
            return f"no limit but {verdict.reason}"
        if self.target.exists():
            return "wrote a file"
        if not self.secret.exists():
            return "deleted a file"
        after = self.secret.stat()
        if (
            self.secret.read_text() != "a secret"
            or after.st_mode != before.st_mode
            or after.st_mtime != before.st_mtime
        ):
            return "changed a file"
        left = children()
        if len(left) > 4:
            return f"left processes {left}"
        return "held"

    def score(self, program: str, row: dict):
        for word, value in self.words.items():
            program = program.replace(f"<<{word}>>", str(value))
        example = Example(extra=row)
        limits = check.Limits(self.seconds, 256 << 20, 60.0)
        return check.verdict_of(f"```python\n{program}\n```", tests_of(example), limits, self.pool)


def children() -> list[int]:
    """Every process below this one."""
    above = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                above[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, todo = [], [os.getpid()]
    while todo:
        top = todo.pop()
        mine = [pid for pid, parent in above.items() if parent == top]
        found += mine
        todo += mine
    return found


def fight(backend: str, kinds: list[str], seconds: float = SECONDS) -> dict[str, str]:
    """{attack: outcome} on one back-end."""
    try:
        arena = Arena(backend, seconds)
        with arena.pool.slot(60) as slot:
            slot.start()
    except Unusable as error:
        return {"": f"unusable: {error}"}
    try:
        return {a.name: arena.run(a) for a in attacks() if not kinds or a.kind in kinds}
    finally:
        arena.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="attacks on the sandbox, by back-end")
    parser.add_argument("backends", nargs="*", default=["bubblewrap", "landlock"])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--only", action="append", default=[])
    given = parser.parse_args()
    results = {name: fight(name, given.only, given.seconds) for name in given.backends}
    if given.json:
        print(json.dumps({"uid": os.getuid(), "results": results}))
        return 0
    print(f"as user {os.getuid()}; self-tests: { {b: ladder.tested(b) or 'holds' for b in given.backends} }")
    names = list(dict.fromkeys(n for r in results.values() for n in r))
    print(f"{'attack':44} " + " ".join(f"{b:14}" for b in given.backends))
    for name in names:
        print(f"{name:44} " + " ".join(f"{r.get(name, '-')[:60]:14}" for r in results.values()))
    for backend, outcome in results.items():
        print(f"{backend}: {sum(v == 'held' for v in outcome.values())} of {len(outcome)} held")
    return int(any(v != "held" for r in results.values() for v in r.values()))


if __name__ == "__main__":
    raise SystemExit(main())
