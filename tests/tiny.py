"""A tiny trained-looking model on disk, rows of uneven length, and a launcher for multi-process cases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from posttrain.data.tokenizers import load_tokenizer

RECIPE = """\
stage: sft
name: case
output_dir: {out}
model: {{init: {model}}}
data:
  template: chatml
  max_length: 256
  cache_dir: {out}/cache
  sources:
    - {{name: rows, path: {rows}}}
train:
  learning_rate: 0.5
  lr_scheduler_type: constant
  optim: sgd
  max_grad_norm: 0
  global_batch_size: 8
  max_steps: 5
  logging_steps: 1
  report_to: []
"""


def tiny_model(folder: Path, tie: bool = False, kind: str = "llama", **options) -> Path:
    """A two-layer model over bytes, saved with its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from posttrain.data.template import load_template
    from posttrain.data.tokenizers import load_tokenizer

    tokenizer = load_tokenizer("builtin:bytes")
    load_template("chatml", tokenizer).apply_to(tokenizer)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": tie,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(shape | options)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, count: int = 48) -> Path:
    """Prompt/completion rows whose completions differ in length by a factor of ten."""
    with path.open("w") as file:
        for i in range(count):
            completion = "\n".join(f"step {j} of {i}: {i * j}" for j in range(1 + i % 5)) + f"\n#### {i * 7}"
            file.write(
                json.dumps({"prompt": f"Count {i}.", "completion": completion, "answer": str(i * 7)}) + "\n"
            )
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tied(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tied") / "model", tie=True)


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture
def recipe(tmp_path, tiny, rows_file) -> Path:
    """A recipe file for the tiny model; runs go below tmp_path."""
    path = tmp_path / "case.yaml"
    path.write_text(RECIPE.format(out=tmp_path, model=tiny, rows=rows_file))
    return path


@pytest.fixture(scope="session")
def environment(root) -> dict[str, str]:
    """Environment of a child process that trains."""
    return child_environment(root)


def child_environment(root: Path) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}",
        "CI": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "DS_SKIP_CUDA_CHECK": "1",
        "HF_HUB_OFFLINE": "1",
    }


def on_cpu(config: Path, folder: Path) -> Path:
    """The accelerate config as it is in launch/, but for CPU processes.

    Under ZeRO-3 every parameter is really sharded: DeepSpeed keeps those below a threshold (10^5 elements,
    more than a tiny model has) whole on every rank, and a test without this would not gather anything.
    """
    values = yaml.safe_load(config.read_text()) | {"use_cpu": True}
    if values.get("deepspeed_config", {}).get("zero_stage") == 3:
        file = folder / "deepspeed.json"
        auto = (
            "train_batch_size",
            "train_micro_batch_size_per_gpu",
            "gradient_accumulation_steps",
            "gradient_clipping",
        )
        zero = {
            "stage": 3,
            "stage3_param_persistence_threshold": 0,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
        file.write_text(json.dumps({"zero_optimization": zero, **dict.fromkeys(auto, "auto")}))
        values["deepspeed_config"] = {"deepspeed_config_file": str(file), "zero3_init_flag": True}
        values.pop("mixed_precision")
    path = folder / config.name
    path.write_text(yaml.safe_dump(values))
    return path


def accelerate(
    config: Path,
    *command: str,
    environment: dict[str, str],
    cwd: Path,
    processes: int = 2,
    timeout: float = 300,
) -> subprocess.CompletedProcess:
    """`accelerate launch` with a config, at any free port; what it says is kept."""
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    launcher += ["--num_processes", str(processes), "--config_file", str(config), "--main_process_port", "0"]
    return subprocess.run(
        [*launcher, *command], env=environment, capture_output=True, text=True, timeout=timeout, cwd=cwd
    )


@pytest.fixture(scope="session")
def launch(root, environment, tmp_path_factory):
    """`launch(cases, config=None)`: results by case name; config is a file of launch/ or None for one
    process."""
    tmp_path = tmp_path_factory.mktemp("launch")

    def run(
        cases: list[dict], config: str | None = None, processes: int = 2, timeout: float = 300
    ) -> dict[str, dict]:
        asked, out = tmp_path / "cases.json", tmp_path / "results.json"
        asked.write_text(json.dumps(cases))
        out.unlink(missing_ok=True)
        script = [str(root / "tests" / "training" / "cases.py"), str(asked), str(out)]
        place = {"timeout": timeout, "cwd": tmp_path}
        if config is None:
            done = subprocess.run(
                [sys.executable, *script], env=environment, capture_output=True, text=True, **place
            )
        else:
            file = on_cpu(root / "launch" / config, tmp_path)
            done = accelerate(file, *script, environment=environment, processes=processes, **place)
        assert out.exists(), done.stderr[-4000:]
        results = json.loads(out.read_text())
        for name, result in results.items():
            assert "error" not in result, f"{name}: {result}\n{done.stderr[-4000:]}"
        return results

    return run


def build_model(kind: str, vocabulary: int, positions: int = 64, seed: int = 0):
    """A random causal model of two layers; weights are scaled up so that tokens differ in probability."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": positions,
    }
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": positions}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = AutoConfig.for_model(kind, vocab_size=vocabulary, **sizes, **ends)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.data.normal_(0, 0.3)
    return model


@pytest.fixture(scope="session")
def digits():
    return load_tokenizer("builtin:digits")


@pytest.fixture(scope="session")
def llama(digits):
    return build_model("llama", len(digits))
