"""`posttrain rewards list | check | score` as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ROWS = [
    {"completion": "so \\boxed{5}", "answer": 5},
    {"completion": "", "answer": "5"},
    {"completion": "\\boxed{9^{9^{9^{9}}}}", "answer": "5"},
    {"completion": "Some text, no answer", "answer": "5", "id": 7},
]


def posttrain(*words: str, cwd=None, **how) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "posttrain.cli", "rewards", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        **how,
    )


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.slow
def test_score_prints_a_verdict_a_line_in_order(rows):
    done = posttrain("score", "math", "--file", str(rows))
    assert done.returncode == 0, done.stderr
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    assert [v["value"] for v in verdicts] == [1.0, 0.0, 0.0, 0.0]
    assert [v["status"] for v in verdicts] == ["scored", "unparseable", "scored", "unparseable"]
    assert verdicts[2]["reason"] == "limit"
    assert all(set(v) == {"value", "status", "reason", "ms", "details"} for v in verdicts)


@pytest.mark.slow
def test_options_and_the_readable_view(rows):
    done = posttrain("score", "math", "--file", str(rows), "--option", "mode=gsm8k", "--explain")
    assert done.returncode == 0 and "rows.jsonl:3" in done.stdout and "gold: 5" in done.stdout
    assert "limit" in done.stdout


@pytest.mark.slow
def test_long_files_keep_their_order(tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text(
        "".join(json.dumps({"completion": f"\\boxed{{{i}}}", "answer": i % 7}) + "\n" for i in range(700))
    )
    done = posttrain("score", "math", "--file", str(path))
    values = [json.loads(line)["value"] for line in done.stdout.splitlines()]
    assert values == [float(i == i % 7) for i in range(700)]


@pytest.mark.parametrize(
    ("words", "text", "sentence"),
    [
        (["mth"], None, "unknown reward 'mth' (did you mean 'math'?)"),
        (["math", "--option", "mod=x"], None, "unknown option 'mod' (did you mean 'mode'?)"),
        (["math", "--option", "mode=gsm8"], None, "mode = 'gsm8' (did you mean 'gsm8k'?)"),
        (["math", "--option", "mode"], None, "'mode': write it as key=value"),
        (
            ["math"],
            '{"completion": "5", "anwser": "5"}',
            "rows.jsonl:1: reward 'math' needs column 'answer' (did you mean 'anwser'?)",
        ),
        (
            ["math"],
            '{"completions": "5", "answer": "5"}',
            "rows.jsonl:1: needs a column 'completion' with text (did you mean 'completions'?)",
        ),
        (
            ["math"],
            '{"completion": 5, "answer": "5"}',
            "rows.jsonl:1: needs a column 'completion' with text: int",
        ),
        (["math"], '{"completion": "5", "answer": {"a": 1}}', "rows.jsonl:1: answer is an object"),
        (["math"], '{"completion": "5", "answer": "5"', "rows.jsonl:1"),
        (["math"], b'{"completion": "\xff", "answer": "5"}', "rows.jsonl:1"),
        (["instructions"], '{"completion": "5", "instruction_id_list": ["a"]}', "needs column 'kwargs'"),
        (["code"], '{"completion": "5"}', "needs column 'tests' or 'stdin_tests'"),
    ],
)
def test_wrong_requests_exit_2_with_a_sentence_and_print_nothing(call, rows, words, text, sentence):
    if text is not None:
        rows.write_bytes(text if isinstance(text, bytes) else text.encode())
    answer = call("rewards", "score", *words, "--file", rows)
    answer.refuses(sentence)
    assert answer.out == ""


def test_a_missing_file_is_named(call, rows):
    missing = rows.with_name("row.jsonl")
    call("rewards", "score", "math", "--file", missing).refuses("no such file (did you mean 'rows.jsonl'?)")


@pytest.mark.slow
def test_a_row_whose_gold_is_broken_is_an_error_of_its_own(rows):
    good = {"completion": "\\boxed{5}", "answer": "5"}
    rows.write_text("\n".join(json.dumps(r) for r in (good, good | {"answer": ""}, good)))
    done = posttrain("score", "math", "--file", str(rows))
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    assert [v["value"] for v in verdicts] == [1.0, None, 1.0] and done.returncode == 1
    assert "rows.jsonl:2" in verdicts[1]["reason"] and "1 of 3 rows cannot be scored" in done.stderr


@pytest.mark.slow
def test_list_shows_names_options_and_one_line_each():
    done = posttrain("list", "--json")
    found = {each["name"]: each for each in json.loads(done.stdout)}
    assert {"math", "code", "instructions"} <= set(found)
    assert found["math"]["options"]["mode"]["default"] == "math"
    assert all(each["about"] for each in found.values())
    shown = posttrain("list")
    assert shown.returncode == 0 and "instructions" in shown.stdout


@pytest.mark.slow
def test_check_runs_a_corpus_and_says_so():
    done = posttrain("check", "math", "--json")
    (found,) = json.loads(done.stdout)
    assert found["holds"] is (done.returncode == 0)
    assert found["gold"] > 50 and found["spoiled"] > 50 and found["hostile"] > 20
    table = posttrain("check", "math", "--markdown").stdout
    assert table.startswith("| reward | gold |") and "| math |" in table
    wrong = posttrain("check", "maths")
    assert wrong.returncode == 2 and "did you mean 'math'" in wrong.stderr


@pytest.mark.slow
def test_check_fails_where_a_reward_breaks_its_promise(tmp_path):
    (tmp_path / "liar.py").write_text(
        "from posttrain.types import Verdict\n"
        "def fn(completion, example):\n    'Says yes.'\n    return Verdict(1.0)\n"
    )
    (tmp_path / "corpora").mkdir()
    row = {"kind": "spoiled", "completion": "no", "category": "plain"}
    (tmp_path / "corpora" / "fn.jsonl").write_text(json.dumps(row))
    import os

    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    done = posttrain("check", "liar:fn", env=environment)
    assert done.returncode == 1, done.stderr
    assert "liar:fn: contradicts its corpus" in done.stderr
    assert "expected below 1; got 1.0, scored" in done.stdout


@pytest.mark.slow
def test_a_data_set_is_checked_against_its_own_references(tmp_path):
    """The file's columns have names of their own; one of its references is wrong."""
    path = tmp_path / "set.jsonl"
    made = [{"solution": f"so \\boxed{{{i}}}", "gold": "13" if i == 3 else str(i)} for i in range(5)]
    path.write_text("\n".join(map(json.dumps, made)))
    words = ["check", "math", "--file", str(path), "--reference", "solution", "--column"]
    done = posttrain(*words, "answer=gold")
    assert done.returncode == 1 and "4 of 5 references score 1.0" in done.stderr
    assert done.stdout.startswith(f"{path}:4: 0, scored"), done.stdout
    made.pop(3)
    path.write_text("\n".join(map(json.dumps, made)))
    assert posttrain(*words, "answer=gold").stdout == "4 of 4 references score 1.0\n"
    wrong = posttrain(*words, "answer=glod")
    assert wrong.returncode == 2 and "set.jsonl:1: no column 'glod' (did you mean 'gold'?)" in wrong.stderr
    assert posttrain("check", "--file", str(path)).returncode == 2
