"""What the tests of `posttrain prepare` share: rows, the tables of a cache, what `--json` printed."""

from __future__ import annotations

import json
from pathlib import Path

LONG = {"prompt": "a", "completion": "x" * 300}
"""Above data.max_length = 256."""


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tables(folder: Path) -> dict[str, int]:
    """Every file of every table, with the time at which it was written."""
    found = (folder / "cache" / "tables").glob("*/*")
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in found}


def facts_of(answer) -> dict:
    assert answer.code == 0, answer
    return json.loads(answer.out)


PROMPTS = """\
stage: {stage}
name: case
output_dir: {out}
model:
  tokenizer: "builtin:bytes"
  from_config: {{model_type: llama, options: {{hidden_size: 32, max_position_embeddings: 512}}}}
data:
  template: chatml
  max_length: 128
  cache_dir: {out}/cache
  sources:
    - {{name: rows, path: {out}/{rows}}}
rewards:
  - name: math
    options: {{mode: gsm8k}}
"""
"""A recipe of a stage that samples, without its rollout."""
