"""Export, chat and eval of adapters from elsewhere; exports that are refused leave nothing behind."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain.models import adapters, exporting

TASK = ("--task", "arithmetic", "options.digits=1", "options.train_size=10", "options.test_size=20")


def lora(folder: Path, base: Path, *targets: str) -> Path:
    """A random adapter as peft saves it: no tokenizer, no run."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=list(targets))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


def nothing_left(folder: Path) -> bool:
    return not [path for path in folder.iterdir() if "out" in path.name]


@pytest.mark.slow
def test_an_adapter_from_elsewhere(call, tied, tmp_path, monkeypatch):
    """A folder of peft, and an adapter on it: exported, talked to and scored as one model."""
    monkeypatch.chdir(tmp_path)
    first = lora(tmp_path / "first", tied, "q_proj", "lm_head")
    assert call("export", first, tmp_path / "plain").code == 0
    lora(tmp_path / "second", tmp_path / "plain", "v_proj")
    config = tmp_path / "second" / "adapter_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"base_model_name_or_path": str(first)}))
    assert call("export", "second", "out").code == 0
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [256, 259], "<eos>, and <|im_end|> of the template, which no file named"
    chats, scores = [], []
    for place in ("second", "out"):
        said = call("chat", place, "--max-new-tokens", "8", "--temperature", "0", stdin="Hello\n")
        assert said.code == 0, said
        chats.append(said.out)
        scored = call("eval", place, *TASK, "--json")
        assert scored.code == 0, scored
        scores.append({row["metric"]: row["value"] for row in json.loads(scored.out)})
    assert chats[0] == chats[1]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_an_export_that_is_not_the_checkpoint(call, tied, tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, "_untie", lambda model: None)
    place = lora(tmp_path / "adapter", tied, "lm_head")
    call("export", place, tmp_path / "out").refuses("a logit differs by", "above the bound", code=1)
    assert nothing_left(tmp_path)


def test_a_quantised_base(call, tiny, tmp_path):
    base = Path(shutil.copytree(tiny, tmp_path / "base"))
    place = lora(tmp_path / "adapter", base, "q_proj")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    call("export", place, tmp_path / "out").refuses("cannot be merged into the quantised weights", str(base))
    assert nothing_left(tmp_path)


CODE = """\
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class Own(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_a_model_with_code_of_its_own(call, tiny, tmp_path):
    """Refused without a question: `transformers` asks at a terminal, and stock loading would not do it."""
    place = Path(shutil.copytree(tiny, tmp_path / "own"))
    (place / "own.py").write_text(CODE)
    config = json.loads((place / "config.json").read_text()) | {"model_type": "own"}
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    (place / "config.json").write_text(json.dumps(config | {"auto_map": names}))
    answer = call("export", place, tmp_path / "out", stdin="y\n")
    answer.refuses("cannot be loaded", "contains custom code")
    assert "[y/N]" not in answer.out and nothing_left(tmp_path)


def test_a_signal_leaves_nothing_behind(call, tiny, tmp_path, monkeypatch):
    """SIGTERM, as a scheduler sends it, and Ctrl-C, while the model is written."""
    for number in (signal.SIGTERM, signal.SIGINT):
        monkeypatch.setattr(exporting, "write_plain", lambda *_, n=number: signal.raise_signal(n))
        call("export", tiny, tmp_path / "out").refuses("interrupted", "the same command starts over", code=1)
        assert nothing_left(tmp_path)


def test_places_that_belong_to_a_model_or_a_run(call, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    step = Path(shutil.copytree(tiny, tmp_path / "run" / "checkpoints" / "step-000001"))
    (step / "COMPLETE").touch()
    (tmp_path / "run" / "run.json").write_text("{}")
    call("export", tiny, step / "out").refuses(f"is inside {step}, the folder of a model")
    call("export", tiny, step.parent / "out").refuses(
        f"is inside {step.parent}, the folder of the checkpoints"
    )
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    call("export", model, model / "a" / "out").refuses(f"is inside {model}, the folder of a model")
    assert call("export", tiny, "~/out").code == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_weights_that_are_not_numbers(call, tiny, tmp_path):
    place = Path(shutil.copytree(tiny, tmp_path / "nan"))
    weights = load_file(place / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    call("export", place, tmp_path / "out").refuses(f"{place} gives NaN", "NaN in model.norm.weight")
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04 cut"])
def test_damage_of_pickled_weights_is_one_line(call, tiny, tmp_path, content):
    place = lora(tmp_path / "adapter", tiny, "q_proj")
    (place / "adapter_model.safetensors").unlink()
    (place / "adapter_model.bin").write_bytes(content)
    answer = call("export", place, tmp_path / "out")
    answer.refuses(str(place))
    (line,) = [x for x in answer.err.splitlines() if "error: " in x]
    assert "()" not in line and answer.err.strip().endswith(line)
