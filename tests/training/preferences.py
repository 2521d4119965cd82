"""Recipes of the preference stage on a tiny model, and what the tests of its parts read of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file

from posttrain.recipe import load_stage
from tests.tiny import RECIPE

COUNT = 40


def make_pairs(path: Path, count: int = COUNT) -> Path:
    """Pairs whose sides differ in length, either being the longer one."""
    rows = [
        {"prompt": f"Count {i}.", "chosen": f"good {i} " * (1 + i % 3), "rejected": f"bad {i} " * (1 + i % 4)}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_labelled(path: Path, count: int = COUNT) -> Path:
    """Single replies of different lengths, two of five good."""
    rows = [
        {
            "prompt": f"Count {i}." + " Please." * (i % 3),
            "completion": f"{'good' if i % 5 < 2 else 'bad'} {i} " * (1 + i % 4),
            "label": i % 5 < 2,
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_recipe(tmp_path: Path, tiny: Path) -> Path:
    """A DPO recipe for the tiny model; runs go below `tmp_path`, where labelled.jsonl has rows for KTO."""
    text = RECIPE.format(out=tmp_path, model=tiny, rows=make_pairs(tmp_path / "pairs.jsonl"))
    make_labelled(tmp_path / "labelled.jsonl")
    path = tmp_path / "case.yaml"
    path.write_text(
        text.replace("stage: sft", "stage: dpo").replace("learning_rate: 0.5", "learning_rate: 0.05")
    )
    return path


def kto(path: Path, **preference) -> list[str]:
    """Overrides that make KTO of the recipe in `path`."""
    given = json.dumps({"loss": "kto"} | preference)
    return [f"preference={given}", f"data.sources.0.path={path.parent / 'labelled.jsonl'}"]


def train(path: Path, *overrides: str):
    from posttrain import dpo

    return dpo.train(load_stage(str(path), list(overrides), "dpo"))


def rows(run, split: str = "train") -> list[dict]:
    path = Path(getattr(run, "path", run)) / "metrics.jsonl"
    return [row for line in path.read_text().splitlines() if (row := json.loads(line))["split"] == split]


def weights(run, step: int = 5) -> dict[str, torch.Tensor]:
    (file,) = (Path(getattr(run, "path", run)) / "checkpoints" / f"step-{step:06d}").glob(
        "*model.safetensors"
    )
    return load_file(file)


def far(a: dict, b: dict) -> float:
    """Largest difference of a weight; infinite where they do not have the same ones, NaN where one is. One
    process keeps the frozen head in the adapter's file, ZeRO-3 does not."""
    frozen = "base_model.model.lm_head.base_layer.weight"
    if a.keys() - {frozen} != b.keys() - {frozen}:
        return math.inf
    return float(torch.stack([(a[k].float() - b[k].float()).abs().max() for k in a.keys() & b.keys()]).max())


def moved(tiny: Path, folder: Path) -> Path:
    """The tiny model with other weights and the same tokenizer, saved in `folder`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def no_second_model(*_, **__):
    """In place of what loads a reference of its own."""
    raise AssertionError("a second model was loaded")
