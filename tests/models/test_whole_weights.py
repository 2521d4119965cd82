"""Files that lack weights of their model are refused wherever they are loaded; nothing is drawn at random."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import RequestError, WorkError
from posttrain.models import exporting
from posttrain.models.load import load_model, load_scored
from posttrain.recipe.schema import Model

UP = "model.layers.1.mlp.up_proj.weight"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def changed(source: Path, folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of the model at `source` with `change` made to its weights."""
    place = Path(shutil.copytree(source, folder))
    weights = load_file(place / "model.safetensors")
    change(weights)
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    return place


def trained(place: Path, **model) -> torch.nn.Module:
    return load_model(Model(init=str(place), **model), place, load_tokenizer(str(place)), seed=0)


def refused(place: Path, *words: str, **model) -> None:
    for load in (lambda: trained(place, **model), lambda: load_scored(place, "cpu")):
        with pytest.raises(RequestError) as caught:
            load()
        assert all(word in str(caught.value) for word in (str(place), *words)), caught.value


@pytest.mark.parametrize("name", [UP, HEAD])
def test_a_missing_weight(tiny, tmp_path, name):
    refused(changed(tiny, tmp_path / "m", lambda w: w.pop(name)), "not a whole model", f"lack {name};")


def test_several_are_counted(tiny, tmp_path):
    place = changed(tiny, tmp_path / "m", lambda w: [w.pop(name) for name in (UP, HEAD, EMBEDDING)])
    refused(place, f"lack {HEAD} (and 2 more)")


def test_another_shape(tiny, tmp_path):
    """48 rows instead of 64, whatever model.options says of it."""
    place = changed(tiny, tmp_path / "m", lambda w: w.update({UP: w[UP][:48].clone()}))
    for options in ({}, {"ignore_mismatched_sizes": True}):
        refused(place, f"{UP} as [48, 32] instead of [64, 32]", options=options)


def test_a_tied_head_is_not_missing_but_both_of_its_names_are(tied, tmp_path):
    assert HEAD not in load_file(tied / "model.safetensors")
    trained(tied)
    load_scored(tied, "cpu")
    refused(changed(tied, tmp_path / "m", lambda w: w.pop(EMBEDDING)), f"lack {HEAD} (and 1 more)")


def test_unused_weights_are_named(tiny, tmp_path, caplog):
    place = changed(tiny, tmp_path / "m", lambda w: w.update(zzz=torch.ones(2), zzzz=torch.ones(2)))
    trained(place)
    assert f"{place}: its files have weights that the model does not use: zzz (and 1 more)" in caplog.text


def test_the_base_of_an_adapter(tiny, tmp_path):
    base = changed(tiny, tmp_path / "base", lambda w: None)
    low = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), low).save_pretrained(tmp_path / "adapter")
    load_scored(tmp_path / "adapter", "cpu")
    changed(tiny, tmp_path / "partial", lambda w: w.pop(UP))
    shutil.copy(tmp_path / "partial" / "model.safetensors", base)
    for load in (load_scored, lambda place, _: trained_from(place, base)):
        with pytest.raises(RequestError, match=f"{base} is not a whole model: its files lack {UP}"):
            load(tmp_path / "adapter", "cpu")


def trained_from(place: Path, base: Path) -> torch.nn.Module:
    return load_model(Model(init=str(place)), place, load_tokenizer(str(base)), seed=0)


def test_an_export_that_lost_a_weight(tiny, tmp_path):
    """`load_whole` reads the export, too: there a random weight could pass for rounding."""
    model, lost = load_scored(tiny, "cpu"), changed(tiny, tmp_path / "out", lambda w: w.pop(UP))
    row = torch.arange(8)[None]
    scored = exporting._logits(model, row)
    with pytest.raises(WorkError, match=f"does not load what was exported: .* lack {UP}"):
        exporting._compare_logits(lost, row, scored, torch.inf)
