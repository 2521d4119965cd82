"""The config of a start model, as far as it is known before the model is loaded.

Reads JSON; imports no torch. Left out: defaults of the library, which a config need not list, and models that
are only on a hub, unless the caller passes a function that asks there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.errors import RequestError
from posttrain.recipe.schema import Model

Hub = Callable[[str, str | None], dict[str, Any]]
"""(hub id, revision) -> the content of its config.json; empty where it cannot be read."""


def start_config(model: Model, place: str | Path | None, hub: Hub | None = None) -> dict[str, Any]:
    """What is known of the text model at `place`, the folder or hub id of a full model; None: of the one that
    `model.from_config` describes, if any.

    A `text_config` counts over what is around it, and `model.options` over both.

    Raises:
        RequestError: the config.json of a folder is not a model config.
    """
    if place is not None:
        config = _read(str(place), model.revision, hub)
    elif model.from_config is not None:
        config = {"model_type": model.from_config.model_type, **model.from_config.options}
    else:
        config = {}
    if isinstance(text := config.get("text_config"), dict):
        config = config | {"model_type": None} | text  # the outer type is not that of the text model
    if "rope_parameters" in model.options:
        config = {key: value for key, value in config.items() if key != "rope_scaling"}  # of older configs
    return config | model.options


def _read(place: str, revision: str | None, hub: Hub | None) -> dict[str, Any]:
    if not Path(place).exists():
        return {} if hub is None else hub(place, revision)
    file = Path(place) / "config.json"
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError):
        raise RequestError(f"{file}: not a model config") from None
