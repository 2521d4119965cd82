"""What `posttrain prepare` prints: widths, bars, numbers, hostile text."""

from __future__ import annotations

import re

import pytest

from posttrain.commands.prepared_text import _place, amount, histogram
from tests.commands.prepared import LONG, write


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_and_bars_fit(call, plain_recipe, tmp_path, monkeypatch, columns):
    """Also with long names, many bins and a row as long as data.max_length (21 + 1 + 234 = 256)."""
    monkeypatch.setenv("COLUMNS", str(columns))
    rows = [{"prompt": "a", "completion": "x" * n, "id": n} for n in range(1, 235)]
    path = write(tmp_path / f"{'long-name-' * 8}.jsonl", [*rows, {"prompt": "a", "completion": ""}, LONG])
    name = "a-source-with-a-rather-long-name-for-a-table"
    answer = call("prepare", plain_recipe, f"data.sources.0.path={path}", f"data.sources.0.name={name}")
    assert answer.code == 0, answer
    lines = [line.rstrip() for line in answer.out.splitlines()]
    free = ("the run finds them in ", "lengths of ", f"{name}: unused id (234 rows)")
    assert all(len(line) <= min(columns, 100) for line in lines if "█" in line)
    assert all(len(line) <= columns for line in lines if not line.startswith(free))
    for end in ("jsonl:235:", "jsonl:236:"):  # a place stands whole in its line, cut in the middle
        assert any(re.search(rf" \S+….*{end}", line) for line in lines), answer.out
    start = next(i for i, line in enumerate(lines) if line.startswith("lengths of"))
    bars = lines[start + 1 : lines.index("", start)]
    assert 2 < len(bars) <= 13
    assert bars[-2].endswith(" <- data.max_length 256")
    assert bars[-1].split()[:3] == [">", "256", "1"] and bars[-1].endswith(" dropped")


def test_control_tokens_and_rows_of_tokens_are_said(call, plain_recipe, tmp_path):
    spelt = write(
        tmp_path / "spelt.jsonl",
        [{"prompt": "a <eos>", "completion": "x"}, {"prompt": "a", "completion": "x"}],
    )
    tokens = write(tmp_path / "tokens.jsonl", [{"input_ids": [1, 2, 3]}] * 3)
    said = {spelt: "rows: texts spell and become <eos> (1 row)", tokens: "rows: tokenised already (3 rows)"}
    for path, line in said.items():
        answer = call("prepare", plain_recipe, f"data.sources.0.path={path}")
        assert answer.code == 0, answer
        found = [
            each for each in answer.out.splitlines() if each.startswith(("rows: texts", "rows: tokenised"))
        ]
        assert found == [line]


def test_bars_without_block_characters():
    """Of 40 columns the numbers take 7 and the mark of data.max_length 21."""
    lengths = {"count": 11, "shortest": 1, "longest": 2, "median": 1.0, "bins": [[1, 1, 1], [2, 2, 10]]}
    source = {"name": "a", "lengths": lengths, "dropped": {}, "truncated": 0}
    source |= {"rows_read": 11, "rows_kept": 11}
    facts = {"max_length": 9, "shape": "rows", "sources": [source], "heldout_source": None}
    lines = histogram(facts, source, 40, False)
    assert lines == [
        "lengths of a: 11 rows, 1 to 2 tokens, median 1",
        "  1  1 #",
        "  2 10 ############",
        "  9    <- data.max_length",
    ]
    source |= {
        "dropped": {"overlong": 5},
        "truncated": 2,
        "rows_read": 16,
    }  # 40 - 9 - 21 columns are those of 10 rows
    lines = histogram(facts, source, 40, False)
    assert lines[1:] == [
        "    1  1 #",
        "    2 10 ##########",
        "    9    <- data.max_length",
        "  > 9  5 ##### dropped",
        "  > 9  2 ## cut, counted above",
    ]


def test_what_to_do_with_a_row_is_not_cut():
    """The sentence of an error of 299 characters; places are cut in the middle, to the columns there are."""
    said = {"where": f"/a/{'long/' * 20}rows.jsonl:3", "detail": "x" * 289 + " see there"}
    place = _place(said, 30)
    assert place == f"/a/long/l…g/long/rows.jsonl:3: {said['detail']}"
    assert place.index(": ") == 29  # the colon is the thirtieth
    assert _place({"where": "rows.jsonl:3", "detail": ""}, 16) == "rows.jsonl:3"


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"),
        (99_999, "99,999"),
        (456_400, "456 k"),
        (1_249_000, "1.2 M"),
        (34_000_000_000, "34 G"),
        (5 * 10**15, "5000 T"),
    ],
)
def test_amount(n, text):
    assert amount(n) == text


def test_text_of_the_data_does_nothing(call, plain_recipe, tmp_path):
    """Names of columns and files, names of sources and details, with markup and an escape sequence."""
    rows = [{"prompt": "a", "completion": "b", "[bold]\x1b[2J": 1}] * 30
    path = write(tmp_path / "[red]\x1b.jsonl", [*rows, {"prompt": "a", "completion": ""}])
    answer = call(
        "prepare",
        plain_recipe,
        f"data.sources.0.path='{tmp_path}/[[]red]*.jsonl'",
        "data.sources.0.name=[/b]x",
    )
    assert path.exists() and answer.code == 0, answer
    assert "\x1b" not in answer.out
    assert "[/b]x: unused [bold]\\x1b[2J (30 rows)" in answer.out
    assert "[red]\\x1b.jsonl:31" in "".join(answer.out.split())


def test_check_says_that_it_reads_only_some(call, plain_recipe):
    out = call("check", plain_recipe, "--rows", "2").out
    assert "read the first 2 rows of each source; `posttrain prepare` reads all" in out
    assert "read the first row of each source" in call("check", plain_recipe, "--rows", "1").out
