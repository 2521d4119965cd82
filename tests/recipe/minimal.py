"""The smallest recipe, and what is said about one that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.errors import RequestError
from posttrain.recipe import load

MINIMAL = """\
stage: sft
name: small
model: {from_config: {model_type: llama, options: {hidden_size: 32}}, tokenizer: builtin:bytes}
data:
  sources:
    - name: a
      path: a.jsonl
train:
  learning_rate: 1e-3
  global_batch_size: 8
  max_steps: 10
"""


def fails(path: Path, *overrides: str) -> str:
    with pytest.raises(RequestError) as caught:
        load(path, list(overrides))
    assert caught.value.exit_code == 2
    return str(caught.value)
