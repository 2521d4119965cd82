"""FSDP2 on two CPU processes over gloo, all in one launch: sft, dpo, kto and rlvr beside one process, the
precision of bf16, and the head in every unit that it may be part of.

accelerate's own plug-in and `prepare` shard the models; see `cases.fsdp_on_cpu` for what is put in place of a
GPU.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest
from safetensors.torch import load_file

from posttrain import sft
from posttrain.recipe import load_stage
from tests.stages import test_sharded_resume
from tests.tiny import RECIPE, tiny_model, write_rows
from tests.training import (
    preferences,
    rollouts,
    sharded_heads,
    test_balancing,
    test_dpo,
    test_equality,
    test_rlvr_ranks,
)
from tests.training.preferences import far, kto, rows, weights
from tests.training.test_dpo import LORA

SFT = {
    "steps": [
        "train.learning_rate=8",
        "train.max_grad_norm=1",
        "train.activation_checkpointing=true",
        "guard={on_spike: skip, spike_factor: 1.001, window: 1}",
        "evaluate.heldout={share: 0.1, every_steps: 2}",
    ],
    "tied": ["checkpoints.save_steps=3", "checkpoints.keep_last=null"],  # resumed, with SGD
    "lora": test_equality.HEADS["lora"],
}
"""What of the trainer has a code path of its own there: the norm, clipping, a skipped step, saving, tied
weights, adapters beside frozen weights."""

LIVE = ["preference={loss: dpo, reference: live, beta: 0.5}"]
KEPT = "preference={loss: dpo_norm, sft_weight: 0.5, sft_n: 4}"
AGAIN = ["train.optim=adamw_torch", "checkpoints.save_steps=2", "checkpoints.keep_last=null"]
TWO_STEPS = [
    "policy={beta: 0.1}",
    "rollout={num_generations: 4, max_new_tokens: 6, steps_per_generation: 2}",
]
RLVR = {"rlvr": test_rlvr_ranks.CASES["dapo"], "rlvr-lora": [LORA, *TWO_STEPS]}
EXTERNAL = "loss={name: confidence_limited, n: 4, value: surrogate, segment: completion, p: external}"
PLAIN = {"sft": "tied", "dpo": "live", "kto": "kto", "rlvr": "rlvr"}
"""The case of each stage whose loss and gradients are compared with those of the whole model; in bf16 those
named so."""


def preference_cases(path: Path, tiny: Path) -> dict[str, list[str]]:
    """Overrides of the preference recipe in `path`."""
    other = tiny_model(path.parent / "phi", kind="phi")  # its layers have another class
    return {
        "kept": [KEPT],
        "kept-lora": [LORA, KEPT],
        "live": LIVE,
        "live-lora": [LORA, *LIVE],
        "kto": kto(path, desirable_weight=1.5, reference="live", reference_model=str(other)),
        "kto-lora": [LORA, *kto(path)],
        "resumed-kept": [KEPT, *AGAIN],
        "resumed-lora": [LORA, KEPT, *AGAIN],
    }


class Launch:
    """Recipes, and what two processes have made of them; `heads`: see sharded_heads.py."""

    def __init__(self, folder: Path, tiny: Path, tied: Path, launch) -> None:
        self.folder, sources = folder, write_rows(folder / "rows.jsonl")
        self.sft = folder / "sft.yaml"
        self.sft.write_text(RECIPE.format(out=folder, model=tiny, rows=sources))
        written = [json.loads(line) | {"p": p} for line, p in zip(sources.open(), cycle((0.9973, 0.7)))]
        (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
        for name in ("dpo", "rlvr"):
            (folder / name).mkdir()
        self.dpo = preferences.write_recipe(folder / "dpo", tiny)
        self.rlvr = rollouts.write_recipe(folder / "rlvr", tiny)
        self.groups = {n: test_equality.of_head(n, {"tied": tied}, options) for n, options in SFT.items()}
        self.preferences = preference_cases(self.dpo, tiny)
        self.starts = test_sharded_resume.starts(tied)
        experts = f"model.init={test_balancing.experts(folder / 'experts', 'qwen3_moe')}"
        self.balancing = {
            f"experts-{name}": (stage, [experts, *test_balancing.SPLIT, *more])
            for name, stage, more in test_balancing.CASES[:2]
        }
        self.found = launch([*self.cases()], "fsdp2.yaml", timeout=600)
        self.heads = self.found.pop("heads")

    def cases(self) -> Iterator[dict]:
        for name, options in self.groups.items():
            yield self.case("sft", name, *options) | {"again": name == "tied"}
        yield self.case("sft", "resumed", *test_equality.RESUMED) | {"again": True}
        for name, options in self.starts.items():
            settings = [*test_sharded_resume.SETTINGS, *options]
            yield self.case("sft", f"again-{name}", *settings) | {"again": True}
        for name, (stage, options) in self.balancing.items():
            yield self.case(stage, name, *options)
        for name, options in self.preferences.items():
            lost = [str(self.folder / "ranks" / place / "reference") for place in (name, "cache")]
            more = {"again": True, "lose": lost} if name.startswith("resumed") else {}
            yield self.case("dpo", name, "train.max_steps=3", *options) | more
        for name, options in RLVR.items():
            yield self.case("rlvr", name, "train.max_steps=4", *options)
        p = [f"data.sources.0.path={self.folder / 'p.jsonl'}", EXTERNAL]
        labelled = kto(self.dpo, reference="live")
        for stage, options in (("sft", p), ("dpo", LIVE), ("kto", labelled), ("rlvr", TWO_STEPS)):
            bf16 = ["train.bf16=true", "train.max_steps=2", *options]
            yield self.case("dpo" if stage == "kto" else stage, f"{stage}-bf16", *bf16)
        yield {"name": "heads", "module": "tests.training.sharded_heads"}

    def case(self, stage: str, name: str, *overrides: str) -> dict:
        settings = [f"name={name}", "train.per_device_train_batch_size=2", *overrides]
        place = self.folder / "ranks"
        settings += [f"output_dir={place}", f"data.cache_dir={place / 'cache'}"]
        recipe = str(getattr(self, stage))
        plain = name in PLAIN.values() or name.endswith("bf16")
        return {"name": name, "stage": stage, "recipe": recipe, "overrides": settings, "plain": plain}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, tiny, tied, launch) -> Launch:
    """All cases in one launch: starting processes costs more than the cases."""
    return Launch(tmp_path_factory.mktemp("fsdp2"), tiny, tied, launch)


@pytest.mark.slow
def test_every_case_ran_sharded_on_two_ranks(ranks):
    for name, found in ranks.found.items():
        assert (found["world_size"], found["engine"], found["sharded"]) == (2, "fsdp2", True), name


# ---- stages beside one process -----------------------------------------------------------------------------


@pytest.mark.slow
def test_sft_equals_one_process(ranks, tiny, tied, record_property):
    """Steps, held-out loss, checkpoints, scores, and a resumed run."""
    found = {}
    for name, options in ranks.groups.items():
        settings = test_equality.case(ranks.sft, f"{name}-reference", 8, *options)["overrides"]
        run = sft.train(load_stage(str(ranks.sft), settings, "sft"))
        found |= {f"{name}-fsdp2": ranks.found[name], f"{name}-reference": {"run": str(run.path)}}
    assert test_equality.check(found, {"tied": tied}, tiny, record_property) == len(SFT)
    ours, reference = (found[f"steps-{e}"]["run"] for e in ("fsdp2", "reference"))
    assert rows(ours)[-1]["skipped_steps"] == rows(reference)[-1]["skipped_steps"] > 0
    for a, b in zip(rows(ours), rows(reference), strict=True):
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
    for a, b in zip(rows(ours, "heldout"), rows(reference, "heldout"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    test_equality.resumed(ranks.found["resumed"]["run"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*test_sharded_resume.LORA, "tied"])
def test_a_run_is_resumed(ranks, tiny, name):
    test_sharded_resume.is_resumed(Path(ranks.found[f"again-{name}"]["run"]), name, "fsdp2", tiny)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["experts-sft", "experts-rlvr"])
def test_the_load_balancing_loss_equals_one_process(ranks, name):
    stage, options = ranks.balancing[name]
    whole = test_balancing.train(stage, getattr(ranks, stage), f"name={name}", *options)
    test_balancing.equal(ranks.found[name]["run"], whole, on=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kept", "kept-lora", "live", "live-lora", "kto", "kto-lora"])
def test_preferences_equal_one_process(ranks, name):
    options = ["train.per_device_train_batch_size=8", "train.max_steps=3", *ranks.preferences[name]]
    whole = preferences.train(ranks.dpo, f"name={name}", *options)
    found = ranks.found[name]
    assert bool(test_dpo.equal(found["run"], whole)) == ("live" not in name and name != "kto")
    # the model, its embedding, two layers, norm and head
    assert found["reference_units"] == (6 if name in ("live", "kto") else 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resumed-kept", "resumed-lora"])
def test_a_preference_run_that_lost_its_references_goes_on(ranks, name):
    """The start model is asked once more, not the policy."""
    run = Path(ranks.found[name]["run"])
    assert far(weights(run, 3), load_file(run / "first.safetensors")) <= 1e-6
    assert [row["step"] for row in rows(run)] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("name", RLVR)
def test_rlvr_equals_one_process(ranks, name):
    more = (f"name={name}", "train.per_device_train_batch_size=4", "train.max_steps=4")
    whole = rollouts.train(ranks.rlvr, *more, *RLVR[name])
    test_rlvr_ranks.equal(Path(ranks.found[name]["run"]), whole.path)


# ---- precision ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("stage", PLAIN)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_and_gradients_are_those_of_the_whole_model(ranks, stage, precision):
    """To 1e-5 of the same types; bf16 by autocast, as under DDP, differs by as much as bf16 is exact."""
    found = ranks.found[f"{stage}-bf16" if precision == "bf16" else PLAIN[stage]]["plain"]
    assert found["same loss"] <= 1e-5 and found["same gradients"] <= 1e-5, found
    limit = 0.05 if precision == "bf16" else 1e-5
    assert found["autocast loss"] <= limit and found["autocast gradients"] <= limit, found


@pytest.mark.slow
def test_policy_and_reference_start_as_one_in_bf16(ranks):
    """A reference that is prepared before the policy must have its types."""
    dpo, labelled, rlvr = (rows(ranks.found[f"{s}-bf16"]["run"])[0] for s in ("dpo", "kto", "rlvr"))
    assert dpo["loss"] == pytest.approx(math.log(2), abs=1e-6) and dpo["rewards/margins"] == 0
    assert labelled["kl"] == 0 and labelled["loss"] == pytest.approx(0.5, abs=1e-6)
    assert rlvr["kl"] == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_what_enters_and_leaves_the_head_under_bf16(ranks):
    """accelerate's policy changes each of these; ours is needed as long as it does."""
    names = ("normalizer", "p", "segment_weights", "log_p")
    ours, theirs = ([ranks.heads[who][n] for n in names] for who in ("ours", "accelerate's"))
    assert ours == pytest.approx([12345, 0.9973, 0.9973, -math.log(64)], rel=1e-6)
    assert theirs == [12352, 0.99609375, 0.99609375, -4.15625]
    assert ranks.heads["accelerate's"]["coef"] / ranks.heads["ours"]["coef"] == pytest.approx(3.03, abs=0.02)
    assert ranks.heads["world"] == 2


# ---- the head in its unit ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", sharded_heads.CASES)
def test_gradients_of_the_head_equal_one_process(ranks, name):
    """Grouped with the root, as a unit of its own, and with the last norm (accelerate's way), tied and
    untied; in bf16 beside bf16 weights whose gradients are summed in fp32."""
    errors = ranks.heads[name]
    assert errors["sharded"], "whole weights on every rank would prove nothing"
    assert max(errors[key] for key in ("loss", "head", "all")) <= 1e-5, errors


@pytest.mark.slow
def test_outside_the_head_s_forward(ranks):
    """`posttrain_kernels` averages over the mesh; after a plain `full_tensor` each rank keeps what its own
    rows say."""
    assert ranks.heads["direct"]["whole"] <= 1e-5
    assert ranks.heads["direct"]["full_tensor"] > 0.5
