"""Whether a tokenizer, saved beside a model's config, is loaded again as the tokenizer that it is.

transformers chooses the class of a tokenizer by the model's config: beside a `qwen2` config, for example, it
builds Qwen2's own pre-tokenizer around the saved vocabulary, whatever was saved. A model that was trained on
one tokenisation would then be scored, exported and served with another. Left out: tokenizers that come from
the model's own folder, which are loaded by that rule in the first place.
"""

from __future__ import annotations

import tempfile
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig

from posttrain.data.tokenizers import backend_rules
from posttrain.errors import RequestError


def refuse_swapped_tokenizer(
    tokenizer: Any, config: PreTrainedConfig, name: str, trust_remote_code: bool = False
) -> None:
    """Raises `RequestError` if `tokenizer` (`model.tokenizer` = `name`) is another one beside `config`."""
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        try:
            again = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _refusal(name, config, f"cannot load it ({str(error).splitlines()[0]})") from error
    if not again.is_fast or backend_rules(again) != backend_rules(tokenizer):
        raise _refusal(name, config, f"loads it as {type(again).__name__}, which reads texts differently")


def _refusal(name: str, config: PreTrainedConfig, what: str) -> RequestError:
    return RequestError(
        f"model.tokenizer = {name!r}: beside the config of a {config.model_type} model transformers {what}, "
        "so the checkpoints would not be the model that was trained; use that model's own tokenizer, or "
        "another type of model"
    )
