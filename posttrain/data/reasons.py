"""Why rows are dropped: every reason with what it means and what to do about it.

The one place in code: refusals (cache.py) and `posttrain prepare` print from it, and a test holds the table
in DROPS.md equal to it. Left out: finding the rows (shapes/, tokenize.py), which raise
`RowError(reason, detail)`, and counting them (make_table.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from posttrain.recipe import schema


@dataclass(frozen=True)
class Reason:
    """One reason, in words. Keys of the recipe stand in backticks, as in DROPS.md."""

    meaning: str
    """What is the matter with the row."""
    remedy: str
    """What to do, as the end of a sentence that begins with "Remedy:"."""


REASONS: dict[str, Reason] = {
    **dict.fromkeys(
        ("no_prompt", "no_completion"),
        Reason(
            "prompt or completion is empty, or no message before the reply says anything",
            "fill it in, or name another column under `data.sources.columns`",
        ),
    ),
    "empty": Reason(
        "no text, or no token that is trained",
        "fill it in, name another column under `data.sources.columns`, or check `data.train_on` and the "
        "flags (`weight`, `train`, `loss`)",
    ),
    "no_assistant_turn": Reason(
        "the conversation has no reply, or does not end in one where it must",
        "remove the row, or end it with an assistant message",
    ),
    **dict.fromkeys(
        ("no_messages", "null_message"),
        Reason(
            "the conversation, a message, or what a message other than a reply says is null",
            "fill it in, or remove the row",
        ),
    ),
    "empty_reply": Reason(
        "a reply says nothing (it may have a thought), or is null",
        "write the reply, or remove the row; where it has other replies, this one may have `weight: 0`",
    ),
    **dict.fromkeys(
        ("two_users", "two_replies"),
        Reason("two messages of one role in a row", "write `roles: join` (or `loose`) on the source"),
    ),
    **dict.fromkeys(
        ("assistant_first", "late_system"),
        Reason(
            "a reply before any question, or a system message that is not the first",
            "write `roles: loose` on the source, or repair the row",
        ),
    ),
    "tool_order": Reason(
        "a tool answers no call, or another one (`tool_call_id`), or a call has no answer",
        "complete the row, or write `roles: loose` on the source",
    ),
    **dict.fromkeys(
        ("bad_call", "bad_tools"),
        Reason(
            "a call or the tools are not JSON, have no name, or are nested deeper than 100 levels",
            "repair the row",
        ),
    ),
    "unreadable": Reason("the row does not fit; only with `on_error: skip`", "repair the row"),
    "no_thought": Reason(
        "a prompt opens a thought, and the reply has none",
        "write the thought into the reply, or, where the template can, turn it off with "
        "`data.template_options`",
    ),
    "bad_text": Reason("an unpaired surrogate", "repair the encoding of the file"),
    "no_p": Reason("the column `p` is empty", "run `posttrain pass-rate`, or remove the row"),
    "no_answer": Reason(
        "the column with the answer, which rewards read, is empty, and the row names no `rewards` of its own",
        "fill it in, remove the row, or, where no reward reads it, name the column under `ignore` on the "
        "source",
    ),
    "no_label": Reason("`label` is empty", "label it true or false"),
    **dict.fromkeys(
        ("no_chosen", "no_rejected"), Reason("that side is empty", "complete the pair, or remove it")
    ),
    "equal_pair": Reason("chosen and rejected are the same", "remove it: it teaches nothing"),
    "prompt_mismatch": Reason(
        "the two sides have different prompts", "give both the same messages before the last reply"
    ),
    "no_rating": Reason(
        "fewer than two replies have a number as rating, a text, and no flag of 0",
        "rate two replies or more with numbers (`4`, not `4/5`), or remove the row",
    ),
    "rating_tie": Reason("all replies have the same rating", "remove it: no side is better"),
    "overlong": Reason(
        "more than `data.max_length` tokens, or no trained token left after the cut",
        "raise `data.max_length`, or set `data.overlong: truncate` (a prompt is never cut)",
    ),
    "too_long_text": Reason(
        "more than `data.max_characters` characters", "raise `data.max_characters`, or split the row"
    ),
    "truncated": Reason(
        "kept, but cut at the end; it counts for `data.max_drop_share`", "raise `data.max_length`"
    ),
    "no_answer_marker": Reason(
        "a trained turn lacks `loss.answer_marker`",
        "correct `loss.answer_marker`, or choose another `loss.segment`",
    ),
    "unknown_text": Reason("the tokenizer has no token for a character", "choose another tokenizer"),
    "mask_mismatch": Reason(
        "the trained tokens do not decode to the reply", "choose another `data.template`"
    ),
    "template_error": Reason(
        "the template refuses the conversation (roles that do not alternate) or changes its text",
        "choose another `data.template`",
    ),
}
KEY = re.compile(r"`(data|loss)\.(\w+)`")


def remedy(reason: str, data: schema.Data, loss: schema.Loss) -> str | None:
    """What to do about `reason`, with the present value of each key that is named; None if it is unknown, as
    one of a table that an older version made may be.
    """
    if reason not in REASONS:
        return None
    sections = {"data": data, "loss": loss}

    def with_value(key: re.Match[str]) -> str:
        value = getattr(sections[key[1]], key[2])
        return f"{key[1]}.{key[2]}" + ("" if value in (None, {}) else f" (now {value!r})")

    return KEY.sub(with_value, REASONS[reason].remedy).replace("`", "")
