"""One global count per optimizer step: however the batch is split, losses and weights are the same.

accumulation x ranks = 1x8, 2x4, 8x1 micro-batches in one process, and two real processes under DDP and ZeRO-3
(tied and untied heads), against one process with the whole batch at once. Five SGD steps: Adam would amplify the
order of summation. The reference pitfall is the mean of means (transformers#34191).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

LOSSES = {
    "token_mean": ["loss.name=confidence_limited", "loss.n=4", "loss.reduction=token_mean"],
    "length_mean": [
        "loss.name=confidence_limited",
        "loss.n=16",
        "loss.value=surrogate",
        "loss.reduction=length_mean",
    ],
    "segment_mean": [
        "loss.name=confidence_limited",
        "loss.n=4",
        "loss.segment=step",
        "loss.reduction=segment_mean",
        "train.learning_rate=0.01",
    ],  # fmt: skip
    "sum": ["loss.name=cross_entropy", "loss.reduction=sum", "train.learning_rate=0.0005"],
    "answer": [
        "loss.name=confidence_limited",
        "loss.n=16",
        "loss.segment=answer",
        "loss.answer_marker='#### '",
    ],
    "padding_free": ["data.padding_free=true"],
}


def losses(run: str) -> list[float]:
    rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["split"] == "train"]


def weights(run: str, step: int = 5) -> dict[str, torch.Tensor]:
    return load_file(Path(run) / "checkpoints" / f"step-{step:06d}" / "model.safetensors")


def compare(run: str, reference: str, start: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest relative difference of losses, of weights, and of the head's change (its summed gradients)."""
    a, b = losses(run), losses(reference)
    assert len(a) == len(b) == 5
    wa, wb = weights(run), weights(reference)
    assert wa.keys() == wb.keys()
    head = "lm_head.weight" if "lm_head.weight" in wb else "model.embed_tokens.weight"
    moved = wb[head] - start[head]
    assert moved.norm() > 1e-4, "the head must have moved for the comparison to mean anything"
    return {
        "loss": max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True)),
        "weights": max(float((wa[k] - wb[k]).abs().max()) for k in wb),
        "head_gradient": float((wa[head] - wb[head]).norm() / moved.norm()),
    }


def case(recipe: Path, name: str, micro: int, *overrides: str, engine: str = "single") -> dict:
    settings = [f"name={name}", f"train.per_device_train_batch_size={micro}", *overrides]
    return {"name": name, "recipe": str(recipe), "overrides": settings, "engine": engine}


@pytest.mark.slow
def test_splits_and_engines_agree(recipe, launch, tiny, tied, record_property):
    """The table of the README: every split of the batch, every reduction, DDP and ZeRO-3."""
    heads = {"untied": [], "tied": [f"model.init={tied}"]}
    single, double, zero = [], [], []
    for loss, overrides in LOSSES.items():
        single.append(case(recipe, f"{loss}-reference", 8, *overrides))
        micros = (4, 2, 1) if loss == "token_mean" else (1,)
        single += [case(recipe, f"{loss}-acc{8 // m}", m, *overrides) for m in micros]
        double.append(case(recipe, f"{loss}-ddp", 2, *overrides, engine="ddp"))
        zero.append(case(recipe, f"{loss}-zero3", 2, *overrides, engine="zero3"))
    single.append(case(recipe, "tied-reference", 8, *heads["tied"]))
    double.append(case(recipe, "tied-ddp", 2, *heads["tied"], engine="ddp"))
    zero.append(case(recipe, "tied-zero3", 2, *heads["tied"], engine="zero3"))

    found = launch(single)
    for config, cases, engine in (("cpu2.yaml", double, "ddp"), ("zero3.yaml", zero, "zero3")):
        results = launch(cases, config)
        for item in cases:
            result = results[item["name"]]
            assert (result["world_size"], result["engine"]) == (2, engine)
            assert result["sharded"] == (engine == "zero3")
        found |= results

    start = {
        "untied": load_file(tiny / "model.safetensors"),
        "tied": load_file(tied / "model.safetensors"),
    }
    table = {}
    for name, result in found.items():
        group, _, split = name.rpartition("-")
        if split == "reference":
            continue
        kind = "tied" if group == "tied" else "untied"
        table[name] = compare(result["run"], found[f"{group}-reference"]["run"], start[kind])
    for name, errors in table.items():
        print(f"{name:24s}", "  ".join(f"{k} {v:.1e}" for k, v in errors.items()))
        record_property(name, json.dumps(errors))
    bad = {
        n: e
        for n, e in table.items()
        if e["loss"] > 1e-5 or e["weights"] > 1e-5 or e["head_gradient"] > 1e-4
    }
    assert not bad
    assert len(table) == len(LOSSES) * 3 + 4


@pytest.mark.slow
def test_the_loss_is_the_one_of_the_recipe(recipe, launch):
    """Worked with plain torch: the first step's loss equals cross-entropy over the trained tokens of that batch."""
    from transformers import AutoModelForCausalLM

    from posttrain.data.collate import Collator
    from posttrain.data.prepare import TrainRows, build
    from posttrain.data.text import load_text
    from posttrain.recipe import load_stage

    overrides = ["name=ce", "train.per_device_train_batch_size=4", "train.max_steps=1"]
    result = launch(
        [{"name": "ce", "recipe": str(recipe), "overrides": overrides, "engine": "single"}]
    )["ce"]
    loaded = load_stage(recipe, overrides, "sft")
    tokenizer, _ = load_text(loaded, loaded.model.init)
    prepared = build(loaded.data, loaded.loss, tokenizer, seed=loaded.train.seed)
    rows = TrainRows(prepared, 8)
    batch = Collator(tokenizer.pad_token_id, False)([rows[i] for i in range(8)])
    model = AutoModelForCausalLM.from_pretrained(loaded.model.init)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[
        :, :-1
    ]
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"][:, 1:].flatten()
    )
    assert losses(result["run"])[0] == pytest.approx(expected.item(), rel=1e-5)
