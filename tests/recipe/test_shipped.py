"""The recipes for large models and hub data: pinned revisions, and three optimizer steps of each on a tiny
model.

The hub is not used: the rows have the columns that the cards of the data sets name.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from posttrain.base.files import read_jsonl
from posttrain.recipe import load, load_stage
from posttrain.stages.pipeline import dependencies, stage_recipes
from tests.conftest import ROOT
from tests.tiny import tiny_model

RECIPES = ROOT / "recipes"
SHIPPED = [p for folder in ("tulu3-8b", "confidence") for p in sorted((RECIPES / folder).glob("*.yaml"))]
CONVERSATION = [
    {"role": "user", "content": "Name a sea."},
    {"role": "assistant", "content": "The North Sea."},
]


def constraint(name: str, **given) -> str:
    fields = (
        "N",
        "quantifier",
        "end_phrase",
        "keyword_list",
        "word",
        "forbidden_words",
        "letter",
        "i",
        "first_word",
        "postscript_marker",
        "options",
        "section_splitter",
        "original_prompt",
        "language",
    )
    return json.dumps({"func_name": name} | dict.fromkeys(fields) | given)


def rlvr_row(i: int) -> dict:
    kinds = (
        ("gsm8k", f"Question: What is {i} + {i}?\nAnswer:", str(2 * i)),
        ("MATH", f"Question: Halve {i}.\nAnswer:", f"\\frac{{{i}}}{{2}}"),
        ("ifeval", "Write about the sea without commas.", constraint("validate_no_commas")),
        (
            "ifeval",
            "Write at most 2 words.",
            constraint("validate_word_constraint", N=2, quantifier="at most"),
        ),
    )
    kind, content, truth = kinds[i % 4]
    row = {"messages": [{"role": "user", "content": content}], "ground_truth": truth}
    return row | {"dataset": kind, "constraint_type": None, "constraint": None}


def row_of(path: str, i: int) -> dict:
    """Row i as the data set at `path` has it."""
    problem = {
        "problem": f"What is {i} + {i}?",
        "solution": f"It is $\\boxed{{{2 * i}}}$.",
        "answer": str(2 * i),
    }
    return {
        "allenai/tulu-3-sft-mixture": {"id": str(i), "messages": CONVERSATION, "source": "seas"},
        "allenai/llama-3.1-tulu-3-8b-preference-mixture": {
            "id": str(i),
            "prompt": CONVERSATION[0]["content"],
            "chosen": CONVERSATION,
            "rejected": [CONVERSATION[0], {"role": "assistant", "content": f"No, {i}."}],
            "source": "seas",
        },
        "allenai/RLVR-GSM-MATH-IF-Mixed-Constraints": rlvr_row(i),
        "nlile/hendrycks-MATH-benchmark": problem
        | {"subject": "Algebra", "level": 1, "unique_id": f"test/{i}.json"},
        "deepseek-ai/DeepSeek-Prover-V1": {
            "name": f"thm_{i}",
            "split": "train",
            "formal_statement": f"theorem thm_{i} (a : ℕ) : a + {i} = {i} + a := by\n  ",
            "goal": "⊢ a = a",
            "header": "import Mathlib\n",
            "formal_proof": "have h : a = a := rfl\n  simp [h]\n  omega\n",
        },
        "train_answers.json": {
            "problem": problem["problem"],
            "answer": problem["answer"],
            "difficulty": 1.0,
            "type": "Algebra",
        },
    }[path]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("shipped") / "model")


@pytest.fixture
def small(tiny, tmp_path):
    """`small(recipe file, more rows)`: overrides that make the recipe a run of three steps on this
    machine."""

    def overrides(path: Path, **more) -> list[str]:
        (source,) = yaml.safe_load(path.read_text())["data"]["sources"]
        key = source["path"].rpartition("/")[2] if "POSTTRAIN_DATA" in source["path"] else source["path"]
        rows = tmp_path / "rows.jsonl"
        written = [row_of(key, i) | {k: v(i) for k, v in more.items()} for i in range(16)]
        rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in written))
        found = [
            f"model.init={tiny}",
            "model.revision=null",
            "data.max_length=256",
            f"data.sources.0.path={rows}",
            "data.sources.0.revision=null",
            f"output_dir={tmp_path}",
        ]
        if "train:" in path.read_text():
            found += [
                "train.max_steps=3",
                "train.num_train_epochs=null",
                "train.global_batch_size=4",
                "train.per_device_train_batch_size=2",
                "train.bf16=false",
                "train.logging_steps=1",
                "train.report_to=[]",
                "checkpoints.keep_best=null",
                "checkpoints.save_steps=null",
                "evaluate.tasks=[]",
                "evaluate.gates=[]",
            ]
        return found

    return overrides


def metrics(run, split: str = "train") -> list[dict]:
    return [row for row in read_jsonl(run.path / "metrics.jsonl") if row["split"] == split]


# ---- what the files say ------------------------------------------------------------------------------------


STAGES = [p for p in SHIPPED if "\nstage: " in p.read_text()]


@pytest.mark.parametrize("path", STAGES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_hub_models_and_data_are_pinned(path):
    recipe = yaml.safe_load(path.read_text())
    hubs = [recipe["model"]["init"], *(s["path"] for s in recipe["data"]["sources"])]
    pinned = [recipe["model"].get("revision"), *(s.get("revision") for s in recipe["data"]["sources"])]
    for hub, revision in zip(hubs, pinned, strict=True):
        if not hub.startswith("$"):
            assert re.fullmatch(r"[0-9a-f]{40}", revision or ""), hub


def test_there_are_both_sets():
    names = {f"{p.parent.name}/{p.stem}" for p in SHIPPED}
    tulu = {f"tulu3-8b/{name}" for name in ("sft", "dpo", "rlvr", "pipeline")}
    settings = {f"confidence/{name}" for name in ("math-direct", "math-cot-rollout-p", "proof-steps")}
    assert names >= tulu | settings


def test_tulu_numbers():
    """Tables 11 and 20 of the paper and the published commands and scripts, once more by hand."""
    sft, dpo, rlvr = (load(RECIPES / "tulu3-8b" / f"{s}.yaml") for s in ("sft", "dpo", "rlvr"))
    assert (sft.train.learning_rate, sft.train.warmup_steps, sft.train.num_train_epochs) == (5e-6, 0.03, 2)
    assert (sft.train.global_batch_size, sft.data.max_length, sft.loss.reduction) == (128, 4096, "sum")
    assert (dpo.preference.loss, dpo.preference.beta) == ("dpo_norm", 5)
    assert (dpo.train.learning_rate, dpo.train.warmup_steps, dpo.train.global_batch_size) == (5e-7, 0.1, 128)
    assert (dpo.train.num_train_epochs, dpo.data.max_length) == (1, 2048)
    groups = rlvr.train.global_batch_size * rlvr.rollout.steps_per_generation / 16
    assert (rlvr.rollout.num_generations, groups) == (16, 48)
    assert (rlvr.train.learning_rate, rlvr.train.lr_scheduler_type) == (5e-7, "constant")
    assert (rlvr.policy.beta, rlvr.policy.kl, rlvr.policy.epsilon) == (0.01, "k3", 0.2)
    assert (rlvr.policy.loss, rlvr.policy.advantage, rlvr.rollout.temperature) == ("bnpo", "mean_std", 1.0)
    assert (rlvr.rollout.truncated, rlvr.rollout.truncated_reward) == ("penalise", 0.0)
    assert (sft.data.train_on, dpo.data.train_on) == ("assistant", "assistant")
    assert [r.train.weight_decay for r in (sft, dpo, rlvr)] == [0, 0, 0.01]
    assert {r.train.max_grad_norm for r in (sft, dpo, rlvr)} == {1.0}
    assert (rlvr.data.max_length, rlvr.rollout.max_new_tokens) == (2048, 2048)
    assert {r.label: r.weight for r in rlvr.rewards} == {"gsm8k": 10, "MATH": 10, "ifeval": 10}
    assert {sft.data.template, dpo.data.template, rlvr.data.template} == {"tulu"}


@pytest.mark.parametrize(
    ("file", "waits"),
    [
        ("tulu3-8b/pipeline.yaml", {"sft": set(), "dpo": {"sft"}, "rlvr": {"dpo"}}),
        (
            "confidence/math-cot.yaml",
            {
                "first-epoch": set(),
                "pass-rate": {"first-epoch"},
                "rollout-p": {"first-epoch", "pass-rate"},
                "cross-entropy": {"first-epoch"},
            },
        ),
    ],
)
def test_pipelines_hand_on_models_and_rows(file, waits):
    pipeline = load(RECIPES / file)
    recipes = stage_recipes(pipeline, RECIPES / file)
    assert dependencies(pipeline, recipes) == waits
    for name, recipe in recipes.items():  # a hub revision means nothing to a run
        assert (recipe.model.revision is None) == bool(waits[name])
        assert all((s.revision is None) == (s.path or "").startswith("runs/") for s in recipe.data.sources)


# ---- three steps of each -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_tulu_sft(small):
    from posttrain.sft import train

    path = RECIPES / "tulu3-8b" / "sft.yaml"
    run = train(load_stage(path, small(path), "sft"))
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3]
    # a sum over the tokens of a step: four replies of 14 bytes and their ends
    assert rows[0]["loss"] == pytest.approx(rows[0]["nll"] * 4 * 15, rel=1e-4)
    assert max(row["learning_rate"] for row in rows) == pytest.approx(5e-6)


@pytest.mark.slow
def test_tulu_dpo(small):
    from posttrain.dpo import train

    path = RECIPES / "tulu3-8b" / "dpo.yaml"
    run = train(load_stage(path, small(path), "dpo"))
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # -log sigmoid(0) before the first step
    assert rows[0]["tokens/chosen"] == pytest.approx(15)


@pytest.mark.slow
def test_tulu_rlvr(small):
    """Each row is judged by the reward its column names, and by no other."""
    from posttrain.rlvr import train

    path = RECIPES / "tulu3-8b" / "rlvr.yaml"
    more = [
        "rollout.backend=transformers",
        "rollout.vllm={}",
        "rollout.num_generations=2",
        "rollout.max_new_tokens=6",
        "train.max_steps=4",
    ]
    run = train(load_stage(path, [*small(path), *more], "rlvr"))
    assert [row["step"] for row in metrics(run)] == [1, 2, 3, 4]
    seen = {}
    for step in (1, 3):  # two steps share a batch of rollouts
        for row in read_jsonl(run.path / "rollouts" / f"step-{step:06d}.jsonl"):
            asked = rlvr_row(row["row"])
            assert list(row["components"]) == [asked["dataset"]]
            assert row["answer"] == asked["ground_truth"]
            verdict = row["components"][asked["dataset"]]
            assert verdict["status"] in ("scored", "unparseable")
            cut = row["finish"] == "length"
            assert row["reward"] == 10 * verdict["value"] or cut
            seen.setdefault(asked["dataset"], set()).add(verdict["value"])
    assert set(seen) == {"gsm8k", "MATH", "ifeval"} and 1.0 in seen["ifeval"]


@pytest.mark.slow
def test_confidence_direct(small):
    from posttrain.sft import train

    path = RECIPES / "confidence" / "math-direct.yaml"
    run = train(load_stage(path, small(path), "sft"))
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3]
    # two or three random tokens out of 261: N = 256 attempts leave F near 1
    assert 0.9 < rows[0]["weight_mean"] < 1


@pytest.mark.slow
def test_confidence_by_rollouts(small):
    """p in {0, 1/4, 1/2, 1}: F = 1, 4 q^3 p / (1 - q^4) at N = 4, and 0."""
    from posttrain.sft import train

    path = RECIPES / "confidence" / "math-cot-rollout-p.yaml"
    weights = [1.0, 4 * 0.75**3 * 0.25 / (1 - 0.75**4), 4 * 0.5**3 * 0.5 / (1 - 0.5**4), 0.0]
    overrides = small(path, p=lambda i: (0.0, 0.25, 0.5, 1.0)[i % 4], n_right=lambda i: i % 4)
    more = ["loss.n=4", "train.global_batch_size=16", "train.learning_rate=1e-12"]
    run = train(load_stage(path, [*overrides, *more], "sft"))
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["weight_mean"] == pytest.approx(sum(weights) / 4, rel=1e-4)


def test_confidence_by_rollouts_wants_p(small):
    from posttrain.errors import RequestError
    from posttrain.sft import train

    path = RECIPES / "confidence" / "math-cot-rollout-p.yaml"
    with pytest.raises(RequestError, match=r"source 'math' has rows without a probability"):
        train(load_stage(path, small(path), "sft"))


def test_confidence_pass_rate(small):
    """Its rows are what the recipe above reads."""
    from posttrain.pass_rate import sample

    path = RECIPES / "confidence" / "math-pass-rate.yaml"
    more = [
        "rollout.num_generations=2",
        "rollout.max_new_tokens=4",
        "max_prompts=4",
        "model.dtype=float32",
        "keep={at_least: 0, at_most: 2}",
    ]
    run = sample(load_stage(path, [*small(path), *more], "pass_rate"))
    rows = read_jsonl(run.path / "prompts.jsonl")
    assert len(rows) == 4 and {"problem", "solution", "answer", "p"} <= set(rows[0])
    assert all(row["p"] == row["n_right"] / 2 for row in rows)


@pytest.mark.slow
def test_confidence_proof_steps(small):
    """A line of a proof is a segment: three in each, the last with the end of turn."""
    from posttrain.sft import train

    path = RECIPES / "confidence" / "proof-steps.yaml"
    run = train(load_stage(path, [*small(path), "evaluate.heldout=null"], "sft"))
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3]
    tokens = len("have h : a = a := rfl\n  simp [h]\n  omega\n") + 1
    assert rows[0]["segment_logp"] == pytest.approx(-rows[0]["nll"] * tokens / 3, rel=1e-3)
