"""Prompts with tools and options, a template that renders them, and a model that calls with a known chance.

A token is "1" with .4, "2" with .2, the end of a call with .2, the end of a turn with .2. `CALLS` has
an end of calls of its own, as Llama 3.1 has `<|eom_id|>`; `THINKS` opens a thought that its conversations
leave out, as DeepSeek R1's does.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.data.template import load_text
from posttrain.generation.local import TransformersGenerator
from posttrain.recipe.schema import Model
from tests.unigram import unigram_model

TURNS = r"""
{#- tokens: <|im_start|> <|im_end|> <|call|> -#}
{%- if tools %}
    {{- '<|im_start|>tools\n' + tools | map(attribute='function.name') | join(',') + '<|im_end|>\n' }}
{%- endif %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\n' + KEPT }}
    {%- for call in m.tool_calls or [] %}
        {{- '@' + call.function.name + call.function.arguments | tojson }}
    {%- endfor %}
    {{- '<|call|>\n' if m.tool_calls else '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' + OPENED }}
{%- endif %}
""".lstrip()
MODE = "('[' ~ mode ~ ']' if mode is defined else '')"
CALLS = TURNS.replace("KEPT", f"({MODE} if m.role == 'assistant' else '') + m.content").replace(
    "OPENED", MODE
)
THINKS = TURNS.replace("KEPT", "m.content.split('</think>')[-1]").replace("OPENED", r"'<think>\n'")
TOOL = {"name": "add", "parameters": {"type": "object"}}
FULL = {"type": "function", "function": TOOL}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2}}}],
}
ASKED = {"role": "user", "content": "No 2."}
ANSWERED = [ASKED, CALL, {"role": "tool", "content": "4"}]
SHORT = {"mode": "short"}
ROWS = [
    {"prompt": "Count.", "answer": "2"},
    {"prompt": "Count.", "answer": "2", "chat_template_kwargs": SHORT},
    {"prompt": "Call.", "answer": "2", "tools": [TOOL]},
    {"messages": ANSWERED, "answer": "2", "tools": '[{"name": "add"}]', "chat_template_kwargs": SHORT},
]
START, REPLY = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
TEXTS = [
    f"{START}Count.{REPLY}",
    f"{START}Count.{REPLY}[short]",
    f"<|im_start|>tools\nadd<|im_end|>\n{START}Call.{REPLY}",
    f"<|im_start|>tools\nadd<|im_end|>\n{START}No 2.<|im_end|>\n<|im_start|>assistant\n[short]@add"
    '{"a": 2}<|call|>\n<|im_start|>tool\n4' + REPLY + "[short]",
]
"""What is sampled from for each of `ROWS`, worked out by hand."""


def write_template(folder: Path, source: str = CALLS) -> str:
    """The path of a file with the template."""
    path = folder / "calls.jinja"
    path.write_text(source)
    return str(path)


def text_of(template: str):
    """(tokenizer, template): one token for each byte and for each of the template's."""
    return load_text(Model(tokenizer="builtin:bytes"), template, None)


class Watched(TransformersGenerator):
    """Keeps the prompts that it is asked and what it answers."""

    def generate(self, prompts, n, *more, **options):
        found = super().generate(prompts, n, *more, **options)
        self.kept += [(prompts[each.prompt_index], each) for each in found]
        return found


def watch(module, monkeypatch) -> list:
    """(prompt, completion) of everything that the local sampler of `module` samples from now on."""
    Watched.kept = []
    monkeypatch.setattr(module, "TransformersGenerator", Watched)
    return Watched.kept


@pytest.fixture(scope="session")
def calling(tmp_path_factory) -> Path:
    """The model, with the template `calls.jinja` beside its files."""
    folder = tmp_path_factory.mktemp("calling")
    weights = {"1": 0.4, "2": 0.2, "<|call|>": 0.2}
    return unigram_model(folder / "model", weights, write_template(folder)).parent
