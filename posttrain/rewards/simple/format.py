"""The format of a completion: think and answer tags, a box, or JSON that follows a schema.

The content is not checked. Left out: XML, Markdown tables, repairing JSON that is almost valid, `format`
assertions of JSON Schema (dates, addresses), and schemas that refer to other files or to the network.
"""

from __future__ import annotations

import itertools
import json
import re
from importlib import util
from typing import Any, Literal

from posttrain.errors import RequestError
from posttrain.rewards.registry import reward
from posttrain.rewards.simple.visible import boxed, visible
from posttrain.types import Example, Verdict

Shape = Literal["think_answer", "think", "boxed", "json"]
TAG = re.compile(r"</?(?:think|answer)>")
FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)
SCHEMA_COLUMN = "json_schema"


def check_row(example: Example, shape: Shape, schema: dict[str, Any] | None) -> None:
    """Raises ValueError if the column is not a valid schema, RequestError if the option is not one."""
    row = example.extra.get(SCHEMA_COLUMN)
    if shape != "json":
        if schema is not None:
            raise RequestError(f"reward 'format': schema needs shape: json; the shape is {shape!r}")
        return
    if row is not None and not isinstance(row, dict):
        raise ValueError(f"column {SCHEMA_COLUMN!r} is {type(row).__name__}, not a JSON Schema")
    if schema is not None and (wrong := _schema_error(schema)):
        raise RequestError(f"reward 'format': schema is not a JSON Schema: {wrong}")
    if row is not None and (wrong := _schema_error(row)):
        raise ValueError(f"column {SCHEMA_COLUMN!r} is not a JSON Schema: {wrong}")


@reward("format", check_row=check_row, runs="worker", limit_s=2.0)
def format_(
    completion: str,
    example: Example,
    shape: Shape = "think_answer",
    prefilled: bool = False,
    schema: dict[str, Any] | None = None,
) -> Verdict:
    """Whether the completion has the required format: tags, a box, or JSON that follows a schema.

    `shape`: `think_answer` is `<think>..</think><answer>..</answer>` and nothing else, each tag once, neither
    part empty (DeepSeek-R1, arXiv 2501.12948); `think` is a think block followed by text; `boxed` is a
    non-empty `\\boxed{}` after the thinking; `json` is one JSON value after the thinking, bare or in one code
    fence. `prefilled`: the prompt already ends in `<think>`. `schema`: a JSON Schema for `json`; the column
    `json_schema` of a row takes precedence.
    """
    if not completion.strip():
        return Verdict(0.0, "unparseable", "the completion is empty")
    if shape in ("think_answer", "think"):
        wrong = _tags(("<think>" if prefilled else "") + completion, shape)
    elif (text := visible(completion)) is None:
        wrong = "the think block is not closed"
    elif shape == "boxed":
        wrong = "" if boxed(text) else "no box with content"
    else:
        wrong = _json(text, example.extra.get(SCHEMA_COLUMN) or schema)
    return Verdict(float(not wrong), reason=wrong)


def _tags(text: str, shape: Shape) -> str:
    """What is wrong with the tags; "" if nothing is."""
    wanted = ["<think>", "</think>"]
    if shape == "think_answer":
        wanted += ["<answer>", "</answer>"]
    found = (m for m in TAG.finditer(text) if shape == "think_answer" or "think" in m[0])
    tags = list(itertools.islice(found, len(wanted) + 1))
    if [m[0] for m in tags] != wanted:
        return f"the tags are not {' '.join(wanted)}, each once and in this order"
    edges = [0, *(edge for m in tags for edge in m.span()), len(text)]
    parts = [text[a:b].strip() for a, b in zip(edges[::2], edges[1::2], strict=True)]
    filled = [False, True, False, True, False] if shape == "think_answer" else [False, True, True]
    for part, full in zip(parts, filled, strict=True):
        if bool(part) != full:
            return "a part is empty" if full else "text outside the tags"
    return ""


def _json(text: str, schema: dict[str, Any] | None) -> str:
    """What is wrong with the JSON; "" if nothing is. Duplicate names and NaN are rejected."""
    fenced = FENCE.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text, parse_constant=_refuse, object_pairs_hook=_once)
    except RecursionError:
        return "JSON nested too deeply"
    except ValueError as error:
        return f"not valid JSON: {error}"[:200]
    if schema is None:
        return ""
    from referencing import Registry

    validator = _validator_class(schema)(schema, registry=Registry())  # an empty registry: nothing is fetched
    error = next(validator.iter_errors(value), None)
    return "" if error is None else f"at {error.json_path}: {error.message}"[:200]


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _validator_class(schema: dict[str, Any]) -> Any:
    from jsonschema.validators import Draft202012Validator, validator_for

    return validator_for(schema, default=Draft202012Validator)


def _schema_error(schema: dict[str, Any]) -> str:
    """What is wrong with a JSON Schema; "" if nothing is."""
    if util.find_spec("jsonschema") is None:
        raise RequestError("reward 'format': a schema needs the package jsonschema: pip install jsonschema")
    from jsonschema.exceptions import SchemaError

    try:
        _validator_class(schema).check_schema(schema)
    except SchemaError as error:
        return f"at {error.json_path}: {error.message}"
    outside = [r for r in _references(schema) if not r.startswith("#")]
    return f"$ref {outside[0]!r} refers to something outside the schema" if outside else ""


def _references(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [found for item in schema for found in _references(item)]
    if not isinstance(schema, dict):
        return []
    own = [v for k, v in schema.items() if k in ("$ref", "$dynamicRef") and isinstance(v, str)]
    return own + [found for item in schema.values() for found in _references(item)]
