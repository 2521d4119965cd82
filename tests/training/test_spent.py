"""What a run has cost: counts that do not depend on accumulation, ranks or a kill; and the parameters that
take part, worked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.base.files import read_jsonl
from posttrain.data.tokens import IGNORED
from posttrain.recipe import load_stage
from posttrain.stages.prepared import prepare_run
from posttrain.training.spent import Spent, parameters, with_reference
from tests.training import preferences, rollouts

CPU = torch.device("cpu")


def alone(values: Tensor) -> Tensor:
    return values.clone()


# ---- counts ------------------------------------------------------------------------------------------------


def test_counts_go_on_where_they_were_saved():
    """Steps 1 and 2 are saved and step 3 is lost in a kill: the run does it again and counts it once. Of two
    ranks one has the total of both."""
    spent = Spent(CPU)
    assert spent.total(alone) == {"num_tokens": 0, "num_trained_tokens": 0}
    spent.add({"num_tokens": 7, "num_trained_tokens": torch.tensor(3), "labels": "passed over"})
    spent.save(1, alone)
    spent.add({"num_tokens": 5, "num_rollouts": 2})
    facts = json.loads(json.dumps({"step": 2, "spent": spent.save(2, lambda x: 2 * x)}))
    first = {"step": 1, "num_tokens": 7, "num_trained_tokens": 3}
    second = {"step": 2, "num_tokens": 24, "num_trained_tokens": 6, "num_rollouts": 4}
    assert facts["spent"] == [first, second]
    ranks = [Spent(CPU), Spent(CPU)]
    for number, rank in enumerate(ranks):
        rank.load(facts, main=number == 0)
        rank.add({"num_tokens": 1})
    both = [sum(rank.total(alone).get(name, 0) for rank in ranks) for name in ("num_tokens", "num_rollouts")]
    assert both == [26, 4]
    assert ranks[1].save(3, lambda x: x + 24)[:2] == [first, second], "every rank knows those before"


@pytest.mark.parametrize(
    "facts", [{"step": 4}, {"step": 4, "spent": [{"step": 2, "num_tokens": 9}]}, {"step": 4, "spent": 3}]
)
def test_a_run_begun_by_an_earlier_version_counts_nothing(facts):
    """A count from the middle on would be taken for the whole."""
    spent = Spent(CPU)
    spent.load(facts, main=True)
    spent.add({"num_tokens": 5})
    assert spent.total(alone) == {} and spent.save(5, alone) == []
    fresh = Spent(CPU)
    fresh.load({"step": 0}, main=True)
    assert fresh.total(alone), "nothing was trained before step 0"


def asked(recipe: Path, overrides: list[str], steps: int) -> list[tuple[int, int]]:
    """(tokens, trained tokens) after each step, read from the rows themselves: 8 rows a step. A row's first
    token is never trained."""
    rows = prepare_run(load_stage(str(recipe), overrides, "sft")).prepared
    found, tokens, trained = [], 0, 0
    for step in range(steps):
        for i in range(8 * step, 8 * step + 8):
            source, row = rows.mixture[i]
            one = rows.tables[source][row]
            tokens += len(one.input_ids)
            trained += int((np.asarray(one.labels)[1:] != IGNORED).sum())
        found.append((tokens, trained))
    return found


@pytest.mark.slow
def test_two_processes_and_a_resumed_run_count_what_the_rows_have(recipe, launch):
    """Micro-batches of two on two ranks, so two of each a step; the last checkpoint is removed and the run
    resumed from step 3. Of a checkpoint that was rotated away, the next ones know the counts."""
    overrides = [
        "train.per_device_train_batch_size=2",
        "train.logging_steps=2",
        "checkpoints.save_steps=1",
        "checkpoints.keep_last=2",
    ]
    case = {"name": "two", "recipe": str(recipe), "overrides": [*overrides, "name=two"], "engine": "ddp"}
    result = launch([case | {"again": True}], "cpu2.yaml")["two"]
    run = Path(result["run"])
    want = asked(recipe, overrides, 5)
    keys = ("num_tokens", "num_trained_tokens")
    logged = read_jsonl(run / "metrics.jsonl")
    assert [(row["step"], *(row[key] for key in keys)) for row in logged] == [
        (step, *want[step - 1]) for step in (2, 4, 5)
    ]
    assert result["world_size"] == 2
    last = json.loads((run / "checkpoints" / "step-000005" / "checkpoint.json").read_text())
    assert [(row["step"], *(row[key] for key in keys)) for row in last["spent"]] == [
        (step, *pair) for step, pair in enumerate(want, 1)
    ]
    assert not (run / "checkpoints" / "step-000002").exists()
    sizes = json.loads((run / "run.json").read_text())["parameters"]
    assert sizes["used"] == sizes["trained"] > 0


@pytest.mark.slow
def test_what_an_rlvr_run_samples_and_trains(tmp_path, tiny):
    """A batch lasts two steps and is trained on twice; refilled groups are sampled and not trained on. Before
    its four steps the old policy and the reference see each batch once."""
    path = rollouts.write_recipe(tmp_path, tiny)
    reward = 'rewards=[{name: "tests.training.rewards_for_rlvr:even", label: even, options: {sides: 4}}]'
    run, trainer = rollouts.trained(
        path,
        reward,
        "rollout={num_generations: 2, max_new_tokens: 12, refill: 2, steps_per_generation: 2}",
        "policy={num_iterations: 2, beta: 0.1}",
        "train.max_steps=8",
        "train.logging_steps=4",
    )
    batches = list(rollouts.rollouts(run).values())
    assert len(batches) == 2
    sizes = {}
    for row in (row for batch in batches for row in batch):
        sizes[row["position"]] = len(trainer.source.prompts[row["position"]].ids)
    want, total = [], dict.fromkeys(("sampled", "rows", "input", "trained"), 0)
    for batch in batches:
        used = [row for row in batch if row["trained"]]
        assert len(used) == 16 <= len(batch)
        total["rows"] += len(batch)
        total["sampled"] += sum(row["tokens"] for row in batch)
        total["trained"] += sum(row["tokens"] for row in used)
        total["input"] += sum(row["tokens"] + sizes[row["position"]] for row in used)
        want.append(
            {
                "num_tokens": 2 * total["input"],
                "num_trained_tokens": 2 * total["trained"],
                "num_forward_tokens": total["input"],
                "num_reference_tokens": total["input"],
                "num_rollouts": total["rows"],
                "num_sampled_tokens": total["sampled"],
            }
        )
    assert total["rows"] > 32, "some groups were set aside"
    logged = [{k: v for k, v in row.items() if k.startswith("num_")} for row in rollouts_rows(run)]
    assert logged == want
    sizes = run.info()["parameters"]
    assert sizes["reference"] == sizes["used"] == sizes["trained"]


def rollouts_rows(run) -> list[dict]:
    return [row for row in read_jsonl(run.metrics) if row["split"] == "train"]


@pytest.mark.slow
def test_passes_of_the_reference(tmp_path, tiny):
    """Kept values cost one pass over each row of the run, also where an earlier run has left them; a live
    reference sees every row as often as the policy. 5 steps of 8 of the pairs: each is seen at most once."""
    path = preferences.write_recipe(tmp_path, tiny)
    last = {}
    for name, *more in (
        ("kept",),
        ("found",),
        ("live", "preference={loss: dpo, reference: live}"),
        ("orpo", "preference={loss: orpo}"),
    ):
        run = preferences.train(path, f"name={name}", *more)
        last[name] = preferences.rows(run)[-1]
        assert ("reference" in run.info()["parameters"]) == (name != "orpo")
    assert last["kept"]["num_reference_tokens"] == last["found"]["num_reference_tokens"]
    assert last["live"]["num_reference_tokens"] == last["live"]["num_tokens"]
    assert "num_reference_tokens" not in last["orpo"]
    seen = {row["num_tokens"] for row in last.values()}
    assert len(seen) == 1 and last["kept"]["num_trained_tokens"] < min(seen)
    run = preferences.train(path, "name=kto", *preferences.kto(path, reference="live"))
    found = preferences.rows(run)[-1]
    assert found["num_reference_tokens"] == found["num_tokens"] + found["num_forward_tokens"]
    assert found["num_forward_tokens"] > found["num_trained_tokens"] > 0


# ---- parameters --------------------------------------------------------------------------------------------

SHAPE = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
}
LAYERS = 8 * 8 * 2 + 2 * (8 * 4) + 3 * 8 * 16 + 3 * 8
"""q and o; k and v of one head of four; gate, up, down; three norms."""


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_by_hand(tied):
    """The table of the embedding counts as the output head's weight alone."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", tie_word_embeddings=tied, **SHAPE))
    assert parameters(model) == {"used": LAYERS + 8 * 32, "trained": LAYERS + 8 * 32}
    assert with_reference(parameters(model), model, None)["reference"] == LAYERS + 8 * 32


def test_parameters_of_an_adapter():
    """Rank 2 on q (8 to 8); the whole head is trained in a copy, and the first one is the reference's."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE))
    lora = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    found = parameters(lora)
    assert found == {"used": LAYERS + 8 * 32 + 2 * (8 + 8), "trained": 8 * 32 + 2 * (8 + 8)}
    assert with_reference(found, lora, None) == found | {"reference": LAYERS + 8 * 32}
    other = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE | {"vocab_size": 64}))
    assert with_reference(found, lora, other)["reference"] == LAYERS + 8 * 64


def test_a_mixture_of_experts_is_not_counted():
    config = AutoConfig.for_model("mixtral", num_local_experts=4, **SHAPE)
    assert parameters(AutoModelForCausalLM.from_config(config)) is None
