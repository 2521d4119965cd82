"""A sampling stage that is cut off, killed, started again, and shared by two processes: the same files,
nothing twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

import posttrain.stages.sample
from posttrain import pairs
from tests.conftest import ROOT
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
        with pytest.raises(KeyboardInterrupt):
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
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pairs.PairsStage, "part", stop)
        run(path)
    old = rollouts(path.parent / "runs/made")
    new = rollouts(run(path, "rollout.temperature=0.7"))
    fresh = rollouts(run(path, "rollout.temperature=0.7", "name=fresh"))
    texts = [[row["completion"] for row in rows] for rows in (old, new, fresh)]
    assert texts[1] == texts[2] and texts[0] != texts[1][: len(old)]


@pytest.mark.slow
def test_main_process_killed_and_resumed_beside_another_equals_one(write_recipe, tmp_path, monkeypatch):
    """The second process knows nothing of it; the first, started again, does its own share and waits for the
    other."""
    quick = {"num_generations": 8, "max_new_tokens": 24, "batch_size": 8}
    whole = run(write_recipe("pairs", prompts(48), "whole", rollout=quick))
    path = write_recipe("pairs", prompts(48), "cut", rollout=quick)
    shared = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "WORLD_SIZE": "2",
    }
    first, second = (
        subprocess.Popen(
            [sys.executable, "-m", "posttrain.pairs", str(path)],
            env=os.environ | shared | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    )
    try:
        made = tmp_path / "runs" / "cut"
        deadline = time.monotonic() + 120
        while not (made / "parts" / "chunk-000004.jsonl").exists() and first.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        first.kill()
        said = first.communicate()[0].decode()
        parts = {file: file.stat().st_mtime_ns for file in made.glob("parts/*[02468].jsonl")}
        assert first.returncode == -9 and 3 <= len(parts) < 24, said[-2000:]
        assert json.loads((made / "run.json").read_text())["status"] == "running"
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
        assert pairs.main([str(path)]) == 0
        assert second.wait(timeout=60) == 0, second.communicate()[0].decode()[-2000:]
    finally:
        first.kill()
        second.kill()
    assert all(file.stat().st_mtime_ns == at for file, at in parts.items())
    assert content(made) == content(whole)
    assert json.loads((made / "run.json").read_text())["status"] == "finished"
    assert (made / "report.html").is_file()
