"""What can be known of a recipe before anything is loaded: names of tasks, missing files, lengths.

Imports neither torch nor transformers. `posttrain check` shows the result, every stage runs it first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posttrain.data.sources import list_files
from posttrain.errors import RequestError
from posttrain.evaluate.tasks.catalogue import check_task
from posttrain.recipe import Recipe
from posttrain.recipe.build import Problems
from posttrain.recipe.schema import Source


def preflight(recipe: Recipe) -> dict[str, list[dict[str, Any]]]:
    """Files by source name ([{path, bytes}], empty for hub ids and generators). Raises `RequestError`."""
    problems = Problems()
    files: dict[str, list[dict[str, Any]]] = {}
    for at, source in sources_of(recipe):
        try:
            files[source.name] = list_files(source)
        except RequestError as error:
            problems.add(at, str(error))
    for i, task in enumerate(recipe.evaluate.tasks):
        for path, message in check_task(task, f"evaluate.tasks[{i}]"):
            problems.add(path, message)
    limit = max_positions(recipe)
    if limit is not None and recipe.data.max_length > limit:
        problems.add(
            "data.max_length",
            f"data.max_length = {recipe.data.max_length} is above the {limit} positions of the model",
        )
    if problems:
        raise RequestError(
            "\n".join(
                p.message if p.path in p.message else f"{p.path}: {p.message}"
                for p in problems.found
            )
        )
    return files


def sources_of(recipe: Recipe) -> list[tuple[str, Source]]:
    """Every source a recipe reads, the held-out one included, with its place in the recipe."""
    found = [(f"data.sources[{i}]", s) for i, s in enumerate(recipe.data.sources)]
    heldout = recipe.evaluate.heldout
    if heldout is not None and heldout.source is not None:
        found.append(("evaluate.heldout.source", heldout.source))
    return found


def max_positions(recipe: Recipe) -> int | None:
    """The model's longest sequence where a config on this disk says it, else None."""
    model = recipe.model
    if model.from_config is not None:
        return model.from_config.options.get("max_position_embeddings")
    config = Path(str(model.init)).expanduser() / "config.json"
    if not config.is_file():
        return None
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("max_position_embeddings")
    except (ValueError, AttributeError):
        raise RequestError(f"{config}: not a model config") from None
