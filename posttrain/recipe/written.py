"""What a resolver gives, such as `${oc.env:TOKEN}`, is used by its value and kept as it was written.

The value is in the recipe; what is saved or shown of it has the expression, so that no value of the
environment is written down, and running the saved recipe resolves it again. Other interpolations
(`${train.seed}`) are saved resolved. So are names and `output_dir`: they are the place of the run, which the
same command must find again. Left out: which values decide the weights (`recipe_hash`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from posttrain.base.resolved import Resolved

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Stand for `${` and `}` of a resolver while the other interpolations are resolved; Unicode reserves them for
a program's own use."""
START = re.compile(r"(\\*)\$\{(\s*[\w.]+\s*:)?")
"""An interpolation: backslashes before it, an odd number of which escape it, and the name of a resolver."""
PLACES = re.compile(
    r"name|output_dir|pipeline"
    r"|(data\.sources\[\d+]|evaluate\.(heldout\.source|tasks\[\d+])|rewards\[\d+]|stages\[\d+])\.(name|label)"
)
"""Keys whose values are names and places of what the run makes."""


CONTENT = re.compile(
    r"(data\.sources\[\d+]|evaluate\.heldout\.source)\.system|evaluate\.tasks\[\d+]\.options\..*"
)
"""Keys whose texts become part of rows, which are saved as they are."""


def written(config: Any) -> dict[str, str]:
    """Path of each value of an omegaconf `config` that a resolver takes part in -> its text."""
    raw = OmegaConf.to_container(config, resolve=False)
    masked = _mapped(raw, _masked)
    if masked == raw:
        return {}
    try:
        found = flatten(OmegaConf.to_container(OmegaConf.create(masked), resolve=True))
        kept = {at: _unmasked(text) for at, text in found.items() if OPEN in str(text)}
    except OmegaConfBaseException:  # a resolver inside the name of a key: nothing is resolved
        kept = {at: text for at, text in flatten(raw).items() if isinstance(text, str) and "${" in text}
    return {at: text for at, text in kept.items() if not PLACES.fullmatch(at)}


def tagged(values: Any, texts: dict[str, str]) -> Any:
    """`values` with `Resolved` in the place of each text of `texts` that is no content of rows."""

    def tag(value: Any, at: str) -> Any:
        expression = at in texts and isinstance(value, str) and not CONTENT.fullmatch(at)
        return Resolved(value, texts[at]) if expression else value

    return _replaced(values, tag)


def kept(values: Any, texts: dict[str, tuple[Any, str]], plain: bool = False) -> Any:
    """`values` of a recipe as they are saved: they load as the same recipe.

    `texts`: path -> (value, expression); the expression stands where the value is still that one. `plain`:
    other texts are as they are, not escaped.
    """

    def keep(value: Any, at: str) -> Any:
        if at in texts and texts[at][0] == value:
            return texts[at][1]
        return escaped(str(value)) if isinstance(value, str) and not plain else value

    return _replaced(values, keep)


def escaped(text: str) -> str:
    """`text` so that omegaconf reads it as it stands, also where it has `${`."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def flatten(values: Any, path: str = "") -> dict[str, Any]:
    """The leaves by path: {"data.sources[0].name": "x", ...}."""
    parts = _parts(values, path)
    return {k: v for at, part in parts for k, v in flatten(part, at).items()} if parts else {path: values}


def at_paths(values: Any, paths: Collection[str]) -> dict[str, Any]:
    """path -> value, of those of `paths` that `values` has, containers too."""
    found: dict[str, Any] = {}

    def find(value: Any, at: str) -> Any:
        if at in paths:
            found[at] = value
        return value

    _replaced(values, find)
    return found


def at_or_below(path: str, above: str) -> bool:
    """Whether `path` is `above` or a place inside it."""
    return path == above or path.startswith((f"{above}.", f"{above}["))


def _parts(values: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(values, dict):
        return [(f"{path}.{key}" if path else key, part) for key, part in values.items()]
    return [(f"{path}[{i}]", part) for i, part in enumerate(values)] if isinstance(values, list) else []


def _replaced(values: Any, replace: Callable[[Any, str], Any], path: str = "") -> Any:
    """`values` with `replace(value, path)` in the place of each; of a container first, then of its parts."""
    values = replace(values, path)
    parts = [_replaced(part, replace, at) for at, part in _parts(values, path)]
    if isinstance(values, dict):
        return dict(zip(values, parts, strict=True))
    return parts if isinstance(values, list) else values


def _mapped(values: Any, change: Callable[[str], str]) -> Any:
    return _replaced(values, lambda value, at: change(value) if isinstance(value, str) else value)


def _masked(text: str) -> str:
    """`text` with `OPEN` and `CLOSE` around its resolvers, in the place of `${` and `}`."""
    out, inside, i = [], [], 0
    while i < len(text):
        start, character = START.match(text, i), text[i]
        if start is not None:
            slashes, resolver = start.groups()
            real = len(slashes) % 2 == 0
            inside += [("resolver" if resolver else "key")] if real else []
            out.append(f"{slashes}{OPEN}{resolver}" if real and resolver else start[0])
            i = start.end()
            continue
        now = inside[-1] if inside else ""
        if character in "'\"" and now == character:
            inside.pop()
        elif character in "'\"" and now in ("resolver", "brace"):
            inside.append(character)
        elif character == "{" and now in ("resolver", "brace"):
            inside.append("brace")
        elif character == "}" and now not in ("", "'", '"'):
            character = CLOSE if inside.pop() == "resolver" else character
        out.append(character)
        i += 1
    return "".join(out)


def _unmasked(text: str) -> str:
    return escaped(text).replace(OPEN, "${").replace(CLOSE, "}")
