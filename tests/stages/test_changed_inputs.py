"""A run whose reference, sampled model, teacher or reward model changed since it began is refused by the key
of the recipe; changed reward code is a warning that run.json keeps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from posttrain import pairs, pass_rate
from posttrain.base.stop import Stopped
from posttrain.errors import RequestError
from posttrain.rundir import proof
from posttrain.rundir.adapters import identity
from tests.rewards.test_reward_model import make
from tests.stages.damage import LAST, edit, start
from tests.stages.test_damage import refused, unfinished
from tests.unigram import content, prompts, run, unigram_model

pytestmark = pytest.mark.slow
REWARD = """from posttrain.types import Verdict


def score(completion: str, example) -> Verdict:
    return Verdict(float({}))
"""
REFERENCES = {
    "kept": ("dpo", "preference.reference_model", []),
    "live": ("dpo", "preference.reference_model", ["preference.reference=live"]),
    "rlvr": ("rlvr", "policy.reference", ["policy.beta=0.1"]),
}


def other_weights(folder: Path) -> None:
    """Another model of equal shape in the place of this one."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({name: value.flip(0) for name, value in tensors.items()}, file, {"format": "pt"})


def files(folder: Path) -> dict[str, bytes]:
    """What a refusal leaves as it was; run.json says of it."""
    found = (f for f in folder.rglob("*") if f.is_file() and f.name not in ("run.json", ".lock"))
    return {str(f): f.read_bytes() for f in found}


def folder_of_model(place: str) -> Path:
    """A copy of a run's last model that no checkpoint.json says anything of."""
    shutil.copytree(f"runs/sft/checkpoints/{LAST}", place)
    for name in ("checkpoint.json", "COMPLETE"):
        (Path(place) / name).unlink()
    return Path(place)


@pytest.mark.parametrize("kind", REFERENCES)
def test_another_reference_is_refused(runs, kind, capsys, caplog):
    name, key, more = REFERENCES[kind]
    model = folder_of_model("reference")
    settings = ["name=with", f"{key}=reference", *more]
    assert start(name, *settings) == 0
    checkpoints = unfinished(runs, "with")
    before = files(runs / "with")
    shutil.copytree(model, "kept")
    recorded = identity(model, None, lambda *_: None)
    other_weights(model)
    now = identity(model, None, lambda *_: None)
    said = refused(name, capsys, *settings)
    assert said.startswith(f"error: {key}: the model is another one than that of runs/with: recorded "), said
    assert f"recorded {recorded[:8]} ('reference'), now {now[:8]} ('reference'); restore it" in said
    assert files(runs / "with") == before
    # a copy is the same model
    shutil.rmtree(model)
    shutil.move("kept", model)
    assert start(name, *settings) == 0
    # an earlier version did not record it
    for step in checkpoints.glob("step-*"):
        edit(step, True, models=None)
    unfinished(runs, "with")
    other_weights(model)
    caplog.set_level("INFO")
    assert start(name, *settings) == 0
    assert f"does not say which model {key} was" in caplog.text


def test_a_run_as_reference_that_was_trained_on_is_another(runs, capsys):
    shutil.copytree("runs/sft", "runs/x")
    shutil.move(f"runs/x/checkpoints/{LAST}", "newer")
    settings = ["name=with", "preference.reference_model=runs/x"]
    assert start("dpo", *settings) == 0
    unfinished(runs, "with")
    shutil.move("newer", f"runs/x/checkpoints/{LAST}")
    said = refused("dpo", capsys, *settings)
    assert "('runs/x/checkpoints/step-000004'), now" in said and f"('runs/x/checkpoints/{LAST}')" in said


def test_the_weights_of_a_checkpoint_are_not_read_for_its_identity(runs, monkeypatch):
    folder = runs / "sft/checkpoints" / LAST
    expected = identity(folder_of_model("copy"), None, lambda *_: None)
    monkeypatch.setattr("posttrain.rundir.adapters.digest", lambda path: pytest.fail("read"))
    assert identity(folder, None, lambda *_: None) == expected
    assert proof.damage(folder) is None


def test_another_reward_model_is_refused_and_other_code_warned_of(
    runs, tmp_path, monkeypatch, capsys, caplog
):
    """The reward model and the user's function also where they are options of built-in rewards."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "reward_of_rlvr.py").write_text(REWARD.format("len(completion) % 2"))
    make(tmp_path / "scorer")
    own, scorer = "reward_of_rlvr:score", f"model: {tmp_path / 'scorer'}"
    rewards = f"rewards=[{{name: combine, options: {{rewards: [{{name: '{own}'}}]}}}}, "
    rewards += f"{{name: reward_model, weight: 0.1, options: {{{scorer}}}}}]"
    settings = ["name=with", rewards]
    assert start("rlvr", *settings) == 0
    unfinished(runs, "with")
    (tmp_path / "reward_of_rlvr.py").write_text(REWARD.format("0"))
    assert start("rlvr", *settings) == 0
    sentence = "rewards[0].options.rewards[0]: the code of reward_of_rlvr has changed since step-000004"
    assert sentence in caplog.text and "rewards before and after cannot be compared" in caplog.text
    (kept,) = json.loads((runs / "with/run.json").read_text())["changed_rewards"]
    assert kept.startswith(sentence) and sentence in (runs / "with/report.html").read_text()
    unfinished(runs, "with")
    before = files(runs / "with")
    other_weights(tmp_path / "scorer")
    assert "error: rewards[1].options.model: the model is another" in refused("rlvr", capsys, *settings)
    assert files(runs / "with") == before


# ---- stages that sample ------------------------------------------------------------------------------------


@pytest.fixture
def cut(monkeypatch) -> Callable[..., None]:
    """Runs a recipe and stops it after its first chunk."""

    def stop(path: Path, *overrides: str) -> None:
        with monkeypatch.context() as patch:
            for stage in (pairs.PairsStage, pass_rate.PassRateStage):
                made, part = [], stage.part

                def once(self, asked, rows, made=made, part=part):
                    if made:
                        raise KeyboardInterrupt
                    made.append(1)
                    return part(self, asked, rows)

                patch.setattr(stage, "part", once)
            with pytest.raises(Stopped, match="with 1 of 3 chunks"):
                run(path, *overrides)

    return stop


@pytest.mark.parametrize("stage", ["pairs", "pass_rate"])
def test_another_sampled_model_is_refused(write_recipe, digits, tmp_path, cut, stage):
    model = shutil.copytree(digits, tmp_path / "model")
    path = write_recipe(stage, prompts(12), model={"init": str(model)})
    cut(path)
    before, made = (tmp_path / "runs/made/run.json").read_text(), files(tmp_path / "runs/made")
    other_weights(model)
    with pytest.raises(RequestError, match=r"^model.init: the model is another one than that of .*recorded"):
        run(path)
    assert (tmp_path / "runs/made/run.json").read_text() == before and files(tmp_path / "runs/made") == made
    shutil.rmtree(model)
    shutil.copytree(digits, model)
    whole = write_recipe(stage, prompts(12), "whole", model={"init": str(model)})
    assert content(run(path)).keys() == content(run(whole)).keys()
    other_weights(model)  # of a finished run, too
    with pytest.raises(RequestError, match=r"^model.init: the model is another one"):
        run(path)
    file = tmp_path / "runs/made/run.json"
    about = json.loads(file.read_text())
    about.pop("models")
    file.write_text(json.dumps(about))
    run(path)  # of an earlier version


def test_before_the_first_chunk_another_model_may_be_taken(write_recipe, digits, tmp_path, monkeypatch):
    model = shutil.copytree(digits, tmp_path / "model")
    path = write_recipe("pairs", prompts(12), model={"init": str(model)})
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("posttrain.stages.sample._chunk", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(path)
    shutil.rmtree(model)
    unigram_model(model, {"1": 0.3, "2": 0.3, "\n": 0.2})
    other = identity(model, None, lambda *_: None)
    about = json.loads((run(path) / "run.json").read_text())
    assert about["models"]["model.init"] == {"place": str(model), "identity": other}


def test_another_teacher_is_refused(write_recipe, digits, tmp_path, cut):
    teacher = shutil.copytree(digits, tmp_path / "teacher")
    path = write_recipe("pairs", prompts(12), pairing={"strategy": "cross_model", "teacher": str(teacher)})
    cut(path)
    other_weights(teacher)
    with pytest.raises(RequestError, match=r"^pairing.teacher: the model is another one"):
        run(path)


def test_other_code_is_warned_of_once(write_recipe, tmp_path, monkeypatch, cut, caplog):
    monkeypatch.syspath_prepend(tmp_path)
    code = tmp_path / "reward_of_pairs.py"
    code.write_text(REWARD.format("'2' not in completion"))
    path = write_recipe("pairs", prompts(12), rewards=[{"name": "reward_of_pairs:score", "label": "own"}])
    cut(path)
    code.write_text(code.read_text() + "# mended\n")
    for _ in range(2):
        made = run(path)
    (kept,) = json.loads((made / "run.json").read_text())["changed_rewards"]
    assert kept.startswith("rewards[0]: the code of reward_of_pairs has changed since made")
    assert sum(kept in line for line in caplog.messages) == 1
