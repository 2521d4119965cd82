"""One process, one small run at a time: what a run leaves behind, and what happens when a step or a disk
fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from posttrain.base.files import read_jsonl
from posttrain.errors import RequestError, WorkError
from posttrain.recipe import load_stage
from posttrain.rundir import checkpoints as ckpt
from posttrain.sft import train


def go(recipe: Path, *overrides: str, score=None) -> Path:
    return train(load_stage(recipe, list(overrides), "sft"), score).path


def metrics(run: Path, split: str = "train") -> list[dict]:
    return [r for r in read_jsonl(run / "metrics.jsonl") if r["split"] == split]


@pytest.mark.slow
def test_what_a_run_leaves_behind(recipe):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = go(
        recipe,
        "loss.name=confidence_limited",
        "loss.n=16",
        "evaluate.heldout={share: 0.25, every_steps: 2}",
        "train.report_to=[tensorboard]",
    )
    info = json.loads((run / "run.json").read_text())
    assert (info["status"], info["steps"], info["world_size"], info["engine"]) == ("finished", 5, 1, "single")
    assert info["versions"]["trl"].startswith("1.16")
    rows = metrics(run)
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5]
    for key in (
        "loss",
        "nll",
        "weight_mean",
        "weight_below_0.1",
        "segment_logp",
        "entropy",
        "token_accuracy",
        "tokens_per_second",
        "peak_memory_mib",
        "learning_rate",
        "epoch",
    ):
        assert isinstance(rows[-1][key], float), key
    assert 0 <= rows[-1]["weight_mean"] <= 1
    assert [r["step"] for r in metrics(run, "heldout")] == [2, 4, 5]
    checkpoint = run / "checkpoints" / "step-000005"
    assert ckpt.is_complete(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert "<|im_start|>" in tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert model.config.vocab_size == len(tokenizer)
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= {
        p.name for p in checkpoint.iterdir()
    }
    assert list((run / "tensorboard").rglob("events.*"))
    mixture = json.loads((run / "mixture.json").read_text())
    assert mixture["sources"][0]["rows_kept"] == 48
    assert load_stage(run / "recipe.yaml", [], "sft").loss.n == 16


def test_a_second_run_of_a_process_logs_into_its_own_folder(tmp_path, monkeypatch):
    from posttrain.training import arguments

    monkeypatch.setenv(arguments.LOGGING_DIR, "")
    for name in ("a", "b"):
        arguments._log_into(tmp_path / name)
        assert os.environ[arguments.LOGGING_DIR] == str(tmp_path / name)
    monkeypatch.setenv(arguments.LOGGING_DIR, "/the/users")
    arguments._log_into(tmp_path / "c")
    assert os.environ[arguments.LOGGING_DIR] == "/the/users"


@pytest.mark.slow
def test_heldout_loss_is_the_mean_over_its_tokens(recipe):
    """Against plain torch over the held-out rows at once: no mean of batch means, though lengths differ."""
    from transformers import AutoModelForCausalLM

    from posttrain.data.collate import Collator
    from posttrain.data.prepare import HeldoutRows, build
    from posttrain.data.template import load_text

    overrides = [
        "evaluate.heldout={share: 0.25, every_steps: 5}",
        "train.per_device_train_batch_size=8",
        "train.learning_rate=1e-9",
    ]
    run = go(recipe, *overrides)
    loaded = load_stage(recipe, overrides, "sft")
    tokenizer, _ = load_text(loaded.model, loaded.data.template, loaded.model.init)
    prepared = build(loaded.data, loaded.loss, tokenizer, loaded.evaluate.heldout, seed=loaded.train.seed)
    rows = HeldoutRows(prepared)
    assert len(rows) == 12
    batch = Collator(tokenizer.pad_token_id, False)([rows[i] for i in range(len(rows))])
    model = AutoModelForCausalLM.from_pretrained(loaded.model.init)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert metrics(run, "heldout")[-1]["loss"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.slow
def test_a_finished_run_is_left_alone_and_another_recipe_is_refused(recipe):
    run = go(recipe)
    stamp = (run / "checkpoints" / "step-000005" / "model.safetensors").stat().st_mtime_ns
    go(recipe)
    assert (run / "checkpoints" / "step-000005" / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(RequestError, match=r"train.learning_rate: 0.5 -> 0.25"):
        go(recipe, "train.learning_rate=0.25")


@pytest.mark.slow
def test_divergence_stops_before_the_weights_are_lost(recipe):
    with pytest.raises(WorkError, match="stopped before step"):
        go(recipe, "train.learning_rate=1e3", "checkpoints.save_steps=1", "train.max_steps=20")
    run = recipe.parent / "case"
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    for checkpoint in ckpt.all_complete(run / "checkpoints"):
        assert checkpoint.step < 20


@pytest.mark.slow
def test_skipped_steps_leave_weights_and_are_counted(recipe, monkeypatch):
    """Every second loss is made NaN: those steps change nothing and are counted; the run ends."""
    from posttrain.sft import SftTrainer

    real = SftTrainer.compute_loss

    def poisoned(self, model, inputs, *args, **kwargs):
        loss = real(self, model, inputs, *args, **kwargs)
        return loss * float("nan") if model.training and self.state.global_step % 2 else loss

    monkeypatch.setattr(SftTrainer, "compute_loss", poisoned)
    run = go(
        recipe,
        "guard.on_nan=skip",
        "checkpoints.save_steps=1",
        "checkpoints.keep_last=null",
        "train.optim=adamw_torch",
        "train.learning_rate=1e-3",
        "train.per_device_train_batch_size=8",
    )
    from safetensors.torch import load_file

    steps = [load_file(c.path / "model.safetensors") for c in ckpt.all_complete(run / "checkpoints")]
    moved = [max(float((a[k] - b[k]).abs().max()) for k in a) for a, b in zip(steps, steps[1:], strict=False)]
    assert [m > 0 for m in moved] == [False, True, False, True]  # steps 2 and 4 were skipped
    assert metrics(run)[-1]["skipped_steps"] == 2


@pytest.mark.slow
def test_scoring_is_called_for_every_checkpoint_and_may_fail(recipe):
    seen = []

    def factory(loaded, run, template):
        def score(path: Path, step: int) -> None:
            assert ckpt.is_complete(path)
            seen.append(step)
            if step == 2:
                raise RuntimeError("evaluation broke")

        return score

    run = go(recipe, "checkpoints.save_steps=2", "checkpoints.keep_last=1", score=factory)
    assert list(dict.fromkeys(seen)) == [0, 2, 4, 5]
    assert [c.step for c in ckpt.all_complete(run / "checkpoints")] == [5]


@pytest.mark.slow
def test_lora_trains_adapters_and_exports_merged(recipe, tmp_path):
    from transformers import AutoModelForCausalLM

    from posttrain.commands.export import export

    run = go(
        recipe,
        "model.lora={r: 4, alpha: 8}",
        "train.optim=adamw_torch",
        "train.learning_rate=1e-2",
        "train.activation_checkpointing=true",
    )
    checkpoint = run / "checkpoints" / "step-000005"
    assert (checkpoint / "adapter_model.safetensors").is_file()
    assert metrics(run)[-1]["loss"] < metrics(run)[0]["loss"]
    ids = torch.arange(10, 30)[None]
    with_adapter = AutoModelForCausalLM.from_pretrained(checkpoint).eval()(input_ids=ids).logits
    out = tmp_path / "merged"
    export(str(run), out)
    assert not (out / "adapter_config.json").exists()
    merged = AutoModelForCausalLM.from_pretrained(out).eval()(input_ids=ids).logits
    assert torch.allclose(with_adapter, merged, atol=1e-4)
    with pytest.raises(RequestError, match="exists already"):
        export(str(run), out)


@pytest.mark.parametrize(
    ("lora", "sentence"),
    [
        ("target_modules: [layers]", "model.lora.target_modules: Target module"),
        ("options: {trainable_token_indices: [1000000]}", "model.lora: index"),
    ],
)
def test_what_peft_refuses_is_a_request(recipe, tmp_path, lora, sentence):
    with pytest.raises(RequestError, match=f"^{sentence}") as error:
        go(recipe, f"model.lora={{r: 4, {lora}}}")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("run.json"))


def test_lora_cannot_add_tokens(recipe):
    with pytest.raises(RequestError, match="new to the model, which LoRA cannot add"):
        go(recipe, "model.lora={r: 4}", "model.add_tokens=['<think>']")
    assert not (recipe.parent / "case" / "run.json").exists()


@pytest.mark.slow
def test_lora_with_a_fully_trained_head(recipe):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    run = go(
        recipe,
        "model.lora={r: 4, modules_to_save: [lm_head]}",
        "train.optim=adamw_torch",
        "train.learning_rate=1e-2",
        "checkpoints.save_steps=1",
        "checkpoints.keep_last=null",
    )
    first, last = (run / "checkpoints" / f"step-00000{s}" for s in (1, 5))
    heads = [load_file(c / "adapter_model.safetensors") for c in (first, last)]
    (key,) = [k for k in heads[0] if "lm_head" in k]
    assert not torch.equal(heads[0][key], heads[1][key])
    loaded = AutoModelForCausalLM.from_pretrained(last)
    assert torch.allclose(loaded.get_output_embeddings().weight, heads[1][key])


@pytest.mark.slow
def test_lora_on_the_head(recipe):
    """It trains, and stands in the checkpoint where `from_pretrained` finds it."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    run = go(
        recipe,
        "model.lora={r: 4, target_modules: [q_proj, lm_head]}",
        "train.optim=adamw_torch",
        "train.learning_rate=1e-2",
    )
    saved = load_file(run / "checkpoints" / "step-000005" / "adapter_model.safetensors")
    (key,) = [k for k in saved if "lm_head.lora_B" in k]
    assert saved[key].abs().max() > 0
    loaded = AutoModelForCausalLM.from_pretrained(run / "checkpoints" / "step-000005")
    assert torch.equal(loaded.get_output_embeddings().lora_B.default.weight, saved[key])
    assert metrics(run)[-1]["loss"] < metrics(run)[0]["loss"]


@pytest.mark.slow
def test_what_is_left_out_is_logged(recipe):
    """The weight of `dft` is p, about 1/260 for a model that knows nothing: some tokens are above 0.004, some
    below."""
    run = go(
        recipe,
        "loss.name=dft",
        "loss.segment=token",
        "loss.skip_below=0.004",
        "train.max_steps=2",
        "loss.chunk_rows=16",
    )
    assert 0 < metrics(run)[0]["skipped_rows"] < 1
    plain = go(recipe, "name=plain", "loss.z_loss=0.1", "train.max_steps=1")
    assert "skipped_rows" not in metrics(plain)[0]
    assert metrics(plain)[0]["loss"] > metrics(plain)[0]["nll"] + 1


def test_a_backend_that_is_not_here_is_refused_before_the_data_is_read(recipe, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RequestError, match="loss.backend = triton needs a GPU"):
        go(recipe, "loss.backend=triton", "data.sources.0.path=nowhere.jsonl")


@pytest.mark.slow
def test_added_tokens_grow_the_vocabulary(recipe):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = go(recipe, "model.add_tokens=['<think>', '</think>']", "train.max_steps=1")
    checkpoint = run / "checkpoints" / "step-000001"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert len(tokenizer("<think>", add_special_tokens=False)["input_ids"]) == 1
    assert AutoModelForCausalLM.from_pretrained(checkpoint).get_input_embeddings().weight.shape[0] == len(
        tokenizer
    )


@pytest.mark.slow
def test_bfloat16_autocast_runs(recipe):
    run = go(recipe, "train.bf16=true", "train.learning_rate=0.1")
    assert metrics(run)[-1]["loss"] < metrics(run)[0]["loss"]


@pytest.mark.slow
def test_a_full_disk_is_a_sentence_and_leaves_no_half_checkpoint(recipe, tmp_path, environment):
    import sys

    small = tmp_path / "small"
    small.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", small]).returncode
    ):
        pytest.skip("a small tmpfs cannot be mounted here")
    try:
        command = [sys.executable, "-m", "posttrain.sft", str(recipe), f"output_dir={small}"]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=200
        )
        assert done.returncode == 1, done.stderr[-3000:]
        assert "error: " in done.stderr and "could not be written" in done.stderr
        assert not list((small / "case" / "checkpoints").glob("*"))
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.init=./nowhere"], "no such run or path"),
        (["data.sources.0.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["data.max_length=100000"], "above the 512 positions"),
        (["train.per_device_train_batch_size=8", "data.max_length=8"], "max_length"),
        (["evaluate.tasks=[{name: gsm8q}]"], "gsm8q"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(recipe, overrides, expected):
    with pytest.raises(RequestError) as caught:
        go(recipe, *overrides)
    assert expected in str(caught.value)
    assert not (recipe.parent / "case" / "run.json").exists()


def test_a_broken_line_is_named(recipe, rows_file, tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text(rows_file.read_text().splitlines()[0] + "\n{oops\n")
    with pytest.raises(RequestError, match=r"broken.jsonl:2"):
        go(recipe, f"data.sources.0.path={broken}")
