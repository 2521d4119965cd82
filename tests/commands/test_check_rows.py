"""What `posttrain check --rows` says beside what is trained: refused rows, columns that are not used."""

from __future__ import annotations

import json

from tests.commands.prepared import write

GOOD = {"prompt": "1+1=", "completion": "2"}
WRONG = {"prompt": "1+1=", "completion": 3}


def test_rows_behind_a_refused_one_are_shown(call, plain_recipe, tmp_path):
    path = write(tmp_path / "rows.jsonl", [GOOD, WRONG, WRONG, GOOD])
    given = ("check", plain_recipe, f"data.sources.0.path={path}", "--rows", "4")
    answer = call(*given)
    assert answer.code == 2 and answer.out.count("[[2<|im_end|>]]") == 2
    assert answer.out.count("refused: 'completion' must be text, not a number (3)\n") == 2
    assert f"error: {path}:2: 'completion' must be text" in answer.err
    assert answer.err.rstrip().endswith("\n1 other row of these is refused, too")
    answer = call(*given, "--json")
    assert answer.code == 2
    rows = json.loads(answer.out)["rows"]
    assert [f"{path}:2: 'completion'" in row.get("refused", "") for row in rows] == [
        False,
        True,
        False,
        False,
    ]
    answer = call(*given, "data.sources.0.on_error=skip")
    assert answer.code == 0 and answer.out.count("dropped: unreadable: 'completion' must be") == 2


def test_a_broken_line_ends_nothing(call, plain_recipe, tmp_path):
    path = write(tmp_path / "rows.jsonl", [GOOD, GOOD])
    path.write_text(path.read_text().replace("\n", "\n{broken\n", 1))
    answer = call("check", plain_recipe, f"data.sources.0.path={path}", "--rows", "3")
    assert answer.code == 2 and answer.out.count("[[2<|im_end|>]]") == 2
    assert "refused: broken JSON" in answer.out and f"error: {path}:2: broken JSON" in answer.err


def test_columns_that_are_not_used_are_named_once(call, plain_recipe, tmp_path):
    path = write(
        tmp_path / "rows.jsonl", [GOOD | {"trajectory": "t"}, GOOD, GOOD | {"trajectory": "u", "n": 1}]
    )
    given = ("check", plain_recipe, f"data.sources.0.path={path}", "--rows", "3")
    assert call(*given).out.count("not used: trajectory, n\n") == 1
    rows = json.loads(call(*given, "--json").out)["rows"]
    assert [row["unused"] for row in rows] == [["trajectory"], [], ["trajectory", "n"]]


def test_the_place_of_a_row_stands_once(call, plain_recipe, tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": "{"}]
    path = write(tmp_path / "rows.jsonl", [GOOD, {"messages": turns}])
    answer = call("check", plain_recipe, f"data.sources.0.path={path}", "--rows", "2")
    assert "dropped: bad_call: column 'messages', message 1: '{' is not JSON\n" in answer.out
