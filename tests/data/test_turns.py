"""What a prompt opens of a reply, so that the reply is trained as it is sampled behind it."""

from __future__ import annotations

import pytest

from posttrain.data.turns import opened_by
from tests.data.families import CASES, MORE, STAND_IN, rows_of, tokenizer_of, verdict


def test_a_thought_behind_a_mark_that_begins_like_the_one_that_closes_it():
    """DeepSeek-V3.1's prompt ends with <think>, its conversations have </think> there: they share `<`."""
    name, asks = f"{STAND_IN}deepseek_v3_1", "<｜User｜>2+2?<｜Assistant｜><think>"
    again = {
        "messages": [
            *CASES["thought"]["messages"],
            MORE[0],
            {"role": "assistant", "content": "<think>Two.</think>It is 4."},
        ]
    }
    [(_, row)] = rows_of(name, CASES["thought"], options={"thinking": True})
    tokenizer = tokenizer_of(name)
    said = "\nTwo and two.\n</think>\n\nIt is 4.<｜end▁of▁sentence｜>"
    assert tokenizer.decode(row.input_ids) == f"<｜begin▁of▁sentence｜>{asks}{said}"
    assert verdict(name, "thought", thinking=True) == ("sampled", said)
    assert verdict(name, again, "each", thinking=True)[1] == (
        f"{said} | Two.</think>It is 4.<｜end▁of▁sentence｜>"
    )
    assert verdict(name, "chat", thinking=True)[1].startswith("no_thought: a prompt of template")


@pytest.mark.parametrize(
    ("asked", "prompt", "bare", "opened"),
    [
        ("2+2?", "2+2? A:<think>\n", "2+2? A:</think>", "<think>\n"),
        ("2+2?", "2+2? A:<think>\n", "2+2? A:<think>\n\n</think>\n\n", "<think>\n"),
        ("2+2?", "2+2? A:[THINK]", "2+2? A:[/THINK]", "[THINK]"),
        ("2+2?", "2+2? A:[THINK]", "2+2? A:", "[THINK]"),
        ("2+2?", "2+2? A:", "2+2? A:", ""),
        ("2 <", "2 <", "2 < 4", ""),
        ("Say <think>", "Say <think>", "Say <think> 4", ""),
        ("Say <think>", "Say <think> A:<think>", "Say <think> A:", "<think>"),
    ],
)
def test_what_a_prompt_opens(asked, prompt, bare, opened):
    def render(messages, asks):
        assert not asks and messages[-1]["role"] == "assistant"
        return bare + messages[-1]["content"]

    assert opened_by(render, [{"role": "user", "content": asked}], prompt) == opened
