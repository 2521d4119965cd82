"""KTO: TRL's KTOTrainer on the same batch as an oracle, one batch split every way, labels, logs, resuming."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from posttrain.errors import RequestError
from posttrain.training.kto import joined
from tests.training.preferences import (
    far,
    kto,
    moved,
    no_second_model,
    rows,
    train,
    weights,
    write_recipe,
)

LORA = "model.lora={r: 4, target_modules: [q_proj]}"


@pytest.fixture
def path(tmp_path, tiny) -> Path:
    return write_recipe(tmp_path, tiny)


def theirs(tiny: Path, other: Path, folder: Path, examples: list[dict]) -> tuple[dict, dict]:
    """TRL's loss and metrics on one batch, and the weights after a step of plain SGD at 0.05."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import KTOConfig, KTOTrainer

    args = KTOConfig(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        bf16=False,
        max_length=None,
        gradient_checkpointing=False,
        per_device_train_batch_size=8,
        beta=0.2,
        desirable_weight=1.5,
        undesirable_weight=0.8,
        train_sampling_strategy="sequential",
    )
    model, reference = (AutoModelForCausalLM.from_pretrained(each) for each in (tiny, other))
    some = [{"prompt": "a", "completion": "b", "label": bool(i % 2)} for i in range(8)]
    trainer = KTOTrainer(
        model=model,
        ref_model=reference,
        args=args,
        train_dataset=Dataset.from_list(some),
        processing_class=AutoTokenizer.from_pretrained(tiny),
    )
    for i, example in enumerate(examples):  # as its `_prepare_dataset` rotates a batch
        example["KL_completion_ids"] = examples[i - 1]["completion_ids"]
    model.train()
    loss = trainer.compute_loss(model, trainer.data_collator(examples))
    loss.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    after = {n: (p - 0.05 * p.grad).detach() for n, p in model.named_parameters()}
    return metrics | {"loss": float(loss.detach())}, after


@pytest.mark.slow
def test_a_step_is_trls(path, tiny, tmp_path):
    """Loss, KL, rewards and the step itself; the reference is another model, so that nothing is at its
    start."""
    other = moved(tiny, tmp_path / "other")
    settings = {"beta": 0.2, "desirable_weight": 1.5, "undesirable_weight": 0.8}
    run = train(
        path,
        *kto(path, reference_model=str(other), **settings),
        "train.max_steps=1",
        "train.per_device_train_batch_size=8",
        "train.log_samples=true",
    )
    (line,) = (run.path / "samples.jsonl").read_text().splitlines()
    written = [json.loads(line) for line in (tmp_path / "labelled.jsonl").read_text().splitlines()]
    from posttrain.data.tokenizers import load_tokenizer

    tokenizer, examples = load_tokenizer(str(tiny)), []
    for _, row in json.loads(line)["ids"]:
        prompt = f"<|im_start|>user\n{written[row]['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        ids = [tokenizer(t).input_ids for t in (prompt, written[row]["completion"] + "<|im_end|>")]
        examples.append({"prompt_ids": ids[0], "completion_ids": ids[1], "label": written[row]["label"]})
    want, after = theirs(tiny, other, tmp_path / "trl", examples)
    found = rows(run)[0]
    assert want["kl"] > 0.1, "a z that is clamped would show nothing"
    for name in ("loss", "kl", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen"):
        assert found[name] == pytest.approx(want[name], rel=1e-4), name
    assert found["count/chosen"] + found["count/rejected"] == 8 == found["completions"]
    start, ours = load_file(tiny / "model.safetensors"), weights(run, 1)
    step = max(float((start[k] - ours[k]).abs().max()) for k in ours)
    assert far(ours, {k: after[k] for k in ours}) < 1e-4 * step


@pytest.mark.parametrize(
    ("ratios", "want"),
    [
        ([[1.0, 2.0], [6.0]], 3.0),  # of rows, not of micro-batches: 3.75
        ([[-1.0, 0.5], [-0.25]], 0.0),  # a KL is not negative
        ([], 0.0),  # a rank without held-out rows
    ],
)
def test_the_estimate_of_a_step(ratios, want):
    from posttrain.training.kto import KtoTrainer

    alone = SimpleNamespace(reduce=lambda values: values, args=SimpleNamespace(device="cpu"))
    assert float(KtoTrainer._estimate(alone, [torch.tensor(r) for r in ratios])) == want


@pytest.mark.slow
def test_nothing_depends_on_the_split_or_on_when_the_reference_is_asked(path, tiny, tmp_path):
    """One micro-batch and references from disk; four without padding and a second model in every step."""
    given = {"reference_model": str(moved(tiny, tmp_path / "other"))}
    whole = train(path, *kto(path, **given), "name=whole", "train.per_device_train_batch_size=8")
    split = train(
        path,
        *kto(path, reference="live", **given),
        "name=split",
        "train.per_device_train_batch_size=2",
        "data.padding_free=true",
    )
    for a, b in zip(rows(whole), rows(split), strict=True):
        for name in ("loss", "kl", "rewards/margins"):
            assert a[name] == pytest.approx(b[name], abs=1e-5), (a["step"], name)
    assert far(weights(whole), weights(split)) <= 1e-6
    assert max(row["kl"] for row in rows(whole)) > 0.1, "a z that stays 0 would show nothing"
    assert not list((split.path / "reference").glob("*"))


@pytest.mark.slow
def test_lora_needs_no_second_model(path, monkeypatch):
    from posttrain import dpo

    monkeypatch.setattr(dpo, "frozen_reference", no_second_model)
    settings = (LORA, "train.max_steps=3", "train.learning_rate=0.5")
    runs = [train(path, *kto(path, reference=r), f"name={r}", *settings) for r in ("live", "precomputed")]
    for a, b in zip(*map(rows, runs), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
    assert far(weights(runs[0], 3), weights(runs[1], 3)) <= 1e-6


@pytest.mark.slow
def test_a_run_goes_on_as_if_it_had_not_stopped(path):
    settings = [
        *kto(path),
        "checkpoints.save_steps=3",
        "checkpoints.keep_last=null",
        "evaluate.heldout={share: 0.2, every_steps: 5}",
    ]
    run = train(path, *settings)
    whole, held = weights(run), rows(run, "heldout")[-1]
    assert held["completions"] == 8 and held["count/chosen"] + held["count/rejected"] == 8
    assert 0 < held["loss"] < 1 and held["kl"] >= 0
    shutil.rmtree(run.checkpoints / "step-000005")
    shutil.rmtree(path.parent / "cache" / "reference")  # its own copy is enough
    train(path, *settings)
    assert far(weights(run), whole) == 0
    assert rows(run, "heldout")[-1]["loss"] == pytest.approx(held["loss"], abs=1e-7)


@pytest.mark.slow
def test_held_out_replies_by_hand(path, tiny):
    """Six of them in two batches: one z for all, from prompt i with reply i - 1."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given = [
        {"prompt": f"Say {i}.", "completion": f"{'good' if i % 2 else 'bad'} {i} " * (i + 1), "label": i % 2}
        for i in range(6)
    ]
    held = path.parent / "held.jsonl"
    held.write_text("".join(json.dumps(row) + "\n" for row in given))
    run = train(
        path,
        *kto(path, desirable_weight=3.0),
        "train.learning_rate=0.5",
        f"evaluate.heldout={{source: {{name: held, path: {held}}}, every_steps: 5}}",
    )
    found, tokenizer = rows(run, "heldout")[-1], AutoTokenizer.from_pretrained(tiny)
    models = [AutoModelForCausalLM.from_pretrained(p).eval() for p in (run.checkpoints / "step-000005", tiny)]

    def ratio(prompt: str, reply: str) -> float:
        texts = (f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n", f"{reply}<|im_end|>")
        before, after = (tokenizer(text).input_ids for text in texts)
        ids = torch.tensor([before + after])
        with torch.no_grad():
            logps = [m(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]) for m in models]
        policy, start = (float(logp[len(before) - 1 :].sum()) for logp in logps)
        return policy - start

    z = max(0.0, np.mean([ratio(given[i]["prompt"], given[i - 1]["completion"]) for i in range(6)]))
    x = [ratio(row["prompt"], row["completion"]) for row in given]
    value = [
        3.0 / (1 + np.exp(0.1 * (v - z))) if row["label"] else 1 / (1 + np.exp(0.1 * (z - v)))
        for v, row in zip(x, given, strict=True)
    ]
    assert z > 0.1 and found["kl"] == pytest.approx(z, abs=1e-4)
    assert found["loss"] == pytest.approx(np.mean(value), abs=1e-5)
    assert found["rewards/chosen"] == pytest.approx(0.1 * np.mean(x[1::2]), abs=1e-4)
    assert found["logratio/rejected"] == pytest.approx(np.mean(x[::2]), abs=1e-4)


# ---- labels ------------------------------------------------------------------------------------------------


def test_replies_of_one_kind_only_are_refused(path):
    lines = (path.parent / "labelled.jsonl").read_text().replace("false", "true")
    (path.parent / "labelled.jsonl").write_text(lines)
    with pytest.raises(RequestError, match="of 40 rows 40 are good and 0 bad; check columns.label of 'rows'"):
        train(path, *kto(path))
    assert not (path.parent / "case").exists()


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ((1.0, 1.0), "about 16 good and 24 bad .* weighted 16 to 24.*between 1.5 and 2"),
        ((1.5, 1.0), None),
        ((2.0, 1.0), None),
        ((2.01, 1.0), "weighted 32.2 to 24"),
        ((0.75, 0.5), None),
    ],
)
def test_weights_that_do_not_make_up_for_the_numbers(caplog, weights, sentence):
    """16 good, 24 bad: a weight w of the good ones is right for 16 w / 24 in [1, 4/3]."""
    from posttrain.recipe.sections import Preference
    from posttrain.training.kto import check_labels

    class Table:
        p = np.repeat([1.0, 0.0], [20, 30])

        def __len__(self):
            return 50

    prepared = SimpleNamespace(
        names=["a"], tables=[Table()], mixture=SimpleNamespace(counts=lambda total: [total])
    )
    check_labels(
        prepared, 40, Preference(loss="kto", desirable_weight=weights[0], undesirable_weight=weights[1])
    )
    assert bool(caplog.text) == (sentence is not None)
    assert sentence is None or re.search(sentence, caplog.text)


# ---- mismatched rows ---------------------------------------------------------------------------------------


def row(prompt: list[int], reply: list[int], after: list[int] = ()) -> dict:
    ids = np.array([*prompt, *reply, *after], np.int32)
    trained = np.isin(np.arange(len(ids)), range(len(prompt), len(prompt) + len(reply)))
    return {"input_ids": ids, "labels": np.where(trained, ids, -100), "segment_ids": trained * 1}


def test_a_mismatched_row_is_the_prompt_with_the_other_reply():
    made = joined(row([1, 2, 3], [4, 5], [9]), row([6], [7, 8, 7], [9]), 10)
    assert made["input_ids"].tolist() == [1, 2, 3, 7, 8, 7], "nothing after the end of turn"
    assert made["labels"].tolist() == [-100] * 3 + [7, 8, 7]
    assert made["segment_ids"].tolist() == [0, 0, 0, 1, 1, 1]
    assert joined(row([1, 2, 3], [4]), row([6], [7, 8, 7]), 4)["input_ids"].tolist() == [1, 2, 3, 7]


def test_replies_go_round_within_a_global_batch():
    from posttrain.training.kto import MismatchedRows

    class Rows(list):
        def places(self):
            return {}

    some = Rows(row([10 + i], [20 + i]) for i in range(8))
    found = MismatchedRows(some, 3, 10, 5, {(5, 1): "known"})
    said = [found[i]["mismatch"]["input_ids"].tolist() for i in range(8)]
    assert said == [[10, 22], [11, 20], [12, 21], [13, 25], [14, 23], [15, 24], [16, 27], [17, 26]]
    assert list(found.places()) == [(5, i) for i in range(8)]
    assert found[1]["mismatch"]["reference"] == "known" and "reference" not in found[2]["mismatch"]
