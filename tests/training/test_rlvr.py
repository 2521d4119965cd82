"""The RLVR stage as it runs: what it logs and keeps, rewards that fail, references, dynamic sampling,
GSM8K."""

from __future__ import annotations

import json

import numpy as np
import pytest

from posttrain.base.files import read_jsonl
from posttrain.errors import WorkError
from tests.tiny import tiny_model
from tests.training import rewards_for_rlvr
from tests.training.preferences import far, moved, rows, weights
from tests.training.rollouts import positions, rollouts, train, write_recipe

HERE = rewards_for_rlvr.__name__
LORA = "model.lora={r: 4, target_modules: [q_proj, lm_head]}"


@pytest.fixture
def rlvr(tmp_path, tiny):
    return write_recipe(tmp_path, tiny)


def rewarded(*names: str, **options) -> str:
    made = [{"name": f"{HERE}:{name}", "label": name} for name in names]
    if options:
        made[0]["options"] = options
    return f"rewards={json.dumps(made)}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_first_ratio_is_one_whatever_dropout_the_model_has(rlvr, tmp_path, kind):
    """The policy that is trained is the one that sampled, and the reference: no ratio is clipped at 1e-6, and
    the KL divergence is 0."""
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
    options = {"attention_dropout": 0.3} if kind == "llama" else shape
    folder = tiny_model(tmp_path / "model", kind=kind, **options)
    first = rows(
        train(
            rlvr,
            f"model.init={folder}",
            "train.max_steps=2",
            "policy={beta: 0.1, num_iterations: 2, epsilon: 1e-6}",
        )
    )[0]
    assert first["clip_ratio/region_mean"] == 0 and first["kl"] == pytest.approx(0, abs=1e-9)


# ---- logs and files ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_logged_and_kept(rlvr):
    run = train(
        rlvr,
        rewarded("even", "vowels"),
        "policy={beta: 0.1}",
        "checkpoints.save_steps=2",
        "checkpoints.keep_last=null",
    )
    assert list(rollouts(run)) == ["step-000001.jsonl", "step-000002.jsonl", "step-000003.jsonl"]
    for logged, (name, kept) in zip(rows(run), rollouts(run).items(), strict=True):
        assert [(r["group"], r["sample"]) for r in kept] == [(g, s) for g in range(2) for s in range(4)]
        assert {r["step"] for r in kept} == {logged["step"]} and name == f"step-{logged['step']:06d}.jsonl"
        groups = [kept[:4], kept[4:]]
        of = {
            key: np.array([[r[key] for r in g] for g in groups], float)
            for key in ("reward", "success", "tokens", "advantage")
        }
        part = {c: np.mean([r["components"][c]["value"] for r in kept]) for c in ("even", "vowels")}
        want = {
            "reward": of["reward"].mean(),
            "success": of["success"].mean(),
            "reward/even": part["even"],
            "reward/vowels": part["vowels"],
            "reward_std": of["reward"].std(1).mean(),
            "groups/all_right": (of["success"] == 1).all(1).mean(),
            "groups/all_wrong": (of["success"] == 0).all(1).mean(),
            "groups/zero_variance": (of["advantage"] == 0).all(1).mean(),
            "groups/sampled": 2,
            "groups/unfilled": 0,
            "checks_failed": 0,
            "completions/mean_length": of["tokens"].mean(),
            "completions/max_length": of["tokens"].max(),
            "completions/truncated": np.mean([r["finish"] == "length" for r in kept]),
        }
        for key, value in want.items():
            assert logged[key] == pytest.approx(value, abs=1e-9), key
        shares = [
            f"reward/{c}/{kind}"
            for c in ("even", "vowels")
            for kind in ("timeout", "error", "unparseable", "limit")
        ]
        assert {logged[key] for key in shares} == {0.0}
        more = {
            "loss",
            "grad_norm",
            "learning_rate",
            "tokens_per_second",
            "kl",
            "entropy",
            "clip_ratio/low_mean",
            "clip_ratio/high_mean",
            "seconds/generate",
            "seconds/score",
            "reward/even/ms",
        }
        assert more <= logged.keys() and logged["tokens_per_second"] > 0 < logged["seconds/generate"]
        assert (logged["kl"] == 0) == (logged["step"] == 1), "the reference is the start model"
        centred = of["reward"] - of["reward"].mean(1, keepdims=True)
        spread = of["reward"].std(1, ddof=1, keepdims=True) + 1e-4
        np.testing.assert_allclose(of["advantage"], centred / spread, atol=1e-9)
        assert logged["epoch"] == 2 * logged["step"] / 40
    assert positions(run) == list(range(6))
    row = kept[0]
    assert set(row) == {
        "step",
        "group",
        "sample",
        "round",
        "position",
        "source",
        "row",
        "where",
        "prompt",
        "answer",
        "completion",
        "tokens",
        "finish",
        "reward",
        "success",
        "components",
        "advantage",
        "trained",
    }
    asked = read_jsonl(rlvr.parent / "prompts.jsonl")[row["row"]]
    assert asked["prompt"] in row["prompt"] and asked["answer"] == row["answer"]
    assert row["where"].endswith(f"prompts.jsonl:{row['row'] + 1}") and row["prompt"].endswith("assistant\n")
    for step in (2, 3):
        facts = json.loads((run.checkpoints / f"step-{step:06d}" / "checkpoint.json").read_text())
        assert (facts["prompts"], facts["epoch"]) == (2 * step, 2 * step / 40)
    assert run.info()["status"] == "finished"


@pytest.mark.slow
def test_micro_batches_and_recomputed_activations_change_nothing(rlvr):
    whole = train(rlvr, "name=whole", "train.per_device_train_batch_size=8")
    split = train(
        rlvr, "name=split", "train.per_device_train_batch_size=2", "train.activation_checkpointing=true"
    )
    assert rollouts(whole) == rollouts(split)
    for a, b in zip(rows(whole), rows(split), strict=True):
        assert abs(a["loss"] - b["loss"]) <= 1e-6
    assert far(weights(whole, 3), weights(split, 3)) <= 1e-6


@pytest.mark.slow
def test_a_batch_of_rollouts_lasts_two_steps_and_two_passes(rlvr):
    """Three steps are rounded up to four; the advantages are the ones the recipe names."""
    run = train(
        rlvr,
        "policy={advantage: maxrl, num_iterations: 2}",
        "rollout.steps_per_generation=2",
        "train.logging_steps=2",
        "checkpoints.save_steps=1",
    )
    assert list(rollouts(run)) == ["step-000001.jsonl"] and run.info()["steps"] == 4
    assert [r["step"] for r in rows(run)] == [2, 4] and "reward" not in rows(run)[1]
    first, second = (r.get("tokens_per_second") for r in rows(run))
    assert first > 0 and second is None, "nothing was sampled, which is not 0 tokens a second"
    assert [c.name for c in run.checkpoints.iterdir()] == ["step-000004"], "a checkpoint holds no rollouts"
    kept = rollouts(run)["step-000001.jsonl"]
    assert len(kept) == 16 and positions(run) == [0, 1, 2, 3]
    for group in (kept[i : i + 4] for i in range(0, 16, 4)):
        p = np.mean([r["success"] for r in group])
        want = [(r["success"] - p) / p if p else 0 for r in group]
        assert [r["advantage"] for r in group] == pytest.approx(want)


# ---- rewards that fail -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_failed_checks_are_masked_counted_and_called_out(rlvr, caplog):
    run = train(rlvr, rewarded("fails"), "rollout.max_failed=0.6", "train.learning_rate=0.5")
    kept = [row for part in rollouts(run).values() for row in part]
    failed = [row for row in kept if row["reward"] is None]
    assert 2 < len(failed) < 15
    for row in failed:
        assert row["components"]["fails"]["status"] == "error" and row["success"] is None
        assert "no such rule" in row["components"]["fails"]["reason"]
        assert (row["trained"], row["advantage"]) == (False, 0.0)
    for part in rollouts(run).values():
        for g in (0, 1):
            known = [r for r in part if r["group"] == g and r["reward"] is not None]
            assert sum(r["advantage"] for r in known) == pytest.approx(0, abs=1e-9)
            assert all(r["trained"] for r in known)
    for logged, part in zip(rows(run), rollouts(run).values(), strict=True):
        share = sum(r["reward"] is None for r in part) / 8
        assert logged["checks_failed"] == logged["reward/fails/error"] == share
        assert logged["success"] == pytest.approx(
            np.mean([r["success"] for r in part if r["success"] is not None])
        )
    assert "checks failed" in caplog.text and "fails: error (ZeroDivisionError: no such rule)" in caplog.text


@pytest.mark.slow
def test_too_many_failed_checks_stop_the_run(rlvr):
    with pytest.raises(
        WorkError,
        match=r"of 8 checks failed \(\d+%\), most often fails: error \(ZeroDivisionError: no such rule\)",
    ):
        train(rlvr, rewarded("fails", sides=2), "rollout.max_failed=0.2")
    info = json.loads((rlvr.parent / "case" / "run.json").read_text())
    assert info["status"] == "failed" and "rollout.max_failed = 0.2" in info["error"]
    assert len(rollouts(rlvr.parent / "case")["step-000001.jsonl"]) == 8, "kept, to be looked at"


@pytest.mark.slow
def test_a_check_of_success_that_fails_is_a_failed_check(rlvr):
    """It has no weight in the reward, which is known; but nothing would be trained on."""
    given = [
        {"name": f"{HERE}:even", "label": "even"},
        {"name": f"{HERE}:fails", "label": "f", "weight": 0, "options": {"sides": 2}},
    ]
    with pytest.raises(WorkError, match="checks failed .*f: error"):
        train(rlvr, f"rewards={json.dumps(given)}", "success={reward: f}")


@pytest.mark.slow
def test_a_reward_that_returns_the_wrong_number_of_values(rlvr):
    sentence = "8 of 8 checks failed .*the reward returned 7 values for 8 completions"
    with pytest.raises(WorkError, match=sentence):
        train(rlvr, rewarded("short"))


@pytest.mark.slow
def test_checks_that_hang_end_at_their_limits(rlvr):
    """In a worker the completion gets 0 for `limit`; in a thread there is no verdict at the deadline, which
    is the checker's."""
    run = train(rlvr, rewarded("hangs"), "train.max_steps=1", "train.global_batch_size=32")
    (kept,) = rollouts(run).values()
    hung = [r for r in kept if r["components"]["hangs"]["reason"] == "limit"]
    assert hung and all((r["reward"], r["success"], r["trained"]) == (0.0, False, True) for r in hung)
    assert rows(run)[0]["reward/hangs/limit"] == len(hung) / 32 and not rows(run)[0]["checks_failed"]
    run = train(
        rlvr,
        "name=late",
        rewarded("late"),
        "train.max_steps=1",
        "train.global_batch_size=32",
        "rollout.deadline=1",
        "rollout.max_failed=1",
    )
    (kept,) = rollouts(run).values()
    lost = [r for r in kept if r["reward"] is None]
    assert lost and {r["components"]["late"]["status"] for r in lost} == {"timeout"}
    assert rows(run)[0]["checks_failed"] == rows(run)[0]["reward/late/timeout"] == len(lost) / 32


# ---- references --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_reference_is_the_start_model_or_the_one_that_is_named(rlvr, tiny, tmp_path):
    """KL at the first step is 0 against the start model: with an adapter, and of a model that is made from a
    config."""
    on = ["policy.beta=0.1", "train.max_steps=2", "train.learning_rate=0.5"]
    options = json.loads((tiny / "config.json").read_text())
    options = {
        k: options[k]
        for k in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
        )
    }
    scratch = json.dumps(
        {
            "tokenizer": "builtin:bytes",
            "from_config": {"model_type": "llama", "options": options},
            "init": None,
        }
    )
    for name, more in (("lora", [LORA]), ("scratch", [f"model={scratch}"])):
        logged = rows(train(rlvr, f"name={name}", *on, *more))
        assert logged[0]["kl"] == 0 and logged[1]["kl"] > 1e-6, name
    other = moved(tiny, tmp_path / "other")
    on[1] = "train.max_steps=1"
    run = train(rlvr, "name=full", *on, f"policy.reference={other}")
    assert rows(run)[0]["kl"] > 1e-3
    against = rows(train(rlvr, "name=both", *on, LORA, f"policy.reference={other}"))
    assert against[0]["kl"] == pytest.approx(rows(run)[0]["kl"], rel=1e-5), "not the adapter's own start"


# ---- dynamic sampling, cut-off completions, epochs ---------------------------------------------------------


@pytest.mark.slow
def test_dynamic_sampling_in_a_run(rlvr):
    """One in four is right: a group of two is mixed with a chance of 3/8."""
    run = train(
        rlvr, rewarded("even", sides=4), "rollout={num_generations: 2, max_new_tokens: 12, refill: 2}"
    )
    assert sorted(positions(run)) == list(range(len(positions(run))))
    for logged, kept in zip(rows(run), rollouts(run).values(), strict=True):
        groups = [kept[i : i + 2] for i in range(0, len(kept), 2)]
        trained = [g for g in groups if g[0]["trained"]]
        mixed = [g for g in groups if len({r["success"] for r in g}) == 2]
        assert len(trained) == 4 and all(g[1]["trained"] == g[0]["trained"] for g in groups)
        assert groups[:4] == trained and {g[0]["advantage"] for g in groups[4:]} <= {None}
        assert logged["groups/sampled"] == len(groups) and mixed
        assert logged["groups/unfilled"] == max(0, 4 - len(mixed)) == 4 * logged["groups/zero_variance"]
        assert all(g in trained for g in mixed)
        asked = [sum(g[0]["round"] == n for g in groups) for n in (0, 1, 2)]
        found = [sum(g[0]["round"] == n for g in mixed) for n in (0, 1, 2)]
        assert asked == [4, 4 - found[0], 4 - found[0] - found[1]]
    assert max(r["groups/sampled"] for r in rows(run)) > 4
    last = json.loads((run.checkpoints / "step-000003" / "checkpoint.json").read_text())
    assert last["prompts"] == len(positions(run)) and last["epoch"] == len(positions(run)) / 40


@pytest.mark.slow
def test_shares_of_two_sources_in_a_run(rlvr):
    """As the rollouts on disk have them: all prompts, and the groups with a gradient."""
    file = rlvr.parent / "prompts.jsonl"
    sources = [{"name": name, "path": str(file)} for name in ("a", "b")]
    run = train(
        rlvr,
        f"data.sources={json.dumps(sources)}",
        rewarded("even", sides=4),
        "rollout={num_generations: 2, max_new_tokens: 12, refill: 1}",
    )
    for logged, kept in zip(rows(run), rollouts(run).values(), strict=True):
        groups = [kept[i : i + 2] for i in range(0, len(kept), 2)]
        teaching = [g for g in groups if g[0]["trained"] and any(r["advantage"] for r in g)]
        for name in ("a", "b"):
            assert logged[f"share/{name}"] == np.mean([g[0]["source"] == name for g in groups])
            assert logged[f"trained_share/{name}"] == np.mean([g[0]["source"] == name for g in teaching])


@pytest.mark.slow
def test_cut_off_completions_in_a_run(rlvr):
    short = "rollout={num_generations: 4, max_new_tokens: 40, truncated: %s, truncated_reward: %s}"
    on = ["train.max_steps=1", "train.global_batch_size=32"]
    (kept,) = rollouts(train(rlvr, "name=mask", *on, short % ("mask", 0))).values()
    cut = [r["finish"] == "length" for r in kept]
    assert 0 < sum(cut) < 32 and [r["trained"] for r in kept] == [not c for c in cut]
    (penalised,) = rollouts(
        train(rlvr, "name=penalise", *on, short % ("penalise", -2), "policy.advantage=mean")
    ).values()
    assert [r["completion"] for r in penalised] == [r["completion"] for r in kept]
    for g in range(8):
        group = penalised[4 * g : 4 * g + 4]
        values = [-2.0 if r["finish"] == "length" else r["reward"] for r in group]
        assert [r["advantage"] for r in group] == pytest.approx([v - np.mean(values) for v in values])


@pytest.mark.slow
def test_epochs_count_prompts(rlvr):
    """40 prompts x 4 completions x 0.2 epochs = 32 completions = 4 steps of 8."""
    run = train(rlvr, "train.max_steps=null", "train.num_train_epochs=0.2")
    assert run.info()["steps"] == 4 == len(rows(run)) and rows(run)[-1]["epoch"] == 0.2
    assert positions(run) == list(range(8))


# ---- GSM8K -------------------------------------------------------------------------------------------------


def test_gsm8k_prompts(rlvr, data_dir, tmp_path):
    """The path is what counts: the model knows nothing. All components are logged, and every row has its own
    answer."""
    lines = (data_dir / "gsm8k" / "train.jsonl").read_text().splitlines()[:200]
    (tmp_path / "gsm8k.jsonl").write_text("\n".join(lines))
    asked = {row["question"]: row["answer"] for row in map(json.loads, lines)}
    kinds = {"math": ({"mode": "gsm8k"}, 1.0), "length_target": ({}, 0.1), "format": ({}, 0.1)}
    given = [{"name": name, "options": o, "weight": w} for name, (o, w) in kinds.items()]
    run = train(
        rlvr,
        f"data.sources=[{{name: gsm8k, path: {tmp_path}/gsm8k.jsonl}}]",
        "data.max_length=400",
        "train.max_steps=2",
        f"rewards={json.dumps(given)}",
        "rollout.max_new_tokens=24",
        "data.max_drop_share=0.2",
    )
    for logged, kept in zip(rows(run), rollouts(run).values(), strict=True):
        assert {f"reward/{name}" for name in kinds} | {"reward", "success"} <= logged.keys()
        assert logged["checks_failed"] == 0 and len(kept) == 8
        for row in kept:
            question = row["prompt"].partition("user\n")[2].partition("<|im_end|>")[0]
            assert asked[question] == row["answer"] and row["components"].keys() == kinds.keys()
            parts = {name: v["value"] for name, v in row["components"].items()}
            want = sum(weight * parts[name] for name, (_, weight) in kinds.items())
            assert row["reward"] == pytest.approx(want) and row["success"] == (parts["math"] == 1)
