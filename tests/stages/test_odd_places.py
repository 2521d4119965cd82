"""Runs on machines where something is wrong: calls of the file system that fail once or always, locks that
are not there, a clock that jumps, folders that are links, copies, shared, or suddenly read-only.

Each start ends with success or one sentence, and the same command ends like an undisturbed run at last. Left
out: full disks (test_full_disk.py), kills (test_kill_loops.py), the lock alone (`tests/rundir/test_lock.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.stages.compared import ENVIRONMENT, SETTINGS, Runs, recipe_of

pytestmark = pytest.mark.exhaustive
QUICK = (*SETTINGS["sft"], "train.max_steps=8")
HALF = {"kind": "killed", "module": "posttrain.rundir.checkpoints", "name": "finish", "at": 3}
"""Ends a run with -9 while it writes its last checkpoint but one."""


def fails(call: str, error: str, at: int, **more: Any) -> dict:
    return {"kind": "fails", "call": call, "error": error, "at": at, **more}


CASES: dict[str, dict] = {
    "replace-ESTALE-ever": fails("replace", "ESTALE", 12, always=True),
    "flock-ENOLCK": {"kind": "no_locks", "error": "ENOLCK"},
    "clock-back": {"kind": "clock", "shift": -3600, "after": 20},
}
"""What is wrong during the first start of a run; the second one is on a sound machine."""
MORE: dict[str, dict] = {
    "replace-EIO": fails("replace", "EIO", 9),
    "replace-done-ENOENT": fails("replace", "ENOENT", 12, done=True),  # NFS asks again after a lost answer
    "rename-EBUSY": fails("rename", "EBUSY", 1),
    "rename-done-ENOENT": fails("rename", "ENOENT", 1, done=True),
    "fsync-EIO": fails("fsync", "EIO", 2, where="optimizer.pt"),
    "fsync-EIO-ever": fails("fsync", "EIO", 100, always=True),
    "nfs-files-once": {"kind": "silly", "at": 1, "times": 2},
    "nfs-files-ever": {"kind": "silly", "at": 1, "times": 10**6},
    "flock-ENOSYS": {"kind": "no_locks", "error": "ENOSYS"},
    "clock-forth": {"kind": "clock", "shift": 3600, "after": 20},
}
"""The same, in the exhaustive suite."""


class Odd(Runs):
    """Runs in forks of one process; `found` has what became of each start by its name."""

    def __init__(self, folder: Path, tiny: Path) -> None:
        super().__init__(folder)
        self.recipe = recipe_of("sft", folder, tiny, tiny)
        self.found: dict[str, dict] = {}

    def start(self, name: str, *faults: dict, run: str = "", **more: Any) -> dict:
        """One start of the command, of the run `run` (default: `name`)."""
        run = run or name
        argv = [str(self.recipe), f"name={run}", f"data.cache_dir={self.folder}/cache-{run}", *QUICK]
        return {"name": name, "module": "posttrain.sft", "argv": argv, "faults": faults} | more

    def run(self, *groups: list[dict]) -> None:
        """The starts of a group at the same time, one group after the other."""
        jobs, out = self.folder / "jobs.json", self.folder / "out.json"
        jobs.write_text(json.dumps([[self.start("whole")], *groups]))
        done = subprocess.run(
            [sys.executable, "-m", "tests.stages.faults", jobs, out],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=300 + 60 * len(groups),
        )
        assert out.exists(), done.stderr[-4000:]
        self.found = json.loads(out.read_text())

    def said(self, name: str) -> str:
        return self.found[name]["said"]

    def ended(self, name: str, *codes: int) -> None:
        code, said = self.found[name]["code"], self.said(name)
        assert code in codes and "Traceback" not in said, f"{name}: {code}\n{said[-3000:]}"
        assert code <= 0 or said.count("error: ") == 1, said

    def same(self, run: str) -> None:
        """The run is finished as `whole` is."""
        self.trained_the_same(run)
        self.left_the_same(run)


def cases(odd: Odd, faults: dict[str, dict]) -> list[list[dict]]:
    groups = []
    for name, fault in faults.items():
        groups += [[odd.start(name, fault)], [odd.start(f"{name} again", run=name)]]
    return groups


def places(odd: Odd) -> list[list[dict]]:
    folder = odd.folder
    groups: list[list[dict]] = []
    # the clock is an hour back when the run is resumed, the times of its files are in disorder
    groups += [[odd.start("clock", HALF, {"kind": "clock", "shift": 3600})]]
    groups += [[odd.start("clock again", {"kind": "times", "folder": f"{folder}/clock"}, run="clock")]]
    # the run directory is mounted read-only in the middle of the run
    frozen = {"kind": "read_only", "folder": f"{folder}/frozen", "at": 5}
    frozen |= {"module": "posttrain.training.trainer", "name": "append_jsonl"}
    groups += [[odd.start("frozen", frozen)], [odd.start("frozen again", run="frozen")]]
    # two runs on one cache, which is empty
    cache = f"data.cache_dir={folder}/cache-shared"
    shared = [odd.start(name) for name in ("shared-1", "shared-2")]
    groups += [[start | {"argv": [*start["argv"], cache]} for start in shared]]
    # two runs of one name, at once
    groups += [[odd.start("twice"), odd.start("twice too", run="twice")]]
    # the run directory, the folder of all runs, the cache are links
    for path, place in {"linked": "a", "linked/linked": "b", "cache-linked": "c"}.items():
        (folder / "elsewhere" / place).mkdir(parents=True)
        (folder / path).symlink_to(folder / "elsewhere" / place)
    output = f"output_dir={folder}/linked"
    for start in (odd.start("linked", HALF), odd.start("linked again", run="linked")):
        groups += [[start | {"argv": [*start["argv"], output]}]]
    # a folder with all that the recipe names is copied to another machine
    groups += [[_elsewhere(odd, "here", HALF)]]
    moved = {"kind": "moved", "source": f"{folder}/machine-1", "to": f"{folder}/machine-2"}
    groups += [[_elsewhere(odd, "there", moved, {"kind": "host", "name": "machine-2"})]]
    return groups


def _elsewhere(odd: Odd, name: str, *faults: dict) -> dict:
    text, machine = odd.recipe.read_text(), odd.folder / "machine-1"
    model = yaml.safe_load(text)["model"]["init"]
    if not machine.exists():
        machine.mkdir()
        shutil.copytree(model, machine / "model")
        shutil.copy(odd.folder / "rows.jsonl", machine)
        here = text.replace(model, "model").replace(f"{odd.folder}/", "").replace(str(odd.folder), ".")
        (machine / "case.yaml").write_text(here)
    argv = ["case.yaml", "name=moved", "data.cache_dir=cache-moved", *QUICK]
    folder = {"folder": str(machine)} if name == "here" else {}
    return odd.start(name, *faults) | {"argv": argv} | folder


@pytest.fixture(scope="module")
def odd(tmp_path_factory, tiny) -> Odd:
    odd = Odd(tmp_path_factory.mktemp("odd"), tiny)
    odd.run(*cases(odd, CASES), *places(odd))
    return odd


@pytest.fixture(scope="module")
def more(tmp_path_factory, tiny) -> Odd:
    more = Odd(tmp_path_factory.mktemp("more"), tiny)
    more.run(*cases(more, MORE))
    return more


def costs_at_most_one_start(odd: Odd, name: str) -> None:
    odd.ended(name, 0, 1)
    odd.ended(f"{name} again", 0)
    odd.same(name)


@pytest.mark.parametrize("name", CASES)
def test_a_fault_costs_at_most_one_start(odd, name):
    costs_at_most_one_start(odd, name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MORE)
def test_every_fault_costs_at_most_one_start(more, name):
    costs_at_most_one_start(more, name)
    seconds = json.loads((more.folder / name / "run.json").read_text())["seconds"]
    assert 0 <= seconds < 600


@pytest.mark.parametrize("name", ["clock-back", "clock"])
def test_no_time_is_negative(odd, name):
    info = json.loads((odd.folder / name / "run.json").read_text())
    assert 0 <= info["seconds"] < 600
    lines = (odd.folder / name / "metrics.jsonl").read_text().splitlines()
    speeds = [row["tokens_per_second"] for row in map(json.loads, lines) if row["split"] == "train"]
    assert speeds and all(speed > 0 for speed in speeds)


def test_the_clock_does_not_say_which_checkpoint_is_the_newest(odd):
    odd.ended("clock", -9)
    odd.ended("clock again", 0)
    assert "resuming from" in odd.said("clock again")
    odd.same("clock")


def test_a_folder_that_becomes_read_only(odd):
    if odd.found["frozen"]["code"] == 77:
        pytest.skip("no permission to mount")
    odd.ended("frozen", 1)
    assert "Read-only file system" in odd.said("frozen")
    odd.ended("frozen again", 0)
    odd.same("frozen")


def test_two_runs_on_one_cache_make_its_rows_once(odd):
    made = [odd.said(name).count("source 'rows': 48 rows in") for name in ("shared-1", "shared-2")]
    assert sorted(made) == [0, 1]
    for name in ("shared-1", "shared-2"):
        odd.ended(name, 0)
        odd.trained_the_same(name)


def test_of_two_starts_of_one_run_one_is_refused_and_the_other_unhurt(odd):
    codes = {name: odd.found[name]["code"] for name in ("twice", "twice too")}
    assert sorted(codes.values()) == [0, 2], codes
    refused = next(name for name, code in codes.items() if code == 2)
    odd.ended(refused, 2)
    assert f"{odd.folder}/twice is being written by process " in odd.said(refused)
    assert f" on host {socket.gethostname()} (since " in odd.said(refused)
    odd.same("twice")


def test_links(odd):
    odd.ended("linked", -9)
    odd.ended("linked again", 0)
    assert "resuming from" in odd.said("linked again")
    assert (odd.folder / "elsewhere/b/run.json").is_file() and any((odd.folder / "elsewhere/c").iterdir())
    odd.same("linked/linked")


def test_a_copy_on_another_machine(odd):
    """With everything that the recipe names, by relative paths; nothing of the first machine is needed."""
    odd.ended("here", -9)
    odd.ended("there", 0)
    assert "resuming from" in odd.said("there")
    for name in ("moved", "cache-moved"):
        (odd.folder / name).symlink_to(odd.folder / "machine-2" / name)
    odd.same("moved")
