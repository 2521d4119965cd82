"""Which variables a template reads before it sets them: only these can be set from outside."""

from __future__ import annotations

import pytest

from posttrain.data.rendering import thinking_switch, variables
from tests.data.families import STAND_IN, family


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("{{ a }}{% set a = 1 %}", {"a"}),
        ("{% set a = 1 %}{{ a }}", set()),
        ("{% if x %}{% set a = 1 %}{% endif %}{{ a }}", {"x"}),
        ("{% if x %}{% set a = 1 %}{% else %}{{ a }}{% endif %}", {"a", "x"}),
        ("{% if a is not defined %}{% set a = 1 %}{% endif %}{{ a }}", {"a"}),
        ("{% set a = a or 1 %}{{ a }}", {"a"}),
        ("{% set a %}{{ b }}{% endset %}{{ a }}", {"b"}),
        ("{% for m in messages %}{% if m %}{% set a = 1 %}{% endif %}{{ a }}{% endfor %}", set()),
        ("{% for m in messages %}{% set a = 1 %}{% endfor %}{{ a }}", {"a"}),  # not set behind the loop
        ("{% for a in b if a.c %}{{ a }}{% else %}{{ d }}{% endfor %}", {"b", "d"}),
        ("{% macro f(a) %}{{ a }}{% endmacro %}{{ f(b) }}{{ a }}", {"a", "b"}),
        ("{% generation %}{{ a }}{% endgeneration %}", {"a"}),
        ("{{ messages }}{{ raise_exception('no') }}{{ range(3) }}", set()),
        ("{% if", set()),
    ],
)
def test_what_is_read_before_it_is_set(source, found):
    assert variables(source) == found


@pytest.mark.parametrize(
    ("name", "found", "switch"),
    [
        ("qwen3", {"enable_thinking"}, "enable_thinking"),
        ("deepseekv3", {"bos_token"}, None),
        ("gptoss", {"builtin_tools", "model_identity", "reasoning_effort"}, None),
        (f"{STAND_IN}granite3", {"thinking"}, "thinking"),
        ("lfm2_2_5", {"bos_token", "preserve_thinking"}, None),
    ],
)
def test_published_templates(name, found, switch):
    assert variables(family(name).source) == found
    assert thinking_switch(family(name).source, ()) == switch
    assert thinking_switch(family(name).source, {"enable_thinking", "thinking"}) is None
