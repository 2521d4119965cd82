"""One global count per optimizer step: however the batch is split, losses and weights are the same.

accumulation x ranks = 1x8, 2x4, 8x1 micro-batches in one process, and two real processes under DDP and ZeRO-3
(tied and untied heads, capped logits, a bias, LoRA on the head, an adapter as the start model), against one
process with the whole batch at once; FSDP2 is in test_fsdp2.py. Five SGD steps: Adam would amplify the order
of summation. The reference pitfall is the mean of means (transformers#34191).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from posttrain import sft
from posttrain.recipe import load_stage
from tests.tiny import tiny_model
from tests.training.preferences import far, rows, weights

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
    ],
    "sum": ["loss.name=cross_entropy", "loss.reduction=sum", "train.learning_rate=0.0005"],
    "answer": [
        "loss.name=confidence_limited",
        "loss.n=16",
        "loss.segment=answer",
        "loss.answer_marker='#### '",
    ],
    "padding_free": ["data.padding_free=true"],
    "controls": ["loss.label_smoothing=0.1", "loss.entropy_bonus=0.3", "loss.z_loss=0.01"],
}


HEADS = {
    "tied": [],
    "softcap": ["train.learning_rate=0.2"],
    "bias": ["train.learning_rate=0.2"],
    "lora": ["model.lora={r: 4, target_modules: [q_proj, lm_head]}", "train.learning_rate=0.05"],
}
"""What stands at the end of the model; the loss is `token_mean` above."""

RESUMED = [
    "train.optim=adamw_torch",
    "train.learning_rate=1e-3",
    "train.lr_scheduler_type=linear",
    "checkpoints.save_steps=3",
    "checkpoints.keep_last=null",
    "evaluate.at_start=false",
    "evaluate.tasks=[{name: arithmetic, options: {digits: 1, train_size: 40, test_size: 4}}]",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory, tied) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("heads")
    return {
        "tied": tied,
        "softcap": tiny_model(folder / "gemma", kind="gemma2", head_dim=8, final_logit_softcapping=2.0),
        "bias": tiny_model(folder / "phi", kind="phi", tie=False),
    }


@pytest.fixture
def adapted(recipe) -> dict[str, list[str]]:
    """Groups that start from an adapter, which ZeRO-3 must not shard before it is merged."""
    lora = "model.lora={r: 4, target_modules: [q_proj, lm_head], modules_to_save: [embed_tokens]}"
    run = sft.train(load_stage(recipe, ["name=first", lora, "train.learning_rate=0.05"], "sft")).path
    start = [*LOSSES["token_mean"], f"model.init={run}", "train.learning_rate=0.05"]
    return {"merged": start, "stacked": [*start, "model.lora={r: 2, target_modules: [v_proj, lm_head]}"]}


def losses(run: str) -> list[float]:
    return [row["loss"] for row in rows(run)]


def compare(run: str, reference: str, start: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest relative difference of losses, of weights, and of the head's change (its summed gradients)."""
    a, b = losses(run), losses(reference)
    assert len(a) == len(b) == 5
    wa, wb = weights(run), weights(reference)
    heads = [k for k in wb if "lm_head" in k] or ["model.embed_tokens.weight"]
    # An adapter starts where its seed says; what it has learnt is in B, which starts at 0.
    heads = [k for k in heads if "lora_A" not in k and "base_layer" not in k]
    moved = {k: wb[k] - start.get(k.removeprefix("base_model.model."), 0) for k in heads}
    assert min(m.norm() for m in moved.values()) > 1e-4, "a head that stands still proves nothing"
    return {
        "loss": max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True)),
        "weights": far(wa, wb),
        "head_gradient": max(float((wa[k] - wb[k]).norm() / m.norm()) for k, m in moved.items()),
    }


def case(recipe: Path, name: str, micro: int, *overrides: str, engine: str = "single") -> dict:
    settings = [f"name={name}", f"train.per_device_train_batch_size={micro}", *overrides]
    return {"name": name, "recipe": str(recipe), "overrides": settings, "engine": engine}


def of_head(name: str, models: dict[str, Path], overrides: list[str]) -> list[str]:
    init = [f"model.init={models[name]}"] if name in models else []
    return [*LOSSES["token_mean"], *overrides, *init]


def check(found: dict[str, dict], models: dict[str, Path], tiny: Path, record_property) -> int:
    """Every run against `<its group>-reference`; the number of comparisons."""
    table = {}
    for name, result in found.items():
        group, _, split = name.rpartition("-")
        if split != "reference":
            start = load_file(models.get(group, tiny) / "model.safetensors")
            table[name] = compare(result["run"], found[f"{group}-reference"]["run"], start)
    for name, errors in table.items():
        print(f"{name:24s}", "  ".join(f"{k} {v:.1e}" for k, v in errors.items()))
        record_property(name, json.dumps(errors))
    limits = {"loss": 1e-5, "weights": 1e-5, "head_gradient": 1e-4}
    assert not {n: e for n, e in table.items() if any(e[k] > limits[k] for k in limits)}
    return len(table)


def on_two_ranks(launch, config: str, cases: list[dict], engine: str) -> dict[str, dict]:
    results = launch(cases, config)
    for result in results.values():
        assert (result["world_size"], result["engine"]) == (2, engine)
        assert result["sharded"] == (engine != "ddp")
    return results


@pytest.mark.slow
def test_splits_and_engines_agree(recipe, launch, tiny, models, adapted, record_property):
    """The table of the README: every split of the batch, every reduction, every kind of head; DDP and
    ZeRO-3."""
    groups = LOSSES | {name: of_head(name, models, options) for name, options in HEADS.items()} | adapted
    single = []
    for name, overrides in groups.items():
        single.append(case(recipe, f"{name}-reference", 8, *overrides))
        micros = {"token_mean": (4, 2, 1)}.get(name, (1,) if name in LOSSES else ())
        single += [case(recipe, f"{name}-acc{8 // m}", m, *overrides) for m in micros]
    found = launch(single)
    for engine, config in (("ddp", "cpu2.yaml"), ("zero3", "zero3.yaml")):
        cases = [case(recipe, f"{n}-{engine}", 2, *o, engine=engine) for n, o in groups.items()]
        if engine == "zero3":
            cases = [c | {"modes": c["name"] in ("tied-zero3", "lora-zero3")} for c in cases]
        found |= on_two_ranks(launch, config, cases, engine)
    for name in ("tied-zero3", "lora-zero3"):
        print(f"{name}: log-probabilities with gradients against the loss: {found[name]['modes']:.1e}")
        assert found[name]["modes"] <= 1e-5
    assert check(found, models, tiny, record_property) == len(LOSSES) + 2 + 2 * len(groups)


def resumed(run: str) -> None:
    """A run that lost its last checkpoint ends in the same weights; every rank scored with real weights."""
    assert far(weights(run), load_file(Path(run) / "first.safetensors")) <= 1e-6
    steps = [row["step"] for row in rows(run)]
    assert steps == [1, 2, 3, 4, 5]
    rates = [row["learning_rate"] for row in rows(run)]
    assert rates == pytest.approx([1e-3 * (1 - (step - 1) / 5) for step in steps]), "one step for all ranks"
    scored = [json.loads(line) for line in (Path(run) / "scores.jsonl").read_text().splitlines()]
    assert {row["step"] for row in scored} == {3, 5}


CONTROLS = {
    "ce": [],
    "smoothed": ["loss.label_smoothing=0.2"],
    "bonus": ["loss.entropy_bonus=0.3"],
    "both": ["loss.label_smoothing=0.2", "loss.entropy_bonus=0.3"],
}


@pytest.mark.slow
def test_the_loss_is_the_one_of_the_recipe(recipe, launch):
    """Worked with plain torch: loss and gradient norm of the first step equal those of cross-entropy over the
    trained tokens of that batch, smoothed and with the entropy as the recipe says."""
    from transformers import AutoModelForCausalLM

    from posttrain.data.collate import Collator
    from posttrain.data.prepare import TrainRows, build
    from posttrain.data.template import load_text

    overrides = ["train.max_steps=1"]
    found = launch([case(recipe, name, 4, *overrides, *more) for name, more in CONTROLS.items()])
    loaded = load_stage(recipe, overrides, "sft")
    tokenizer, _ = load_text(loaded.model, loaded.data.template, loaded.model.init)
    prepared = build(loaded.data, loaded.loss, tokenizer, seed=loaded.train.seed)
    drawn = TrainRows(prepared, 8)
    batch = Collator(tokenizer.pad_token_id, False)([drawn[i] for i in range(8)])
    model = AutoModelForCausalLM.from_pretrained(loaded.model.init)
    labels = batch["labels"][:, 1:].flatten()
    kept = labels != -100
    assert kept.any() and not kept.all()
    for name, (smoothing, bonus) in zip(CONTROLS, ((0, 0), (0.2, 0), (0, 0.3), (0.2, 0.3)), strict=True):
        model.zero_grad()
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        logits = logits.flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        expected = expected - bonus * torch.distributions.Categorical(logits=logits).entropy()[kept].mean()
        expected.backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        first = rows(found[name]["run"])[0]
        assert first["loss"] == pytest.approx(expected.item(), rel=1e-5), name
        assert first["grad_norm"] == pytest.approx(norm.item(), rel=1e-4), name
        assert first["nll"] == pytest.approx(rows(found["ce"]["run"])[0]["loss"], rel=1e-5), "the plain one"
