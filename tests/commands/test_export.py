"""Export, chat and eval of adapters from elsewhere; exports that are refused leave nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from posttrain.models import adapters

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
