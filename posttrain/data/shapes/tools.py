"""Tools that a conversation may call, and calls to them, in the forms of OpenAI, Anthropic, Hermes, xLAM and
APIGen.

A key with content that nothing reads is an error, as everywhere, unless the source says to ignore it. Left
out: the messages that hold the calls (messages.py), how a template writes them, running a tool.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any

from posttrain.data.shapes.names import filled
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError, did_you_mean

Tool = dict[str, Any]
ARGUMENTS = ("arguments", "parameters", "input")
"""Usual keys of the arguments of a call."""
HARMLESS = ("id", "index", "type", "strict")
"""Keys of a call, a tool or a part of a text that say nothing which could be trained."""


def refuse_unread(
    kind: str, given: dict[str, Any], known: Iterable[str], where: str, ignore: Collection[str]
) -> None:
    """Raises `RequestError` where `given`, a `kind`, has a key with content that is neither in `known` nor in
    `ignore`."""
    names = [*known]
    for key, value in given.items():
        if key not in names and key not in HARMLESS and key not in ignore and filled(value):
            raise RequestError(
                f"{where}: key {key!r} of a {kind} is not read{did_you_mean(key, names)}. Rename it, or set "
                f"ignore: [{key}]"
            )


def read_tools(value: Any, where: str, ignore: Collection[str] = ()) -> list[Tool]:
    """Tools as templates take them, `{"type": "function", "function": {"name", "description",
    "parameters"}}`.

    `value` is a list of them or of `{"name", ...}`, or either as JSON text; empty where there is none.

    Raises:
        RequestError: it is something else, or a key beside `function` is not read.
        RowError: bad_tools, where it is not JSON.
    """
    if isinstance(value, str):
        value = parsed(value, where, "bad_tools") if value.strip() else None
    if value is None:
        return []
    tools = value if isinstance(value, list) else [value]
    found = [_tool(tool, f"{where}, tool {index}", ignore) for index, tool in enumerate(tools)]
    written(found, where, "bad_tools")
    return found


def _tool(tool: Any, where: str, ignore: Collection[str]) -> Tool:
    inner = _inner(tool)
    if inner is None:
        raise RequestError(f"{where}: must be an object with name and parameters")
    _refuse_beside("tool", tool, inner, where, ignore)
    kept = {
        key: each
        for key, each in inner.items()
        if not (inner is tool and (key == "type" or (key == "function" and not filled(each))))
    }
    return {"type": "function", "function": kept}


def _inner(value: Any) -> dict[str, Any] | None:
    """The object with the name of a call or a tool, which may stand under `function`; None if there is
    none."""
    if not isinstance(value, dict):
        return None
    inner = value["function"] if filled(value.get("function")) else value
    name = inner.get("name") if isinstance(inner, dict) else None
    return inner if isinstance(name, str) and name.strip() else None


def _refuse_beside(
    kind: str, outer: dict[str, Any], inner: dict[str, Any], where: str, ignore: Collection[str]
) -> None:
    """Raises `RequestError` where a key with content stands beside `function`, but not, with the same value,
    in it."""
    if inner is outer:
        return
    for key, value in outer.items():
        if key == "function" or key in HARMLESS or key in ignore or not filled(value):
            continue
        if key not in inner or as_json(inner[key]) != as_json(value):
            raise RequestError(
                f"{where}: key {key!r} of a {kind} stands beside 'function', where it is not read. Move it "
                f"into 'function', or set ignore: [{key}]"
            )


def read_calls(value: Any, where: str, ignore: Collection[str] = ()) -> list[dict[str, Any]]:
    """Tool calls as templates take them, `{"type": "function", "function": {"name", "arguments"}}`,
    `arguments` an object.

    `value` is one call or a list of them, or either as JSON text, of which `null` is no call; a call may also
    be `{"name", "arguments"}`.

    Raises:
        RequestError: a key of a call is not read, or it has two different arguments.
        RowError: bad_call.
    """
    found = parsed(value, where) if isinstance(value, str) else value
    if found is None:
        return []
    return [_call(call, where, ignore) for call in (found if isinstance(found, list) else [found])]


def same_calls(given: dict[str, Any], where: str, ignore: Collection[str] = ()) -> list[dict[str, Any]]:
    """The calls that a message has under the keys of `given`, one or several. Raises as `read_calls`, and
    RequestError where two keys have different ones, ids aside."""
    read = {key: read_calls(value, where, ignore) for key, value in given.items()}
    if len({as_json([call["function"] for call in calls]) for calls in read.values()}) > 1:
        keys = " and ".join(map(repr, read))
        raise RequestError(f"{where}: {keys} differ; keep one, or set ignore: [{[*read][-1]}]")
    return next(iter(read.values()))


def parsed(text: str, where: str, reason: str = "bad_call") -> Any:
    """The value in JSON `text`. Raises `RowError` with `reason`, also where an object has one key twice with
    different values."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise RowError(reason, f"{where}: {text[:60]!r} is not JSON") from error
    except RecursionError:
        raise RowError(reason, f"{where}: {text[:60]!r} is nested too deep") from None
    except ValueError as error:
        raise RowError(reason, f"{where}: {text[:60]!r}: {error}") from error


def from_json(value: Any) -> Any:
    """What a text says as JSON, where it is that of a list or an object; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        with suppress(RowError):
            return parsed(value, "")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and as_json(found[key]) != as_json(value):
            raise ValueError(f"key {key!r} stands there twice")
        found[key] = value
    return found


def as_json(value: Any) -> str:
    """Text that two values have in common where JSON writes them alike, order of keys aside: to Python `true`
    is 1, and 1 is 1.0. Raises `RowError` (bad_call) where they are nested too deep."""
    try:
        return json.dumps(value, sort_keys=True, default=str)
    except RecursionError:
        raise RowError("bad_call", "a value is nested too deep") from None


def written(value: Any, where: str, reason: str) -> str:
    """`value` as JSON text, keys in order. Raises `RowError` with `reason` where that cannot be."""
    try:
        return json.dumps(value, allow_nan=False, sort_keys=True, default=str)
    except RecursionError:
        raise RowError(reason, f"{where}: is nested too deep") from None
    except ValueError as error:
        raise RowError(reason, f"{where}: has NaN or Infinity, which JSON does not know") from error


def _call(call: Any, where: str, ignore: Collection[str]) -> dict[str, Any]:
    inner = _inner(call)
    if inner is None:
        raise RowError("bad_call", f"{where}: a call must be an object with name and arguments")
    _refuse_beside("call", call, inner, where, ignore)
    refuse_unread("call", inner, ("name", *ARGUMENTS), where, ignore)
    arguments = _arguments(inner, where, ignore)
    made = {"type": "function", "function": {"name": inner["name"], "arguments": arguments}}
    return {"id": call["id"]} | made if isinstance(call.get("id"), str) else made


def _arguments(inner: dict[str, Any], where: str, ignore: Collection[str]) -> dict[str, Any]:
    """The arguments of a call, whichever of `ARGUMENTS` has them."""
    given = {}
    for key in ARGUMENTS:
        value = inner.get(key)
        if isinstance(value, str):
            value = parsed(value, where) if value.strip() else None
        if value is not None:
            given[key] = value
    if len(given) > 1:  # `{}` says that there are none; an object of nulls beside others says nothing
        said = {
            key: value for key, value in given.items() if key not in ignore and (filled(value) or not value)
        }
        given = said or given
    texts = {key: written(value, where, "bad_call") for key, value in given.items()}
    if len(set(texts.values())) > 1:
        raise RequestError(
            f"{where}: the call of {inner['name']!r} has different arguments under "
            f"{' and '.join(map(repr, texts))}; keep one, or set ignore: [{[*texts][-1]}]"
        )
    found = next(iter(given.values()), {})
    if not isinstance(found, dict):
        raise RowError("bad_call", f"{where}: the arguments of {inner['name']!r} must be an object")
    return found
