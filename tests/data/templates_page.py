"""Writes posttrain/data/TEMPLATES.md: `python -m tests.data.templates_page`."""

from __future__ import annotations

from pathlib import Path

import trl

from tests.data.families import CASES, NAMES, OURS, cell

PAGE = Path(__file__).resolve().parents[2] / "posttrain" / "data" / "TEMPLATES.md"
OPENING = """\
# Chat templates of published models

What is trained under the four templates of this package, and with `data.template: tokenizer` under those that
TRL {version} ships, tried on a tokenizer of bytes with the marks of the template as tokens; written by
`python -m tests.data.templates_page`, and held by `tests/data/test_families.py`. [SHAPES.md](SHAPES.md) has
the rendered text of rows of many shapes.

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


def table(found: dict[str, list[str]]) -> str:
    lines = [f"| template | {' | '.join(CASES)} |", "|---" * (len(CASES) + 1) + "|"]
    names = sorted(found, key=lambda name: (name not in OURS, name))
    lines += [f"| {name} | {' | '.join(found[name])} |" for name in names]
    return "\n".join(lines) + "\n"


def cells(text: str) -> dict[str, list[str]]:
    """Template -> its cells, of a page."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows if len(row) == len(CASES) + 1 and row[0] != "template"}


if __name__ == "__main__":
    found = {name: [cell(name, case)[0] for case in CASES] for name in [*OURS, *NAMES]}
    PAGE.write_text(OPENING.format(version=trl.__version__) + table(found), encoding="utf-8")
