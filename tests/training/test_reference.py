"""References: live or precomputed, the start model or another one; one whose tokenizer differs is refused
first."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from posttrain.errors import RequestError
from tests.training.preferences import far, moved, no_second_model, rows, train, weights, write_recipe


@pytest.fixture(scope="module")
def other(tmp_path_factory, tiny) -> Path:
    return moved(tiny, tmp_path_factory.mktemp("other") / "model")


@pytest.fixture
def path(tmp_path, tiny) -> Path:
    return write_recipe(tmp_path, tiny)


def preference(**given) -> str:
    return "preference={loss: dpo, " + ", ".join(f"{k}: {v}" for k, v in given.items()) + "}"


@pytest.mark.slow
def test_live_and_precomputed_are_the_same(path, other, monkeypatch):
    """To 1e-6 in every step, whichever model is the reference; each is kept under its own content."""
    runs = {}
    for name, model in (("start", {}), ("other", {"reference_model": other})):
        for kind in ("precomputed", "live"):
            settings = (f"name={name}-{kind}", "train.max_steps=3", "train.learning_rate=0.3")
            runs[name, kind] = train(path, preference(reference=kind, **model), *settings)
        ours, theirs = (rows(runs[name, kind]) for kind in ("precomputed", "live"))
        for a, b in zip(ours, theirs, strict=True):
            for key in ("loss", "rewards/margins", "logratio/chosen"):
                assert a[key] == pytest.approx(b[key], abs=1e-6 * max(1, abs(a[key]))), (name, key)
        assert far(weights(runs[name, "live"], 3), weights(runs[name, "precomputed"], 3)) <= 1e-6
        assert not list(runs[name, "live"].path.glob("reference/*"))
    first = [rows(runs[name, "live"])[0]["rewards/margins"] for name in ("start", "other")]
    assert first[0] == 0 and abs(first[1]) > 0.01
    names = {next(runs[n, "precomputed"].path.glob("reference/*.npz")).name for n in ("start", "other")}
    assert len(names) == 2

    from posttrain import dpo

    monkeypatch.setattr(dpo, "frozen_reference", no_second_model)  # found again: no model is loaded for it
    train(path, preference(reference_model=other), "name=again", "train.max_steps=3")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["another", "live"])
def test_a_run_goes_on_without_what_was_kept(path, other, kind):
    """Another model, unlike the start model, is not what has been trained since; live, the start model is
    loaded anew."""
    given = {"reference_model": other} if kind == "another" else {"reference": "live"}
    settings = [preference(**given), "checkpoints.save_steps=3", "checkpoints.keep_last=null"]
    run = train(path, *settings)
    whole = weights(run)
    shutil.rmtree(run.checkpoints / "step-000005")
    for place in (run.path, path.parent / "cache"):
        shutil.rmtree(place / "reference", ignore_errors=kind == "live")
    train(path, *settings)
    assert far(weights(run), whole) == 0


@pytest.mark.parametrize(("bf16", "names"), [("true", 2), ("false", 1)])
def test_references_of_bf16_weights_and_of_autocast_are_kept_apart(path, tiny, monkeypatch, bf16, names):
    """FSDP2 runs bf16 weights, one process autocast, which is not the same function."""
    from transformers import AutoModelForCausalLM

    from posttrain import dpo
    from posttrain.recipe import load_stage

    recipe = load_stage(str(path), [f"train.bf16={bf16}"], "dpo")
    parts, found = SimpleNamespace(start=tiny, model=AutoModelForCausalLM.from_pretrained(tiny)), set()
    for asked in ("true", "false"):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", asked)
        found.add(dpo._reference_identity(recipe, parts))
    assert len(found) == names


# ---- what is refused, before rows are prepared and models are loaded ---------------------------------------


def other_tokenizer(tiny: Path, folder: Path, change) -> Path:
    from transformers import AutoTokenizer

    shutil.copytree(tiny, folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda t: t.add_tokens(["<think>"]),
            "has another tokenizer: '<think>' is token 2.. there, the policy has no such",
        ),
        (lambda t: setattr(t, "eos_token", "<|im_end|>"), "its eos_token_id is .*, the policy's"),
    ],
    ids=["token", "eos"],
)
def test_another_tokenizer(path, tiny, tmp_path, change, sentence):
    place = other_tokenizer(tiny, tmp_path / "changed", change)
    with pytest.raises(RequestError, match=f"preference.reference_model = .*changed.*{sentence}"):
        train(path, preference(reference_model=place))
    assert not (tmp_path / "cache").exists() and not (tmp_path / "case").exists()


def test_a_policy_with_a_token_more(path, other, tmp_path):
    with pytest.raises(RequestError, match="the policy's '<think>' is missing from it"):
        train(path, preference(reference_model=other), "model.add_tokens=['<think>']")


def test_places_without_a_model(path, tmp_path):
    with pytest.raises(RequestError, match="reference_model = .*empty has no tokenizer.json"):
        (tmp_path / "empty").mkdir()
        train(path, preference(reference_model=tmp_path / "empty"))
    from posttrain.recipe import load_stage
    from posttrain.stages.preflight import preflight

    gone = load_stage(str(path), [preference(reference_model="runs/gone")], "dpo")
    with pytest.raises(RequestError, match="preference.reference_model: runs/gone: no such run or path"):
        preflight(gone)
    assert preflight(gone, coming=["runs/gone"]), "a run that an earlier stage will make"
    empty = load_stage(str(path), [preference(reference_model=tmp_path / "empty")], "dpo")
    with pytest.raises(RequestError, match="preference.reference_model: .*contains no model"):
        preflight(empty)


# ---- what makes two models the same ------------------------------------------------------------------------


def test_log_probabilities_of_a_batch_are_not_rounded_under_deepspeed():
    """The library casts floats of a batch to the engine's bf16: -300.7 would become -300."""
    from transformers import Trainer

    from posttrain.training.trainer import RunTrainer

    class Bare(RunTrainer, Trainer):
        def __init__(self) -> None:
            self.args, self.is_deepspeed_enabled = SimpleNamespace(device="cpu"), True
            config = SimpleNamespace(dtype=lambda: torch.bfloat16)
            plugin = SimpleNamespace(hf_ds_config=config)
            self.accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))

    given = {"reference": torch.tensor([-300.7]), "mismatch": {"reference": torch.tensor([0.1])}, "n": 3}
    found = Bare()._prepare_inputs(given)
    assert found == given and found["mismatch"]["reference"].dtype == torch.float32


def test_new_rows_are_the_same_in_every_copy(tiny):
    """A live reference is a second copy of the start model; rows for new tokens are drawn."""
    from posttrain.data.tokenizers import load_tokenizer
    from posttrain.models.load import load_model
    from posttrain.recipe.schema import Model

    tokenizer = load_tokenizer(str(tiny))
    tokenizer.add_tokens(["<think>"])
    copies = []
    for _ in range(2):
        copies.append(load_model(Model(init=str(tiny)), str(tiny), tokenizer, 3))
        torch.rand(5)
    a, b = (model.get_input_embeddings().weight[-1] for model in copies)
    assert torch.equal(a, b)
