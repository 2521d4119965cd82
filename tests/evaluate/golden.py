"""Six small tasks, a model built by seed, and the scores they had: `python -m tests.evaluate.golden` writes
them again, after a change that is meant to alter scores.

The replies of such a model are letters at random, so each task judges something that random letters decide.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from posttrain.data.template import load_template
from posttrain.data.tokenizers import load_tokenizer
from posttrain.evaluate.score import Subject, score_task
from posttrain.recipe.schema import Task
from tests.tiny import build_model

STORED = Path(__file__).parent / "golden.json"
ROWS = 12
TASKS = {
    "exact": """\
kind: exact
prompt: question
answer: "{{ number }}"
""",
    "generate": """\
kind: generate
prompt: question
answer: "{{ letters }}"
columns: {pattern: "{{ '[' ~ letters ~ ']' }}"}
reward: {name: regex, options: {match: search}}
samples: 4
k: [1, 2, 4]
max_new_tokens: 10
""",
    "choice": """\
kind: choice
prompt: question
choices: options
answer: "{{ number % 4 }}"
group: "{{ number % 3 }}"
continuation: text
unconditional: "Answer:"
""",
    "code": """\
kind: code
prompt: question
answer: "{{ number }}"
columns: {tests: "{{ ['assert f() % 2 == ' ~ number % 2] }}"}
reply: "```python\\ndef f():\\n    return {{ completion | length }}\\n```"
samples: 2
k: [1, 2]
max_new_tokens: 7
""",
    "instructions": """\
kind: instructions
prompt: question
answer: form
columns:
  instruction_id_list: "{{ ['punctuation:no_comma', 'change_case:english_lowercase'][:1 + number % 2] }}"
  kwargs: "{{ [{}, {}][:1 + number % 2] }}"
max_new_tokens: 40
""",
    "first_error": """\
kind: first_error
prompt: question
answer: label
reply: "\\\\boxed{ {{- completion | length % 3 - 1 -}} }"
max_new_tokens: 9
""",
}


def rows() -> list[dict]:
    return [
        {
            "question": f"Which is {7 * i % 12} of {i}?",
            "number": i,
            "letters": "abcdefghijklmnopqrstuvwxyz"[i : i + 9],
            "options": [f"{word} {i * k}" for k, word in enumerate(("none", "a few", "several", "all"))],
            "form": "free",
            "steps": ["one", "two"],
            "label": i % 3 - 1,
        }
        for i in range(ROWS)
    ]


def subject() -> Subject:
    tokenizer = load_tokenizer("builtin:bytes")
    torch.manual_seed(17)
    model = build_model("llama", len(tokenizer), positions=256)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.sin(torch.arange(weight.numel()) * 0.37 + 1).reshape(weight.shape) * 0.3)
    return Subject(model, tokenizer, load_template("tulu", tokenizer), "golden", 0, "d")


def scores(folder: Path, kind: str, batch_size: int = 5) -> dict[str, list[float | None]]:
    """metric -> value, low, high."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    file = folder / f"{kind}.yaml"
    file.write_text(f"about: golden\nsource: {{file: rows.jsonl}}\n{TASKS[kind]}")
    task = Task(f"golden_{kind}", file=str(file), batch_size=batch_size, seed=3)
    found = score_task(subject(), task).scores
    return {score.metric: [score.value, score.low, score.high] for score in found}


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        every = {kind: scores(Path(place), kind) for kind in TASKS}
    STORED.write_text(json.dumps(every, indent=1) + "\n")
