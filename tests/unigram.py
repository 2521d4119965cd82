"""Models whose every token is drawn from one distribution, so that success rates are known; and recipes on
them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

DIGITS = {"1": 0.4, "2": 0.2, "\n": 0.2}
"""Of a token; the rest, 0.2, is the end of turn."""


def unigram_model(folder: Path, weights: dict[str, float], style: str = "chatml") -> Path:
    """A Llama that draws each token with its weight and otherwise ends its turn, whatever precedes.

    The residual stream is all ones: the embeddings are, and attention and MLP add nothing. So is its RMS
    norm, and the head's row of a token sums to its log-probability.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from posttrain.data.template import load_text
    from posttrain.recipe.schema import Model

    tokenizer, template = load_text(Model(tokenizer="builtin:bytes"), style, None)
    shape = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape))
    end = tokenizer(template.end_of_turn, add_special_tokens=False)["input_ids"]
    assert len(end) == 1
    head = torch.full((len(tokenizer),), -30.0)
    head[end[0]] = math.log(1 - sum(weights.values()))
    for text, weight in weights.items():
        (token,) = tokenizer(text, add_special_tokens=False)["input_ids"]
        head[token] = math.log(weight)
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1.0)
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.copy_(head[:, None].expand(-1, 8) / 8)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    return unigram_model(tmp_path_factory.mktemp("digits") / "model", DIGITS)


@pytest.fixture
def write_recipe(tmp_path, digits):
    """`write_recipe(stage, rows, **sections)`: a recipe on `digits`; a completion is right if it contains no
    "2".
    """

    def write(stage: str, rows: list[dict], name: str = "made", **sections) -> Path:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        values = {
            "stage": stage,
            "name": name,
            "output_dir": str(tmp_path / "runs"),
            "model": {"init": str(digits)},
            "data": {
                "template": "chatml",
                "max_length": 160,
                "cache_dir": str(tmp_path / "cache"),
                "sources": [{"name": "rows", "path": str(file)}],
            },
            "rewards": [{"name": "tests.rollouts.verdicts:without", "label": "without"}],
            "rollout": {"num_generations": 8, "max_new_tokens": 24, "batch_size": 32},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values | sections))
        return path

    return write


def prompts(count: int) -> list[dict]:
    """Rows that ask for no "2"."""
    return [{"prompt": f"Count {i}.", "answer": "2", "note": [i, None]} for i in range(count)]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(path: Path, *overrides: str) -> Path:
    """Runs the recipe's stage here; its run directory."""
    from posttrain import pairs, pass_rate
    from posttrain.recipe import load

    recipe = load(path, list(overrides))
    return (pairs if recipe.stage == "pairs" else pass_rate).sample(recipe).path


def rollouts(run: Path) -> list[dict]:
    return [row for file in sorted(run.glob("rollouts/*.jsonl")) for row in read(file)]


def content(run: Path) -> dict[str, str]:
    """What a run has made."""
    files = [*run.glob("*.jsonl"), *run.glob("rollouts/*"), *run.glob("parts/*"), *run.glob("pair*.json")]
    found = {}
    for file in files:
        text = file.read_text()
        if file.parent.name == "rollouts":  # all but how long the checks took
            rows = read(file)
            for row in rows:
                for part in row["components"].values():
                    part.pop("ms")
            text = json.dumps(rows)
        found[str(file.relative_to(run))] = text
    return found
