"""The DPO stage: TRL's losses on the same pairs, one batch split every way, references once and complete,
resuming."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from posttrain.errors import RequestError
from posttrain.recipe import load_stage
from tests.tiny import tiny_model
from tests.training.preferences import far, kto, moved, rows, train, weights, write_recipe

LORA = "model.lora={r: 4, target_modules: [q_proj, lm_head]}"


def cases(path: Path, tiny: Path) -> dict[str, list[str]]:
    """Overrides of the recipe in `path` by name of the case."""
    other = moved(tiny, path.parent / "other")
    return {
        "dpo_norm": ["preference={loss: dpo_norm, sft_weight: 0.5, sft_n: 4}"],
        "wpo": ["preference={loss: wpo, beta: 0.5}"],
        "orpo": ["preference={loss: orpo}"],
        "lora": [LORA, "preference={loss: dpo, reference: live}"],
        "padding_free": ["data.padding_free=true"],
        "kto": kto(path, desirable_weight=1.5, reference="live", reference_model=str(other)),
    }


@pytest.fixture
def dpo(tmp_path, tiny) -> Path:
    return write_recipe(tmp_path, tiny)


# ---- TRL as an oracle --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trl_trainer(tmp_path_factory, tiny):
    """`trl_trainer(loss_type, **options)`: TRL's own trainer on COUNT tokenised pairs, and one batch of
    them."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    torch.manual_seed(1)
    made = [
        {
            name: torch.randint(3, 200, (size,)).tolist()
            for name, size in (("prompt", 5), ("chosen", 4 + i), ("rejected", 9 - i))
        }
        for i in range(6)
    ]

    def build(loss_type: str, **options):
        args = DPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            loss_type=[loss_type],
            use_cpu=True,
            report_to=[],
            bf16=False,
            max_length=None,
            gradient_checkpointing=False,
            **options,
        )
        model, other = (AutoModelForCausalLM.from_pretrained(tiny) for _ in range(2))
        with torch.no_grad():  # a policy that has moved away from its reference
            for p in model.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        messages = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
        tokenizer = AutoTokenizer.from_pretrained(tiny)
        trainer = DPOTrainer(
            model=model,
            ref_model=other,
            args=args,
            train_dataset=Dataset.from_list(messages),
            processing_class=tokenizer,
        )
        batch = trainer.data_collator([{f"{k}_ids": v for k, v in row.items()} for row in made])
        return trainer, batch

    return build


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        ("dpo", "sigmoid", {"beta": 0.3}),
        ("dpo_norm", "sigmoid_norm", {"beta": 5.0}),
        ("ipo", "ipo", {"beta": 0.3}),
        ("robust", "robust", {"beta": 0.3, "label_smoothing": 0.2}),
    ],
)
def test_the_loss_is_trls_on_the_same_pairs(trl_trainer, ours, theirs, options):
    from posttrain.losses.preference import LOSSES, PairLogProbs
    from posttrain.recipe.sections import Preference

    trainer, batch = trl_trainer(theirs, **options)
    want = trainer.compute_loss(trainer.model, batch)
    mask = batch["completion_mask"][:, 1:].bool()

    def log_probs(model):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        found = logits.log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
        return (found * mask).sum(1)

    with torch.no_grad():
        policy, reference = log_probs(trainer.model), log_probs(trainer.ref_model)
    chosen, rejected = policy.chunk(2)
    pairs = PairLogProbs(chosen, rejected, *mask.sum(1).chunk(2), *reference.chunk(2))
    found = LOSSES[ours](
        pairs, Preference(beta=options["beta"], label_smoothing=options.get("label_smoothing", 0.0))
    ).mean()
    assert abs(float(found) - float(want)) <= 2e-5 * abs(float(want))
    assert float((chosen - rejected).detach().abs().mean()) > 1


# ---- one batch split every way -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wholes(tmp_path_factory, tiny):
    """One process, the whole batch in one piece: the recipe file; overrides and the run of every case."""
    path = write_recipe(tmp_path_factory.mktemp("wholes"), tiny)
    batch = "train.per_device_train_batch_size=8"
    return path, {
        name: (more, train(path, f"name={name}", batch, "train.max_steps=3", *more))
        for name, more in cases(path, tiny).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(("config", "engine"), [("cpu2.yaml", "ddp"), ("zero3.yaml", "zero3")])
def test_two_processes_equal_one(wholes, launch, tmp_path, config, engine):
    """Losses to 1e-5, and the same reference log-probabilities, which two processes compute for
    themselves."""
    recipe, runs = wholes
    settings = [
        "train.per_device_train_batch_size=2",
        f"data.cache_dir={tmp_path}",
        f"output_dir={tmp_path}",
        "train.max_steps=3",
    ]
    asked = [
        {"name": n, "stage": "dpo", "recipe": str(recipe), "overrides": [f"name={n}", *settings, *more]}
        for n, (more, _) in runs.items()
    ]
    results = launch(asked, config)
    for name, (_, whole) in runs.items():
        found = results[name]
        assert (found["world_size"], found["engine"]) == (2, engine)
        assert found["sharded"] or engine != "zero3"
        assert equal(found["run"], whole) == int(name not in ("orpo", "lora", "kto"))


def equal(run: str, whole) -> int:
    """Losses and weights of three steps and the reference log-probabilities that were kept agree to 1e-5; the
    number of files of these."""
    ours, theirs = rows(run), rows(whole)
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs, strict=True):
        keys = {"loss", "logps/chosen", "rewards/margins", "tokens/rejected", "kl"} & b.keys()
        assert len(keys) >= 4
        for key in keys:
            assert abs(a[key] - b[key]) <= 1e-5 * max(1.0, abs(b[key])), (run, key, a, b)
    assert far(weights(run, 3), weights(whole, 3)) <= 1e-5
    kept = [sorted((Path(p) / "reference").glob("*.npz")) for p in (run, whole.path)]
    for left, right in zip(*kept, strict=True):
        with np.load(left) as a, np.load(right) as b:
            assert (a["rows"] == b["rows"]).all() and len(a["rows"]) >= 24
            np.testing.assert_allclose(a["log_probs"], b["log_probs"], rtol=1e-5)
    return len(kept[0])


@pytest.mark.slow
def test_accumulation_changes_nothing(dpo):
    whole = train(dpo, "name=whole", "train.per_device_train_batch_size=8")
    split = train(dpo, "name=split", "train.per_device_train_batch_size=2")
    for a, b in zip(rows(whole), rows(split), strict=True):
        assert abs(a["loss"] - b["loss"]) <= 1e-5
    assert far(weights(whole), weights(split)) <= 1e-6
    assert rows(whole)[0]["loss"] == pytest.approx(np.log(2), abs=1e-6), (
        "before the first step there is no margin"
    )


# ---- references --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_references_are_computed_once_and_found_again(dpo, tiny, caplog, monkeypatch):
    """By content: the second run computes none; rows that are new are added; another model has its own."""
    caplog.set_level("INFO")
    first = train(dpo, "name=first", "train.max_steps=2")
    assert "reference log-probabilities of 16 pairs" in caplog.text
    caplog.clear()
    train(dpo, "name=second", "train.max_steps=2")
    assert "reference log-probabilities" not in caplog.text
    more = train(dpo, "name=more", "train.max_steps=4")
    assert "reference log-probabilities of 16 pairs" in caplog.text
    (own,) = (more.path / "reference").glob("*.npz")
    with np.load(own) as found:
        assert len(found["rows"]) == 32
    caplog.clear()
    train(dpo, "name=other", "train.max_steps=2", "train.bf16=true")
    assert "reference log-probabilities of 16 pairs" in caplog.text
    assert first.info()["status"] == "finished"


@pytest.mark.slow
def test_references_are_those_of_the_start_model(dpo, tiny):
    from transformers import AutoModelForCausalLM

    run = train(dpo)
    (own,) = (run.path / "reference").glob("*.npz")
    with np.load(own) as found:
        known = dict(zip(found["rows"].tolist(), found["log_probs"], strict=True))
    from posttrain.data.cache import prepare_sources
    from posttrain.data.template import load_text
    from posttrain.recipe.schema import Loss

    recipe = load_stage(str(dpo), ["data.train_on=last"], "dpo")
    tokenizer, _ = load_text(recipe.model, recipe.data.template, str(tiny))
    table = prepare_sources(recipe.data.sources, recipe.data, Loss(), tokenizer, shape="pairs")[0]
    model = AutoModelForCausalLM.from_pretrained(tiny).eval()
    for i in (0, 7, 39):
        for side, row in enumerate(table[i]):
            ids = torch.tensor(row.input_ids).long()[None]
            logp = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            want = float(logp[torch.tensor(row.labels[1:]) >= 0].sum())
            assert known[i][side] == pytest.approx(want, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["model.lora={r: 4, target_modules: [q_proj]}"]], ids=["full", "lora"])
def test_a_run_goes_on_as_if_it_had_not_stopped(dpo, extra):
    settings = [
        "checkpoints.save_steps=3",
        "checkpoints.keep_last=null",
        "train.optim=adamw_torch",
        *extra,
        "train.learning_rate=1e-3",
        "train.lr_scheduler_type=linear",
        "preference.sft_weight=0.1",
    ]
    run = train(dpo, *settings)
    whole = weights(run)
    shutil.rmtree(run.checkpoints / "step-000005")
    shutil.rmtree(dpo.parent / "cache" / "reference")  # its own copy is enough
    assert far(weights(train(dpo, *settings)), whole) == 0
    if not extra:  # without it the start model is asked once more, not the policy
        shutil.rmtree(run.checkpoints / "step-000005")
        shutil.rmtree(dpo.parent / "cache" / "reference")
        shutil.rmtree(run.path / "reference")
        assert far(weights(train(dpo, *settings)), whole) == 0


# ---- what is logged, what is refused -----------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_logged(dpo, caplog):
    run = train(
        dpo,
        "evaluate.heldout={share: 0.2, every_steps: 5}",
        "preference.sft_weight=0.1",
        "train.learning_rate=0.5",
    )
    last, held = rows(run)[-1], rows(run, "heldout")[-1]
    for row in (last, held):
        assert row["rewards/margins"] == pytest.approx(
            row["rewards/chosen"] - row["rewards/rejected"], abs=1e-6
        )
        assert 0 <= row["rewards/accuracies"] <= 1 and row["weight_mean"] == 1.0
        assert row["tokens/chosen"] > 5 and row["logps/chosen"] < 0
    assert last["rewards/accuracies"] > 0.9 and held["pairs"] == 8 and last["pairs"] == 8
    assert "logratio/chosen" not in rows(train(dpo, "name=orpo", "preference.loss=orpo"))[-1]
    assert not list((run.path.parent / "orpo").glob("reference/*"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("reference", ["precomputed", "live"])
def test_dropout_does_not_part_the_policy_from_its_reference(dpo, tmp_path, kind, reference):
    """Equal weights are the same function: the first loss is log 2, with GPT-2's usual dropout of 0.1 as well
    as with llama's, which is a number given to attention."""
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
    options = {"attention_dropout": 0.3} if kind == "llama" else shape
    folder = tiny_model(tmp_path / "model", kind=kind, **options)
    run = train(
        dpo, f"model.init={folder}", "train.max_steps=1", f"preference={{loss: dpo, reference: {reference}}}"
    )
    (line,) = rows(run)
    assert line["loss"] == pytest.approx(np.log(2), abs=1e-6) and abs(line["rewards/margins"]) < 1e-6


@pytest.mark.slow
def test_a_falling_chosen_reply_is_called_out(dpo, caplog):
    """The chosen replies share their words with the rejected ones, so pushing those down takes them along."""
    made = [{"prompt": "p", "chosen": f"bad {i} bad", "rejected": f"bad {i} bad bad"} for i in range(40)]
    (dpo.parent / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    run = train(dpo, "train.learning_rate=0.5", "train.max_steps=12", "preference={loss: dpo, beta: 1}")
    assert rows(run)[-1]["logratio/chosen"] < -1
    assert caplog.text.count("chosen replies have become less likely") == 1


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["preference={loss: kto, sft_weight: 1}"], "sft_weight cannot be used with preference.loss = kto"),
        (["preference.loss=kto", "train.global_batch_size=1"], "at least 2 for kto: its KL estimate"),
        (
            ["preference.undesirable_weight=2"],
            "undesirable_weight is used only with preference.loss = kto, not dpo_norm",
        ),
        (
            ["preference={loss: orpo, reference: live}"],
            "preference.reference cannot be used with preference.loss = orpo",
        ),
        (
            ["preference={loss: simpo, reference_model: x}"],
            "reference_model cannot be used with preference.loss = simpo",
        ),
        (["preference.reference_revision=main"], "is used only with preference.reference_model"),
        (["preference.reference=alive"], "'alive'.*live"),
        (["preference.loss=simp"], "did you mean 'simpo'"),
        (["preference.beta=0"], "preference.beta = 0.0 must be above 0"),
        (
            ["preference.label_smoothing=0.2"],
            "label_smoothing is used only with preference.loss = cdpo or robust, not dpo_norm",
        ),
        (["preference={loss: cdpo, label_smoothing: 0.5}"], r"label_smoothing = 0.5 must be in \[0, 0.5\)"),
        (["preference.sft_n=0.5"], "preference.sft_n = 0.5 must be at least 1"),
    ],
)
def test_bad_preferences(dpo, overrides, sentence):
    with pytest.raises(RequestError, match=sentence):
        load_stage(str(dpo), overrides, "dpo")


def test_too_many_pairs_that_teach_nothing(dpo):
    same = {"prompt": "p", "chosen": "x", "rejected": "x"}
    with (dpo.parent / "pairs.jsonl").open("a") as file:
        file.write("".join(json.dumps(same) + "\n" for _ in range(20)))
    with pytest.raises(RequestError, match="20 of 60 rows .33.3%. are dropped.*20 equal_pair"):
        train(dpo)
    assert not (dpo.parent / "case").exists()
