"""A real Slurm on this host: munged, slurmctld and two emulated nodes, all in one temporary folder.

Needs root and Debian's slurm-wlm and munge. The first node has the host's own name, because the script sends
every process to the first node of the list by name.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import require
from tests.tiny import RECIPE, tiny_model, write_rows

DAEMONS = ("munged", "slurmctld", "slurmd")

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
FirstJobId={first}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000
KillWait=5
GresTypes=gpu
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 CoresPerSocket=2 Gres=gpu:2
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 CoresPerSocket=2 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES MaxTime=10 State=UP
"""


def find(program: str) -> str | None:
    """A program of Slurm, also where /usr/sbin is not on PATH."""
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until(done: Callable[[], object], seconds: float, what: Callable[[], str]) -> None:
    """Polls; past the deadline the test fails with `what()`."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what()}")
        time.sleep(0.2)


@dataclass
class Job:
    """One submitted job."""

    id: str
    log: Path
    environment: dict[str, str]

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def facts(self) -> dict[str, str]:
        shown = subprocess.run(
            ["scontrol", "show", "job", self.id], env=self.environment, capture_output=True, text=True
        )
        return dict(re.findall(r"(\w+)=(\S+)", shown.stdout))

    def wait(self, seconds: float = 60) -> tuple[str, str]:
        """(state, exit code) as Slurm reports them, once the job is over."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
        wait_until(
            lambda: self.facts()["JobState"] in over,
            seconds,
            lambda: f"{self.facts()}\n{self.text()[-3000:]}",
        )
        facts = self.facts()
        return facts["JobState"], facts["ExitCode"]


class Cluster:
    """Two idle nodes; `submit` calls the real sbatch from the checkout."""

    def __init__(self, folder: Path, root: Path, nodes: list[str]) -> None:
        self.folder, self.root, self.nodes = folder, root, nodes
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PYTHON": sys.executable,
            "PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}",
            "ACCELERATE_CONFIG": "launch/cpu2.yaml",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
        }

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=30, cwd=self.root
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def submit(self, *arguments: str, options: tuple[str, ...] = (), **variables: str) -> Job:
        """sbatch over both nodes; `variables` are added to the submitter's environment."""
        environment = self.environment | variables
        command = [
            "sbatch",
            "--parsable",
            "--nodes=2",
            f"--output={self.folder}/%j.log",
            *options,
            "launch/slurm.sh",
            *arguments,
        ]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=30, cwd=self.root
        )
        assert done.returncode == 0, done.stderr
        number = done.stdout.strip()
        return Job(number, self.folder / f"{number}.log", self.environment)


@pytest.fixture(scope="session")
def cluster(root: Path) -> Iterator[Cluster]:
    missing = [name for name in (*DAEMONS, "sbatch", "srun") if find(name) is None]
    require("slurm", not missing, f"not installed: {', '.join(missing)} (Debian: slurm-wlm, munge)")
    require("slurm", os.geteuid() == 0, "the emulated nodes need root")
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # short: a socket's path has at most 107 characters
    host = socket.gethostname()
    cluster = Cluster(folder, root, [host, f"{host}-second"])
    processes: list[tuple[str, subprocess.Popen]] = []

    def start(name: str, *arguments: str) -> None:
        log = folder / f"{name}-{len(processes)}.out"
        with log.open("w") as out:
            command = [find(name), *arguments]
            started = subprocess.Popen(command, env=cluster.environment, stdout=out, stderr=out, cwd=folder)
        processes.append((name, started))

    def logs() -> str:
        return "\n".join(f"{path.name}:\n{path.read_text()[-1500:]}" for path in sorted(folder.glob("*.out")))

    try:
        configure(folder, host, cluster.nodes)
        start(
            "munged",
            "--foreground",
            "--force",
            f"--key-file={folder}/key",
            f"--socket={folder}/munge.socket",
            f"--pid-file={folder}/munge.pid",
            f"--log-file={folder}/munge.log",
            f"--seed-file={folder}/munge.seed",
        )
        wait_until((folder / "munge.socket").exists, 10, logs)
        start("slurmctld", "-D", "-c")
        for node in cluster.nodes:
            start("slurmd", "-D", "-N", node)
        wait_until(lambda: idle(cluster) == 2, 30, logs)
        yield cluster
        cluster.run("scancel", "--user=root")
        wait_until(lambda: not cluster.run("squeue", "--noheader"), 20, logs)
    finally:
        for _, process in reversed(processes):
            process.terminate()
        for name, process in reversed(processes):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                print(f"{name} had to be killed")
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def configure(folder: Path, host: str, nodes: list[str]) -> None:
    """The files that the daemons read."""
    folder.chmod(0o755)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    for name in ("state", *(f"spool-{node}" for node in nodes)):
        (folder / name).mkdir()
    # the script derives its port from the job id: clusters of several test processes must not share ids
    values = {
        "folder": folder,
        "host": host,
        "nodes": nodes,
        "ports": free_ports(3),
        "first": 1 + os.getpid() % 250 * 50,
    }
    (folder / "slurm.conf").write_text(CONFIG.format(**values))
    # two devices that every machine has stand in for GPUs: Slurm counts them, nothing opens them
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    version = subprocess.run([find("slurmd"), "-V"], capture_output=True, text=True).stdout.split()[-1]
    disabled = tuple(map(int, version.split(".")[:2])) >= (23, 11)  # before that, a plugin must be named
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={'disabled' if disabled else 'cgroup/v1'}\n")


def idle(cluster: Cluster) -> int:
    command = ["sinfo", "--noheader", "--Node", "--format=%t"]
    shown = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=30)
    return shown.stdout.split().count("idle")


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory) -> Path:
    """A recipe that trains a two-layer model over bytes for four steps."""
    folder = tmp_path_factory.mktemp("launch")
    model, rows = tiny_model(folder / "model"), write_rows(folder / "rows.jsonl")
    path = folder / "case.yaml"
    path.write_text(RECIPE.format(out=folder, model=model, rows=rows).replace("max_steps: 5", "max_steps: 4"))
    return path
