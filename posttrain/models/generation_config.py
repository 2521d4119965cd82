"""generation_config.json of what was trained: where stock `generate` and vLLM stop, and what they pad with.

A base model that learns a chat template ends its turns with the template's token, and not with its own end
token: stock `generate` reads end tokens from the generation config alone and would go on to the limit
(LlamaFactory#7454). vLLM takes `eos_token_id` of the same file as stop tokens, besides the tokenizer's.
Left out: ends of turn of several tokens, as `stop_strings` in the file would make `generate` ask for a
tokenizer; sampling in this project, which is told the tokens (`generation/base.py`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from posttrain.data.template import Template
from posttrain.generation.base import end_tokens

log = logging.getLogger(__name__)


def stop_as_trained(model: Any, tokenizer: Any, template: Template | None) -> None:
    """Sets the end tokens of `model` (the tokenizer's, then those that it had and the template's) and its
    padding.

    All else in its generation config, such as a temperature, stays.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    ends = end_tokens(model, tokenizer, template.stops if template else ())
    config.eos_token_id = sorted(ends, key=lambda token: token != tokenizer.eos_token_id)
    config.pad_token_id = tokenizer.pad_token_id
    if template and len(template.end_ids) != 1:
        log.warning(
            "an assistant turn ends with %r, which is %d tokens: generate needs stop_strings and tokenizer, "
            "vLLM stop, to end there",
            template.end_of_turn,
            len(template.end_ids),
        )


def take_generation_config(model: Any, folder: str | Path) -> None:
    """Gives `model` the generation config that lies beside an adapter in `folder`, if there is one."""
    if (Path(folder) / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)


@contextlib.contextmanager
def with_generation_config(model: nn.Module, folder: Path | None) -> Iterator[None]:
    """The block saves `model` to `folder` (None: on another rank); its generation config is written beside
    it as it is.

    peft writes none. transformers refuses to write one with a setting that has no effect, such as a
    temperature without `do_sample`, although published models have such files.
    """
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = getattr(owner, "generation_config", None)
    if config is None:
        yield
        return
    owner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        owner.generation_config = config
    if folder is not None:
        config.to_json_file(folder / GENERATION_CONFIG_NAME)
