"""A disk that fills up at any file of a checkpoint: a sentence that says so, nothing half-written, and with
space the same command resumes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from posttrain.rundir.checkpoints import all_complete
from posttrain.sft import main
from tests.training.preferences import far, weights

SETTINGS = [
    "name=case",
    "train.max_steps=4",
    "train.optim=adamw_torch",
    "train.learning_rate=1e-3",
    "checkpoints.save_steps=2",
    "checkpoints.keep_last=null",
]


@pytest.fixture
def disk(tmp_path):
    """`disk(kib)`: a file system of its own of that size, or the same with another size."""
    place = tmp_path / "disk"
    place.mkdir()

    def sized(kib: int) -> Path:
        again = ["-o", f"remount,size={kib}k"] if place.is_mount() else ["-o", f"size={kib}k"]
        if subprocess.run(["mount", "-t", "tmpfs", *again, "none", place], capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        return place

    yield sized
    subprocess.run(["umount", place], capture_output=True)


@pytest.mark.slow
def test_every_file_of_a_checkpoint(recipe, disk, tmp_path, capfd):
    """The second checkpoint meets the end of the disk at a file that is further on in each round."""
    assert main([str(recipe), *SETTINGS, f"output_dir={tmp_path}/whole"]) == 0
    whole = tmp_path / "whole" / "case"
    sizes = {f.name: f.stat().st_size // 1024 for f in (whole / "checkpoints/step-000002").iterdir()}
    one, others = sum(sizes.values()), 60 + 4 * len(sizes)  # run.json and the like, in pages of 4 KiB
    said = []
    for share in (0.02, 0.3, 0.6, 0.9):
        run = disk(int(one * (1 + share)) + others) / "case"
        capfd.readouterr()
        code = main([str(recipe), *SETTINGS, f"output_dir={run.parent}"])
        err = capfd.readouterr().err
        if code == 0:  # there was room for it
            shutil.rmtree(run)
            continue
        said.append(err)
        assert code == 1 and "Traceback" not in err, err[-3000:]
        assert (
            "could not be written: the disk is full; run the same command to resume from step-000002" in err
        )
        assert [c.name for c in all_complete(run / "checkpoints")] == ["step-000002"]
        assert len(list((run / "checkpoints").iterdir())) == 1
        assert json.loads((run / "run.json").read_text())["status"] in ("failed", "running")
        disk(one * 4 + others)
        assert main([str(recipe), *SETTINGS, f"output_dir={run.parent}"]) == 0
        err = capfd.readouterr().err
        assert "step 4/4" in err and "step 1/4" not in err
        assert far(weights(run, 4), weights(whole, 4)) == 0
        shutil.rmtree(run)
    assert len(said) >= 3
