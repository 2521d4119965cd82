"""Tools that a conversation may call, and calls to them, in the forms of OpenAI, Hermes, xLAM and APIGen.

Left out: the messages that hold the calls (messages.py), how a template writes them, running a tool.
"""

from __future__ import annotations

import json
from typing import Any

from posttrain.data.tokens import RowError
from posttrain.errors import RequestError

Tool = dict[str, Any]


def read_tools(value: Any, where: str) -> list[Tool]:
    """Tools as templates take them, `{"type": "function", "function": {"name", "description",
    "parameters"}}`.

    `value` is a list of them or of `{"name", ...}`, or either as JSON text; empty where there is none.

    Raises:
        RequestError: it is something else.
        RowError: bad_tools, where it is text that is not JSON.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError as error:
            raise RowError("bad_tools", f"{where}: {value[:60]!r} is not JSON") from error
    if value is None:
        return []
    tools = value if isinstance(value, list) else [value]
    return [_tool(tool, f"{where}, tool {index}") for index, tool in enumerate(tools)]


def _tool(tool: Any, where: str) -> Tool:
    inner = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise RequestError(f"{where}: must be an object with name and parameters")
    kept = {key: each for key, each in inner.items() if not (inner is tool and key == "type")}
    return {"type": "function", "function": kept}


def read_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Tool calls as templates take them, `{"type": "function", "function": {"name", "arguments"}}`,
    `arguments` an object.

    `value` is one call or a list of them, or either as JSON text; a call may also be `{"name", "arguments"}`.

    Raises:
        RowError: bad_call.
    """
    found = parsed(value, where) if isinstance(value, str) else value
    return [_call(call, where) for call in (found if isinstance(found, list) else [found])]


def parsed(text: str, where: str) -> Any:
    """The value in JSON `text`. Raises RowError: bad_call."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise RowError("bad_call", f"{where}: {text[:60]!r} is not JSON") from error


def _call(call: Any, where: str) -> dict[str, Any]:
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise RowError("bad_call", f"{where}: a call must be an object with name and arguments")
    arguments = inner.get("arguments", inner.get("parameters"))
    if isinstance(arguments, str):
        arguments = parsed(arguments, where) if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowError("bad_call", f"{where}: the arguments of {inner['name']!r} must be an object")
    made = {"type": "function", "function": {"name": inner["name"], "arguments": arguments}}
    return {"id": call["id"]} | made if isinstance(call.get("id"), str) else made
