"""What `posttrain eval` prints of a task whose temperature the recipe leaves open."""

from __future__ import annotations

import json

import pytest

from posttrain.cli import main
from posttrain.data.template import load_template
from posttrain.data.tokenizers import load_tokenizer
from tests.tiny import build_model


@pytest.mark.slow
def test_a_choice_task_at_two_temperatures(tmp_path, monkeypatch, capsys):
    """The table of its metrics, and one line a temperature."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    tokenizer = load_tokenizer("builtin:bytes")
    load_template("chatml", tokenizer).apply_to(tokenizer)
    tokenizer.save_pretrained("model")
    build_model("llama", len(tokenizer), positions=256).save_pretrained("model")
    row = {"question": "Half of 2?", "options": ["A)1", "B)2"], "correct": "A"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(3)))
    words = ["eval", "model", "--task", "aqua_rat_likelihood", "path=rows.jsonl", "temperatures=[2.0]"]
    assert main([*words, "--out", "out"]) == 0
    said = capsys.readouterr().out
    (head,) = [line for line in said.splitlines() if line.split()[:1] == ["temperature"]]
    measured = ["acc", "acc_norm", "acc_per_char", "acc_uncond", "bits_per_byte", "nll", "valid_mass"]
    assert head.split() == ["temperature", *measured]
    heats = [line.split()[0] for line in said.partition(head)[2].splitlines() if len(line.split()) == 8]
    assert heats == ["1", "2"]
    stored = [json.loads(line) for line in (tmp_path / "out/scores.jsonl").read_text().splitlines()]
    assert len({row["settings"] for row in stored}) == 2 and len(stored) == 14
