"""Every attack is held by bubblewrap and landlock, as the current user and, if that is root, as another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.rewards.code.sandbox import ladder, runtime
from tests.conftest import ROOT, require

HERE = Path(__file__).parent
STRANGER = 12345
SECONDS = "0.6"


def interpreter() -> str | None:
    """A Python of this version that a stranger may run."""
    for path in (sys.executable, "/usr/bin/python3"):
        if not os.path.exists(path) or not runtime.reachable(path):
            continue
        told = subprocess.run(
            [path, "-c", "import sys; print(*sys.version_info[:2])"],
            capture_output=True,
            text=True,
            env={},
            user=STRANGER if os.getuid() == 0 else None,
            cwd="/",
        )
        if told.returncode == 0 and told.stdout.split() == [str(v) for v in sys.version_info[:2]]:
            return path
    return None


def fight(backend: str, stranger: bool) -> dict:
    folders = [str(ROOT), *[p for p in sys.path if p.endswith("site-packages")]]
    environment = {"PYTHONPATH": ":".join(folders), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    as_user = {"user": STRANGER, "group": STRANGER, "extra_groups": []} if stranger else {}
    python = interpreter() if stranger else sys.executable
    require("sandbox", python is not None, "no Python that an ordinary user may run")
    require("sandbox", all(runtime.reachable(p) for p in folders), "the checkout is closed to other users")
    done = subprocess.run(
        [python, str(HERE / "arena.py"), "--json", "--seconds", SECONDS, backend],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        cwd="/",
        **as_user,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("stranger", [False, True], ids=["this user", "ordinary user"])
@pytest.mark.parametrize("backend", ["bubblewrap", "landlock"])
def test_every_attack_is_held(backend, stranger):
    require("sandbox", ladder.tested(backend) is None, f"{backend}: {ladder.tested(backend)}")
    if stranger and os.getuid() != 0:
        pytest.skip("only root can become another user; `this user` is the ordinary one")
    told = fight(backend, stranger)
    assert told["uid"] == (STRANGER if stranger else os.getuid())
    outcomes = told["results"][backend]
    assert len(outcomes) >= 150
    assert {name: what for name, what in outcomes.items() if what != "held"} == {}


@pytest.mark.slow
def test_without_walls_attacks_get_through():
    """The attacks can tell: the same programs as our own user without walls reach what they want."""
    told = json.loads(
        subprocess.run(
            [sys.executable, str(HERE / "arena.py"), "--json", "--only", "escape", "none"],
            capture_output=True,
            text=True,
            timeout=100,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
        ).stdout
    )
    broken = {name for name, what in told["results"]["none"].items() if what != "held"}
    assert {"reads a secret", "reads /etc/passwd", "appends to a secret", "changes a mode"} & broken


def test_names_are_unique():
    sys.path.insert(0, str(HERE))
    from attacks import attacks

    names = [a.name for a in attacks()]
    assert len(names) == len(set(names)) and len(names) >= 150
