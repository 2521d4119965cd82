"""The config of a checkpoint compared with that of the model that takes up its weights.

Weights fit a model of any config that changes no shape, such as another `rope_theta` or `hidden_act`, and
mean another function in it. Both configs are read by the class of transformers, so that defaults count and
spelling does not. Left out: the base of an adapter, which has no config.json of its own (see `identity` of
rundir/adapters.py), and code that comes with a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME

IGNORED = {
    "_name_or_path",
    "architectures",
    "auto_map",  # a save names other places of the same code
    "transformers_version",
    "dtype",
    "torch_dtype",
    "attn_implementation",
    "use_cache",
    "pad_token_id",  # the trainer sets these three to the tokenizer's
    "bos_token_id",
    "eos_token_id",
}
"""Keys that say nothing of the forward under training."""
ABSENT = object()
SHOWN = 5
"""Keys that are named."""


def other_config(model: nn.Module, folder: Path) -> str | None:
    """In what config.json in `folder` differs from the config of `model`, whatever engine may shard that:
    `key before -> now`. None where both are the same, or where there is none."""
    if not (folder / CONFIG_NAME).is_file():
        return None
    config: Any = (model.get_base_model() if isinstance(model, PeftModel) else model).config
    written = PreTrainedConfig.get_config_dict(folder)[0]
    if (kind := written.get("model_type")) != config.model_type:
        return f"model_type {kind!r} -> {config.model_type!r}"
    same = type(config)
    both = [_written(same.from_dict(values)) for values in (written, config.to_dict())]
    # a key on one side only is none of this class: another version of transformers, or another tool, wrote it
    known = both[0].keys() & both[1].keys()
    before, now = (dict(_flat({key: side[key] for key in known})) for side in both)
    differ = [
        f"{key} {_text(before, key)} -> {_text(now, key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, ABSENT) != now.get(key, ABSENT)
    ]
    more = [f"{len(differ) - SHOWN} more"] if len(differ) > SHOWN else []
    return ", ".join(differ[:SHOWN] + more) or None


def _written(config: PreTrainedConfig) -> dict[str, Any]:
    return json.loads(config.to_json_string(use_diff=False))


def _flat(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if key in IGNORED:
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield above + key, value


def _text(values: dict[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "unset"
