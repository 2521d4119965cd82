"""Writes posttrain/data/TEMPLATES.md: `python -m tests.data.templates_page`."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import trl

from tests.data.families import CASES, NAMES, OURS, STAND_IN, STAND_INS, family
from tests.data.ways import NOT_AS_IT_IS, WAYS, cell, way_round

PAGE = Path(__file__).resolve().parents[2] / "posttrain" / "data" / "TEMPLATES.md"
OPENING = """\
# Chat templates of published models

What is trained under the four templates of this package, and with `data.template: tokenizer` under those that
TRL {version} ships, tried on a tokenizer of bytes with the marks of the template as tokens; written by
`python -m tests.data.templates_page`, and held by `tests/data/test_families.py`. [SHAPES.md](SHAPES.md) has
the rendered text of rows of many shapes. Below are [stand-ins](#stand-ins-written-from-documentation) for
models whose template is in no package, and [the way round](#the-way-round) for rows that do not train as they
are.

| column | a row |
|---|---|
| chat, system, turns | one reply; with a system message; two replies, both trained |
| tools | a call, what the tool returns, a reply; `tools` beside them |
| reasoning, thought | a reply with `reasoning_content`; with `<think>...</think>` in its text |

| cell | meaning |
|---|---|
| marks | what is trained is token for token what TRL's variant of the template marks with \
`{{% generation %}}` |
| within | as marks, but for what TRL also marks and no model samples: the line break behind the end of \
turn, or what the prompt for a reply already contains |
| right | token for token the template's own rendering; there are no marks to compare with |
| sampled | the template leaves out the thought: trained are the prompt and the reply as they are sampled |
| each: ... | `data.train_on: each`: the template changes earlier turns, so that each reply is a row of its \
own |
| thinking off: ... | `data.template_options: {{enable_thinking: false}}`: otherwise a prompt opens a \
thought that the row does not have |
| refused | before training, with a sentence that says what the template does not render, or the way round |

A reply without a thought behind a prompt that opens one (`<think>`) is dropped as `no_thought`, whatever the
template makes of it: an empty thought that is trained would teach the model not to think. `qwen3` opens none,
and writes an empty thought before the reply; that is how Qwen 3 answers without thinking, with
`enable_thinking: false` as a part of the prompt. It is kept as the template has it: without that option it is
trained, with it, it is the prompt's.

"""


STAND_IN_OPENING = """
## Stand-ins, written from documentation

No package has the templates of these models. Each line is of a stand-in in `tests/data/stand_ins/`, written
for this table from the page that it links to: it has the marks and the order of the documented form, and
words of its own around tools. A model's own template may differ, so **nothing here says what is trained under
it**; `posttrain check --rows 2` shows that for your tokenizer. *As rendered* means token for token the
stand-in's own rendering.

"""
STAND_IN_END = """
What is peculiar to one shows in longer rows. `mistral_v3_tekken` writes the system message and the tools
before the last user message, and `command_r_plus` a line behind it where there are tools: with them, a
conversation of several user turns needs `data.train_on: each`. `mistral_v3_tekken`, `magistral` and `llama2`
refuse turns that do not alternate, the first also ids of calls that have not nine characters. `phi4`, `olmo2`
and `tulu3` write no turn of a tool, so such a row is refused. `granite3` and `smollm3` write today's date.
"""
WAYS_OPENING = """
## The way round

For each row above that is refused, or that needs a setting, the first of these that trains it. Each was
tried: what is trained has every reply, call and thought of the row, but where it says otherwise. To a
tokenizer without a token `<think>`, a thought in the text is text like any other. Stand-ins are in italics.

| a row | under | what to write |
|---|---|---|
"""


def table(found: dict[str, list[str]]) -> str:
    lines = [f"| template | {' | '.join(CASES)} |", "|---" * (len(CASES) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(row)} |" for name, row in found.items()]
    return "\n".join(lines) + "\n"


def rows(names: list[str]) -> dict[str, list[str]]:
    """Template -> its cells, as the page names it; of a stand-in with a link to its documentation."""
    return {_shown(name): [cell(name, case)[0] for case in CASES] for name in names}


def _shown(name: str) -> str:
    bare = name.removeprefix(STAND_IN)
    return name if bare == name else f"[{bare}]({family(name).url})"


def ways_round() -> str:
    """The lines of the last table: cases and templates that have one way round."""
    under = defaultdict(list)
    for name in [*OURS, *NAMES, *STAND_INS]:
        found = defaultdict(list)
        for case in CASES:
            if NOT_AS_IT_IS.match(cell(name, case)[0]):
                found[way_round(name, case)].append(case)
        for said, cases in found.items():
            under[tuple(cases), said].append(
                f"*{name.removeprefix(STAND_IN)}*" if name in STAND_INS else name
            )
    order, said_in = list(CASES), [way.said for way in WAYS]
    lines = sorted(under, key=lambda key: (said_in.index(key[1]), [order.index(case) for case in key[0]]))
    return "".join(f"| {', '.join(key[0])} | {', '.join(under[key])} | {key[1]} |\n" for key in lines)


def page() -> str:
    return (
        OPENING.format(version=trl.__version__)
        + table(rows([*sorted(OURS), *NAMES]))
        + STAND_IN_OPENING
        + table(rows(STAND_INS))
        + STAND_IN_END
        + WAYS_OPENING
        + ways_round()
    )


def cells(text: str) -> dict[str, list[str]]:
    """Template -> its cells, of a page."""
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in found if len(row) == len(CASES) + 1 and row[0] != "template"}


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
