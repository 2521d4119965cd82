"""A sampling stage that is cut off, killed, started again, and shared by two processes: the same files,
nothing twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

import posttrain.stages.sample
from posttrain import pairs
from posttrain.base.stop import Stopped
from posttrain.generation.local import TransformersGenerator
from posttrain.rewards.compose import Composite
from tests.unigram import content, prompts, rollouts, run


@pytest.mark.slow
def test_nothing_is_sampled_twice(write_recipe, monkeypatch):
    """Cut off while a chunk is sampled, and between what was sampled and what is made of it."""
    path = write_recipe("pairs", prompts(20), "whole")
    whole = content(run(path))
    asked: list[int] = []
    sample, part = posttrain.stages.sample.sample, pairs.PairsStage.part

    def count(generator, chunk, *more):
        if len(asked) == 8 and not cut:
            cut.append("while sampling")
            raise KeyboardInterrupt
        asked.extend(p.position for p in chunk)
        return sample(generator, chunk, *more)

    def stop_once(self, chunk, rows):
        if len(asked) == 16 and len(cut) == 1:
            cut.append("after sampling")
            raise KeyboardInterrupt
        return part(self, chunk, rows)

    cut: list[str] = []
    monkeypatch.setattr(posttrain.stages.sample, "sample", count)
    monkeypatch.setattr(pairs.PairsStage, "part", stop_once)
    path = write_recipe("pairs", prompts(20), "cut")
    for said in (["while sampling"], ["while sampling", "after sampling"]):
        with pytest.raises(
            Stopped, match=rf"^stopped with {len(said) + 1} of 5 chunks sampled; run the same"
        ):
            run(path)
        assert cut == said
        status = json.loads((path.parent / "runs/cut/run.json").read_text())["status"]
        assert status == "stopped"
    # the memory got smaller in between: chunks stay what they are
    made = run(path, "rollout.batch_size=8")
    assert asked == list(range(20)) and content(made) == whole
    times = {file: file.stat().st_mtime_ns for file in made.glob("*s/chunk-*")}
    assert run(path) == made and len(asked) == 20  # finished: nothing to do
    assert all(file.stat().st_mtime_ns == at for file, at in times.items()) and len(times) == 10


def test_what_another_recipe_has_sampled_is_not_taken_over(write_recipe, monkeypatch):
    """An attempt that has made nothing yet may be corrected; its completions go."""

    def stop(self, chunk, rows):
        raise KeyboardInterrupt

    path = write_recipe("pairs", prompts(8))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(pairs.PairsStage, "part", stop)
        run(path)
    old = rollouts(path.parent / "runs/made")
    new = rollouts(run(path, "rollout.temperature=0.7"))
    fresh = rollouts(run(path, "rollout.temperature=0.7", "name=fresh"))
    texts = [[row["completion"] for row in rows] for rows in (old, new, fresh)]
    assert texts[1] == texts[2] and texts[0] != texts[1][: len(old)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_cuts_off_a_chunk_at_once(write_recipe, monkeypatch, number):
    """While it is generated, and while it is checked: what was asked for takes a minute. Launchers and
    pipelines may repeat the signal. The chunk is made again, and is the same."""
    path = write_recipe("pairs", prompts(12), "whole")
    whole = content(run(path))
    path = write_recipe("pairs", prompts(12), "cut")
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once the stage has ended
    for owner, name, at in ((TransformersGenerator, "_prefill", 2), (Composite, "grade", 1)):
        plain, calls = getattr(owner, name), []

        def slow(*args, plain=plain, calls=calls, at=at, **kwargs):
            calls.append(time.monotonic())
            if len(calls) == at:
                for wait in (0.1, 0.3):
                    threading.Timer(wait, os.kill, (os.getpid(), number if wait < 0.2 else 15)).start()
                time.sleep(60)
            return plain(*args, **kwargs)

        with monkeypatch.context() as patch, pytest.raises(Stopped, match="stopped with 1 of 3 chunks"):
            patch.setattr(owner, name, slow)
            run(path)
        assert time.monotonic() - calls[-1] < 5
        time.sleep(0.3)
    signal.signal(signal.SIGTERM, before)
    assert content(run(path)) == whole


@pytest.mark.slow
def test_one_of_two_ranks_killed_is_named_by_the_other_and_both_resume(write_recipe, tmp_path, monkeypatch):
    """Each once. No file of a chunk is made twice, and all are those of one process."""
    monkeypatch.setattr("posttrain.stages.ranks.POLL_S", 0.02)  # a rank has to be seen before it dies
    quick = {"num_generations": 8, "max_new_tokens": 24, "batch_size": 8}
    whole = run(write_recipe("pairs", prompts(96), "whole", rollout=quick))
    path = write_recipe("pairs", prompts(96), "cut", rollout=quick)
    made, ranks = tmp_path / "runs" / "cut", []
    kept: dict = {}
    try:
        for dies, chunk in ((0, 4), (1, 16)):
            ranks = [forked(path, 0), forked(path, 1)]
            deadline = time.monotonic() + 120
            while not all((made / f"parts/chunk-{chunk + r:06d}.jsonl").exists() for r in range(2)):
                assert time.monotonic() < deadline
                time.sleep(0.002)
            os.kill(ranks[1 - dies], signal.SIGSTOP)  # or it might be done before it looks
            os.kill(ranks[dies], signal.SIGKILL)
            os.waitpid(ranks[dies], 0)
            begun = time.monotonic()
            os.kill(ranks[1 - dies], signal.SIGCONT)
            assert os.waitstatus_to_exitcode(os.waitpid(ranks[1 - dies], 0)[1]) == 1
            assert time.monotonic() - begun < 30
            said = (tmp_path / f"{1 - dies}.log").read_text()
            process = f"process {ranks[dies]} on host {socket.gethostname()}"
            sentence = f"error: rank {dies} ({process}) has died; run the same command to resume"
            assert sentence in said and "Traceback" not in said, said[-2000:]
            assert all(file.stat().st_mtime_ns == at for file, at in kept.items())
            kept = {file: file.stat().st_mtime_ns for file in made.glob("parts/*.jsonl")}
            status = json.loads((made / "run.json").read_text())["status"]
            assert status == ("running" if dies == 0 else "failed")
        ranks = [forked(path, 0), forked(path, 1)]
        assert [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGKILL)
    assert all(file.stat().st_mtime_ns == at for file, at in kept.items())
    assert content(made) == content(whole)
    assert json.loads((made / "run.json").read_text())["status"] == "finished"
    assert (made / "report.html").is_file()
    assert not (made / ".ranks").exists()


def forked(path: Path, rank: int) -> int:
    """A child that is one of two ranks; what it says is in `<rank>.log` beside the recipe."""
    if child := os.fork():
        return child
    code = 99
    try:
        os.environ.update({"RANK": str(rank), "WORLD_SIZE": "2"})
        log = os.open(path.with_name(f"{rank}.log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(log, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
        code = pairs.main([str(path)])
    finally:
        os._exit(code)
