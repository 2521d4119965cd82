"""The text of a recipe as an omegaconf config: YAML with only the types that a recipe has, and `key=value`
overrides.

YAML 1.1 reads more than people write: `010` is 8, `1:30` is 90, `!!set` and `!!binary` are objects that
nothing here can use. Whatever is not a mapping, a list, text, a number, true, false or null is refused, and
so are files that no recipe needs (over 1 MiB, nested more than 60 deep). Left out: resolving interpolations
(`load.py`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from posttrain.base.files import counted
from posttrain.base.printable import printable
from posttrain.errors import RequestError, did_you_mean

LARGEST = 2**20
"""Bytes of a recipe file; the longest shipped one has six thousand."""
DEEPEST = 60
"""Levels of nesting."""
MOST = 10_000
"""Values, those of an alias counted wherever it stands; omegaconf's own limit."""
TYPES = ("map", "seq", "str", "int", "float", "bool", "null", "merge")
"""YAML types that a value may have."""
OCTAL = re.compile(r"[-+]?0[0-7_]+")
SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
LONGEST_NUMBER = 300
"""Characters; longer ones are no longer finite."""


class _Loader(yaml.SafeLoader):
    """Dates are text, as omegaconf reads them."""

    yaml_implicit_resolvers = {
        start: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
        for start, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class Unfit(Exception):
    """What is wrong with a node: a sentence."""

    def __init__(self, node: yaml.Node, sentence: str) -> None:
        super().__init__(sentence)
        self.line = node.start_mark.line + 1


def read(path: Path) -> tuple[Any, dict[str, int]]:
    """The config in the file `path`, interpolations unresolved, and the line of every key and list item by
    path.

    Raises:
        RequestError: the file cannot be read, is not YAML, or holds what no recipe has.
    """
    text = _text(path)
    try:
        node = yaml.compose(text, Loader=_Loader)
        _check(node)
        config = OmegaConf.create(text) if text.strip() else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or printable(" ".join(str(error).split()))
        raise RequestError(f"{path}{line}: not valid YAML: {reason}") from None
    except Unfit as unfit:
        raise RequestError(f"{path}:{unfit.line}: {unfit}") from None
    except RecursionError:
        raise RequestError(f"{path}: is nested more than {DEEPEST} levels deep") from None
    except (OmegaConfBaseException, ValueError) as error:
        raise RequestError(f"{path}: cannot be read: {_first_line(error)}") from None
    if config is None or not OmegaConf.is_dict(config):
        raise RequestError(f"{path}: a recipe is a mapping that starts with `stage:` or `pipeline:`")
    return config, _lines(node)


def apply_override(config: Any, override: str, path: Path | str) -> None:
    """Set one `key=value` in an omegaconf `config`. A RequestError names it by `path`."""
    key, sign, text = override.partition("=")
    key = re.sub(r"\[(\d+)\]", r".\1", key.strip())
    if not sign or not key:
        raise RequestError(f"{override!r}: an override is written key=value, e.g. train.learning_rate=1e-5")
    try:
        OmegaConf.update(config, key, parsed(text), force_add=True)
    except Unfit as unfit:
        raise RequestError(f"cannot apply {override!r} to {path}: {unfit}") from None
    except (OmegaConfBaseException, IndexError, ValueError, TypeError, RecursionError) as error:
        why = _misses_list(config, key.split(".")) or _first_line(error)
        raise RequestError(f"cannot apply {override!r} to {path}: {why}") from None


def _misses_list(config: Any, keys: list[str]) -> str | None:
    """What is wrong where one of `keys` on the way into `config` does not name an entry of a list."""
    node = OmegaConf.to_container(config, resolve=False)
    for depth, key in enumerate(keys):
        if isinstance(node, list):
            before = ".".join(keys[:depth])
            if not key.isdigit():
                return f"{before} is a list; write {'.'.join([before, '0', *keys[depth:]])}"
            if int(key) >= len(node):
                return f"{before} has {counted(len(node), 'item')}, numbered from 0"
            node = node[int(key)]
        elif isinstance(node, dict) and key in node:
            node = node[key]
        else:
            return None
    return None


def parsed(text: str) -> Any:
    """The YAML value that `text` is, interpolations unresolved; other text, such as `a: b` or `@x`, is taken
    literally.

    Raises:
        Unfit: it has a type that no recipe has.
    """
    value = f"value: {text}"
    try:
        _check(yaml.compose(value, Loader=_Loader))
        if not text or isinstance(yaml.safe_load(value)["value"], type(...)):
            return text
    except (yaml.YAMLError, TypeError):
        return text
    # unresolved: ${...} means the recipe's keys, not these
    return OmegaConf.to_container(OmegaConf.create(value), resolve=False)["value"]


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise RequestError(f"{path}: a recipe file has at most 1 MiB; rows belong into data.sources")
        return content.decode("utf-8")
    except IsADirectoryError:
        near = [p.name for p in path.glob("*.yaml")]
        inside = f"; it contains {', '.join(sorted(near)[:5])}" if near else ""
        raise RequestError(f"{path} is a folder, not a recipe file{inside}") from None
    except (FileNotFoundError, NotADirectoryError):
        near = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        hint = "; the file comes before its keys" if "=" in path.name else did_you_mean(path.name, near)
        raise RequestError(f"{path}: no such recipe file{hint}") from None
    except UnicodeDecodeError:
        raise RequestError(f"{path}: cannot be read: not UTF-8 text") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL or a lone surrogate
        raise RequestError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from None


def _check(node: Any) -> None:
    """Raises `Unfit` for what no recipe has."""
    if node is None:
        return
    known: dict[int, int] = {}
    if _size(node, (), known) > MOST:
        raise Unfit(node, f"a recipe has at most {MOST:,} values; rows belong into data.sources")
    todo, seen = [node], set()
    while todo:
        node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        _check_type(node)
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode) or _type(key) == "null":
                raise Unfit(key, "a key must be text")
            todo.append(value)
        todo += node.value if isinstance(node, yaml.SequenceNode) else ()


def _size(node: yaml.Node, above: tuple[int, ...], known: dict[int, int]) -> int:
    """Number of values that `node` expands to. `above`: ids of the nodes around it."""
    if id(node) in above:
        raise Unfit(node, "an alias stands inside the value that it means")
    if len(above) > DEEPEST:
        raise Unfit(node, f"nested more than {DEEPEST} levels deep")
    if id(node) not in known:
        inside = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for entry in inside for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_size(part, (*above, id(node)), known) for part in parts)
    return known[id(node)]


def _lines(node: Any, path: str = "") -> dict[str, int]:
    """Line (from 1) of every key and list item, by path."""
    found: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{path}.{key.value}" if path else str(key.value)
            found[name] = key.start_mark.line + 1
            found |= _lines(value, name)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            found[f"{path}[{i}]"] = value.start_mark.line + 1
            found |= _lines(value, f"{path}[{i}]")
    return found


def _type(node: yaml.Node) -> str:
    return node.tag.removeprefix("tag:yaml.org,2002:")


def _check_type(node: yaml.Node) -> None:
    kind, text = _type(node), node.value
    if kind not in TYPES:
        tag = node.tag if node.tag.startswith("!") else f"!!{kind.removeprefix('tag:')}"
        raise Unfit(node, f"the YAML tag {tag} has no meaning in a recipe; write a plain value")
    if not isinstance(node, yaml.ScalarNode):
        return
    if kind in ("int", "float") and len(text) > LONGEST_NUMBER:
        raise Unfit(node, f"a number of {len(text):,} digits cannot be used")
    if kind == "int" and OCTAL.fullmatch(text):
        digits = text.replace("_", "")
        plain = int(digits)
        raise Unfit(
            node,
            f"YAML reads {text} as an octal number ({int(digits, 8)}); write {plain}, or '{text}' for text",
        )
    if kind in ("int", "float") and SEXAGESIMAL.fullmatch(text):
        raise Unfit(
            node,
            f"YAML reads {text} as a number in base 60; write the number itself, or '{text}' for text",
        )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
