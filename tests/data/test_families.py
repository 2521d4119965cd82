"""What of the chat templates of published models is trained: the page says it, and nothing is wrong."""

from __future__ import annotations

import re

import pytest
import trl

from tests.data.families import CASES, NAMES, OURS, cell, verdict
from tests.data.templates_page import PAGE, cells, table


def test_there_are_many_families():
    assert len(NAMES) >= 30


@pytest.mark.slow
def test_the_page_is_true():
    """Each cell of `posttrain/data/TEMPLATES.md`, for the templates that the installed TRL has."""
    text = PAGE.read_text(encoding="utf-8")
    shown = cells(text)
    assert len(shown) >= 25
    for name in {*OURS, *NAMES} & shown.keys():
        assert shown[name] == [cell(name, case)[0] for case in CASES], name
    assert "wrong" not in table(shown)
    if re.search(r"TRL ([\d.]+)", text)[1] == trl.__version__:
        assert shown.keys() == {*OURS, *NAMES}


@pytest.mark.parametrize(
    ("name", "case", "said"),
    [
        ("llama3_1", "tools", '{"name": "add", "parameters": {"a": 2}}<|eot_id|>It is 4.<|eot_id|>'),
        ("qwen2_5", "turns", "It is 4.<|im_end|>6.<|im_end|>"),
        ("qwen3", "reasoning", "<think>\nTwo and two.\n</think>\n\nIt is 4.<|im_end|>"),
        ("qwen3_5_think", "reasoning", "Two and two.\n</think>\n\nIt is 4.<|im_end|>"),
        ("deepseek_r1_distill", "thought", "Two and two.\n</think>\n\nIt is 4.<｜end▁of▁sentence｜>"),
        (
            "gptoss",
            "tools",
            ' to=functions.add<|channel|>commentary json<|message|>{"a": 2}<|call|>'
            "<|channel|>final<|message|>It is 4.<|return|>",
        ),
    ],
)
def test_what_is_trained(name, case, said):
    assert verdict(name, case)[1] == said


def test_a_refusal_says_the_way_round():
    assert "set data.train_on: each or last" in verdict("qwen3", "turns")[1]
    assert "enable_thinking: false" in verdict("nemotron_3_nano", "chat")[1]
    assert "does not render 'tools'" in verdict("gemma3", "tools")[1]
