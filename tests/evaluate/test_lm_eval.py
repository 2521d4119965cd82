"""MMLU by likelihood against lm-eval on the same model, row by row; skipped where lm-eval is not installed.

Left out: tokenizers whose merges run across the end of the prompt. lm-eval splits the tokens of both by
number, so that a continuation loses tokens or has none, which it refuses; `test_choice.py` has what we do.
"""

from __future__ import annotations

import json

import pytest

from posttrain.data.template import load_template
from posttrain.evaluate.score import Subject, score_task
from posttrain.evaluate.tasks.catalogue import load_task
from posttrain.evaluate.tasks.files import LOCAL
from posttrain.evaluate.tasks.reading import read_rows
from posttrain.evaluate.values import choice_values
from posttrain.recipe.schema import Task
from tests.evaluate.tokenizer_kinds import model_of, tokenizer_of

SUBJECTS = ("abstract_algebra", "global_facts")
OPTIONS = "".join(f"\n{letter}. {{{{choices[{i}]}}}}" for i, letter in enumerate("ABCD"))
WITHIN = ("bytes", "gpt2", "unigram")
"""Kinds of tokenizers that do not."""


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """`harness(kind, data, **config)`: the samples of lm-eval, by their number."""
    evaluator = pytest.importorskip("lm_eval.evaluator")
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    def run(kind, files, **config):
        task = ConfigurableTask(
            config={
                "task": "compared",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": files},
                "test_split": "test",
                "output_type": "multiple_choice",
                "doc_to_target": "answer",
                "metric_list": [{"metric": m} for m in ("acc", "acc_norm", "acc_bytes")],
                **config,
            }
        )
        model = HFLM(pretrained=model_of(kind), tokenizer=tokenizer_of(kind), batch_size=16)
        found = evaluator.evaluate(
            lm=model, task_dict={"compared": task}, log_samples=True, bootstrap_iters=0
        )
        return sorted(found["samples"]["compared"], key=lambda sample: sample["doc_id"])

    return run


@pytest.fixture
def as_json(data_dir, tmp_path, monkeypatch):
    """The rows of a subject as the hub has them, for lm-eval."""
    monkeypatch.setenv(LOCAL, str(data_dir))

    def write(subject, limit):
        source = load_task(Task("mmlu")).spec.source
        files = {}
        for split in ("test", "dev"):
            found = []
            for row in read_rows("mmlu", source, str(data_dir / f"mmlu/{split}/{subject}_{split}.csv")):
                cells = row.columns
                options = [cells[letter] for letter in "ABCD"]
                answer = "ABCD".index(cells["answer"])
                found.append({"question": cells["question"], "choices": options, "answer": answer})
            files[split] = str(tmp_path / f"{subject}-{split}.jsonl")
            text = "".join(json.dumps(row) + "\n" for row in found[:limit])
            (tmp_path / f"{subject}-{split}.jsonl").write_text(text)
        return files

    return write


def ours(kind, name, subject, limit, **options):
    tokenizer = tokenizer_of(kind)
    subject_ = Subject(model_of(kind), tokenizer, load_template("plain", tokenizer), "c", 0, "d")
    options = {"chat": False, "where": f"file == '{subject}_test'", **options}
    return score_task(subject_, Task(name, limit=limit, options=options, batch_size=16)).samples


def compare(rows, samples):
    """Every log-probability within 1e-4, every right and wrong equal. What lm-eval calls acc_norm is a
    character, its acc_bytes a byte."""
    values = choice_values(rows, 0)
    assert len(rows) == len(samples)
    for i, (row, sample) in enumerate(zip(rows, samples, strict=True)):
        theirs = [float(each[0]) for each in sample["filtered_resps"]]
        assert [o["logp"] for o in row["options"]] == pytest.approx(theirs, abs=1e-4), row["id"]
        for metric, name in {"acc": "acc", "acc_norm": "acc_bytes", "acc_per_char": "acc_norm"}.items():
            assert values[metric][i] == sample[name], (row["id"], metric)


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("kind", WITHIN)
def test_letters_after_five_shots(kind, subject, harness, as_json):
    files = as_json(subject, 30)
    rows = ours(kind, "mmlu", subject, 30, shots={"form": "text"})
    shots = {"fewshot_split": "dev", "num_fewshot": 5, "fewshot_config": {"sampler": "first_n"}}
    letters = {
        "doc_to_text": "{{question.strip()}}" + OPTIONS + "\nAnswer:",
        "doc_to_choice": ["A", "B", "C", "D"],
    }
    compare(rows, harness(kind, files, **letters, **shots))


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("kind", WITHIN)
def test_the_texts_of_options(kind, subject, harness, as_json):
    files = as_json(subject, 30)
    rows = ours(kind, "mmlu_text", subject, 30, blank="", unconditional="")
    asked = {"doc_to_text": "Question: {{question.strip()}}\nAnswer:", "doc_to_choice": "{{choices}}"}
    samples = harness(kind, files, **asked)
    compare(rows, samples)
    assert 0 < sum(row["correct"] for row in rows) < len(rows)
