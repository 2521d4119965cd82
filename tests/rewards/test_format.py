"""Shapes of completions; the many cases stand in corpora/format.jsonl."""

from __future__ import annotations

import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import RequestError
from posttrain.rewards import bind
from posttrain.rewards.simple.format import format_
from posttrain.types import Example

ROW = Example()
plain = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), min_size=1)
filled = plain.filter(lambda t: t.strip())
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(filled, filled)
def test_any_thought_and_answer_in_tags_is_right(thought, answer):
    text = f"<think>{thought}</think><answer>{answer}</answer>"
    assert format_(text, ROW).value == 1
    assert format_(text[7:], ROW, prefilled=True).value == 1
    assert format_(text + "x", ROW).value == 0
    assert format_(text.replace("</think>", ""), ROW).value == 0


@given(values)
def test_what_json_writes_is_json_and_what_it_lacks_is_not(value):
    text = json.dumps(value)
    assert format_(text, ROW, shape="json").value == 1
    assert format_(f"```json\n{text}\n```", ROW, shape="json").value == 1
    assert format_(text + "}", ROW, shape="json").value == 0


def test_reasons_name_the_defect():
    assert "each once" in format_("<answer>a</answer>", ROW).reason
    assert format_("<think> </think><answer>a</answer>", ROW).reason == "a part is empty"
    assert format_("a <think>b</think><answer>c</answer>", ROW).reason == "text outside the tags"
    assert format_("{", ROW, shape="json").reason.startswith("not valid JSON: ")


def test_a_schema_says_where_the_value_is_wrong():
    pytest.importorskip("jsonschema")
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    verdict = format_('{"n": "1"}', ROW, shape="json", schema=schema)
    assert verdict.value == 0 and verdict.reason == "at $.n: '1' is not of type 'integer'"
    assert format_('{"n": 1}', ROW, shape="json", schema=schema).value == 1
    inside = {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n"}
    assert format_("1", ROW, shape="json", schema=inside).value == 1
    assert format_('"1"', ROW, shape="json", schema=inside).value == 0


def test_bad_schemas_are_refused_when_rows_are_loaded():
    pytest.importorskip("jsonschema")

    def check_row(row=ROW, **options):
        bind("format", options).check_row(row)

    with pytest.raises(RequestError, match="reward 'format': schema is not a JSON Schema: at .*type"):
        check_row(shape="json", schema={"type": "integr"})
    with pytest.raises(RequestError, match=r"'http://x/y' refers to something outside the schema"):
        check_row(shape="json", schema={"anyOf": [{"$ref": "http://x/y"}]})
    with pytest.raises(RequestError, match="needs shape: json"):
        check_row(schema={})
    with pytest.raises(RequestError, match="column 'json_schema' is str, not a JSON Schema"):
        check_row(Example(extra={"json_schema": "{}"}), shape="json")
    with pytest.raises(RequestError, match="column 'json_schema' is not a JSON Schema"):
        check_row(Example(extra={"json_schema": {"required": 5}}), shape="json")
    check_row(Example(extra={"json_schema": {"type": "integer"}}), shape="json")


def test_no_schema_makes_the_check_fetch_anything():
    pytest.importorskip("jsonschema")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.3)
        elsewhere = {"$ref": f"http://127.0.0.1:{listener.getsockname()[1]}/schema"}
        with pytest.raises(Exception, match="Unresolvable"):
            format_("1", ROW, shape="json", schema=elsewhere)
        with pytest.raises(TimeoutError):
            listener.accept()
