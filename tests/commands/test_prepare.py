"""`posttrain prepare`: the rows of a run before it starts, with the refusals that it would meet.

Lengths are those of chatml over bytes: `<|im_start|>user\\n`, the prompt, `<|im_end|>\\n`,
`<|im_start|>assistant\\n`, the completion, `<|im_end|>\\n`; with a control token for one that is 6 + 2 + 11 +
2 = 21 tokens besides the text, or 19 of a prompt alone. Trained are the completion and its `<|im_end|>`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.prepared import facts_of, tables, write


def test_sft(call, plain_recipe, few, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    answer = call("prepare", plain_recipe, f"data.sources.0.path={few.name}", "evaluate.heldout.share=0.1")
    assert answer.code == 0, answer
    lines = [line.rstrip() for line in answer.out.splitlines()]
    head = ["source", "read", "kept", "tokens", "trained", "share", "asked", "share", "repeats"]
    assert lines[0].split() == head
    # 19 x 26 and 19 x 4; 17 rows are left to train on: 5 steps of 8 show each 40 / 17 times
    assert lines[1].split() == ["rows", "20", "19", "494", "76", "100.0%", "100.0%", "2.35"]
    assert lines[2] == "held out, never trained on: 2 rows (rows 2)"
    (drop,) = (line for line in lines if line.endswith("few.jsonl:20: 322 tokens"))
    assert drop.split()[:4] == ["rows", "overlong", "1", "5.00%"]
    assert any(line.startswith("overlong  more than data.max_length tokens, or") for line in lines)
    assert "raise data.max_length, or set" in answer.out
    assert "lengths of rows: 19 rows, 26 to 26 tokens, median 26" in lines
    assert any(re.fullmatch(r"     26 19 █+", line) for line in lines)
    assert "    256    <- data.max_length" in lines
    assert any(re.fullmatch(r"  > 256  1 █+ dropped", line) for line in lines)
    assert lines[-2:] == [
        "prepared: 19 rows, 494 tokens (of which 76 trained), 5 steps",
        f"the run finds them in {tmp_path / 'cache' / 'tables'}",
    ]
    assert not (tmp_path / "case").exists(), "no run is begun"


@pytest.mark.slow
def test_the_run_finds_every_table(call, recipe, few, tmp_path):
    heldout = f"evaluate.heldout={{source: {{name: own, path: {few}}}, every_steps: 5}}"
    facts = facts_of(call("prepare", recipe, heldout, "--json"))
    made = tables(tmp_path)
    assert len({Path(name).parent for name in made}) == 2  # the source and the held-out one
    assert call("run", recipe, heldout).code == 0
    assert tables(tmp_path) == made
    account = json.loads((tmp_path / "case" / "mixture.json").read_text())
    sources = [{k: v for k, v in source.items() if k != "lengths"} for source in facts["sources"]]
    shared = {key: facts[key] for key in account} | {"sources": sources}
    assert shared == account
    own = facts["heldout_source"]
    assert (own["rows_kept"], own["dropped"], own["lengths"]["longest"]) == (19, {"overlong": 1}, 26)
    assert facts["steps"] == json.loads((tmp_path / "case" / "run.json").read_text())["steps"]
    assert facts_of(call("prepare", recipe, heldout, "--json"))["resumes"] is True
    out = call("prepare", recipe, heldout).out
    assert re.search(r"^own +20 +19 +494 +76 +held out", out, re.M) and "lengths of own: 19 rows" in out
    assert re.search(r"^own +overlong +1 +5.00%", out, re.M)


def test_twice(call, plain_recipe, tmp_path):
    first = call("prepare", plain_recipe)
    made = tables(tmp_path)
    second = call("prepare", plain_recipe)
    assert first.code == 0 and made and second.out == first.out
    assert tables(tmp_path) == made


PROGRAM = """
import sys
from posttrain.cli import main
code = main(sys.argv[1:])
print(code, sorted({"torch", "trl", "datasets", "matplotlib"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_no_model_and_no_torch(root, plain_recipe, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "prepare", str(plain_recipe)],
        env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "0 []", done
    assert re.search(r"^source 'rows': 48 rows in .* rows/s\)$", done.stderr, re.M)  # a line for the log


# ---- refusals ----------------------------------------------------------------------------------------------


def refusal(answer) -> str:
    assert answer.code == 2, answer
    return answer.err[answer.err.index("error: ") :].strip()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["data.sources.0.max_repeats=2"],
            ["data.sources[0].max_repeats: 40 examples", "2.105 times"],
        ),
        (["data.overlong=error"], ["few.jsonl:20", "data.max_length = 256"]),
        (["data.sources.0.path=nope.jsonl"], ["nope.jsonl"]),
        (["loss.name=confidence_limited", "loss.n=4", "loss.p=external"], ["loss.p = external"]),
    ],
)
def test_it_refuses_as_the_run(call, plain_recipe, few, tmp_path, overrides, words):
    given = [f"data.sources.0.path={few}", *overrides]
    prepared, ran = (refusal(call(command, plain_recipe, *given)) for command in ("prepare", "run"))
    assert prepared == ran
    for word in words:
        assert word in prepared
    assert not (tmp_path / "case").exists()


def test_rows_of_which_several_examples_are_made(call, plain_recipe, tmp_path):
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant") * 2]
    path = write(tmp_path / "turns.jsonl", [{"messages": turns}] * 8)
    answer = call("prepare", plain_recipe, f"data.sources.0.path={path}", "data.train_on=each")
    assert answer.code == 0, answer
    head, row = (line.split() for line in answer.out.splitlines()[:2])
    # 21 + 2 tokens of the first exchange, and as many more of both
    assert head[:6] == ["source", "read", "kept", "examples", "tokens", "trained"]
    assert row[:6] == ["rows", "8", "8", "16", "552", "32"]
    assert "lengths of rows: 16 examples, 23 to 46 tokens" in answer.out
    assert "prepared: 16 examples, 552 tokens" in answer.out


def test_what_is_left_where_a_source_has_nothing(call, plain_recipe, few, tmp_path):
    """Its drops and the other sources are shown; shares are not, as the recipe asks for others."""
    empty = write(tmp_path / "empty.jsonl", [{"prompt": "a", "completion": ""}] * 4)
    both = f"data.sources=[{{name: none, path: {empty}}}, {{name: rows, path: {few}}}]"
    answer = call("prepare", plain_recipe, both)
    sentence = (
        "source 'none': 4 of 4 rows (100.0%) are dropped or truncated, so none is left to train on: "
        "4 no_completion. Remedy: fill it in, or name another column under data.sources.columns"
    )
    assert refusal(answer) == f"error: {sentence}"
    lines = answer.out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["source", "read", "kept", "tokens", "trained"],
        ["none", "4", "0", "0", "0"],
        ["rows", "20", "19", "494", "76"],
    ]
    assert re.search(r"^none +no_completion +4 +100.00%", answer.out, re.M)
    assert re.search(r"^rows +overlong +1 +5.00%", answer.out, re.M)
    assert "lengths of rows: 19 rows" in answer.out and "lengths of none" not in answer.out
    alone = call("prepare", plain_recipe, f"data.sources.0.path={empty}")
    assert refusal(alone) == f"error: {sentence}".replace("'none'", "'rows'")
    assert re.search(r"^rows +no_completion +4 +100.00%", alone.out, re.M)
    answer = call("prepare", plain_recipe, f"data.sources.0.path={empty}", "--json")
    facts = json.loads(answer.out)
    assert facts["sources"][0]["dropped"] == {"no_completion": 4} and facts["steps"] is None
    heldout = f"evaluate.heldout={{source: {{name: own, path: {empty}}}}}"
    answer = call("prepare", plain_recipe, heldout)
    assert "source 'own': 4 of 4 rows" in refusal(answer)
    assert re.search(r"^own +4 +0 +0 +0 +held out", answer.out, re.M) and "lengths of rows: 48" in answer.out


def test_rows_in_the_tables_are_not_repeated_below_them(call, plain_recipe, tmp_path):
    """A run names the first rows, once each reason; `prepare` has them in its tables."""
    path = write(
        tmp_path / "bad.jsonl", [{"prompt": "a", "completion": ""}] * 6 + [{"prompt": "a", "completion": "b"}]
    )
    given = f"data.sources.0.path={path}"
    said = (
        "source 'rows': 6 of 7 rows (85.7%) are dropped or truncated, more than data.max_drop_share = 0.05: "
    )
    said += "6 no_completion. "
    remedy = "Remedy: fill it in, or name another column under data.sources.columns. Or allow it with "
    remedy += "data.max_drop_share"
    first = f"First: {path}:1, :2, :3, :4, :5: no_completion: column 'completion' is empty. "
    assert refusal(call("run", plain_recipe, given)) == f"error: {said}{first}{remedy}"
    prepared = call("prepare", plain_recipe, given)
    assert refusal(prepared) == f"error: {said}{remedy}"
    assert "bad.jsonl:3:" in prepared.out and "bad.jsonl:4" not in prepared.out
    for_programs = call("prepare", plain_recipe, given, "--json")
    assert refusal(for_programs) == f"error: {said}{first}{remedy}"


def test_too_many_drops_are_shown_all_the_same(call, plain_recipe, few):
    given = (f"data.sources.0.path={few}", "data.max_drop_share=0.02")
    answer = call("prepare", plain_recipe, *given)
    assert answer.code == 2 and "prepared:" not in answer.out
    assert re.search(r"rows +overlong +1 +5.00% ", answer.out) and "lengths of rows: 19 rows" in answer.out
    assert "raise data.max_length (now 256)" in answer.err
    answer = call("prepare", plain_recipe, *given, "--json")
    assert answer.code == 2
    facts = json.loads(answer.out)
    assert facts["refused"] == refusal(answer).removeprefix("error: ")
    assert facts["sources"][0]["dropped"] == {"overlong": 1}


@pytest.mark.slow
def test_changed_rows_of_a_run(call, recipe, few, tmp_path):
    given = (f"data.sources.0.path={few}", "checkpoints.save_steps=5")
    assert call("run", recipe, *given).code == 0
    write(few, [{"prompt": "ab", "completion": "xyz"}] * 20)
    prepared = call("prepare", recipe, *given)
    assert refusal(prepared) == refusal(call("run", recipe, *given))
    assert "its sources have changed since it began: source 'rows': 20 rows as before" in prepared.err
    assert "lengths of rows: 20 rows" in prepared.out
    assert call("prepare", recipe, *given, "data.on_change=accept").code == 0
    call("prepare", recipe, *given, "train.learning_rate=1").refuses("contains a run of another recipe")
    assert call("prepare", recipe, *given, "name=other").code == 0
