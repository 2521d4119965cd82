"""`posttrain prepare` names every row for which a run would refuse; the run stops at the first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.data import refusals
from tests.commands.prepared import facts_of, tables, write

GOOD = {"prompt": "1+1=", "completion": "2"}
WRONG = {"prompt": "1+1=", "completion": ["2"]}


def lines(answer) -> list[str]:
    assert answer.code == 2 and "Traceback" not in answer.err, answer
    return answer.err[answer.err.index("error: ") + 7 :].splitlines()


def numbered(path: Path, found: list[str]) -> list[int]:
    """The lines of `path` that sentences name."""
    return [int(said[len(f"{path}:") :].partition(":")[0]) for said in found if said.startswith(f"{path}:")]


@pytest.fixture
def several(tmp_path) -> Path:
    """300 rows, of which lines 100, 200 and 290 do not fit and line 250 is broken."""
    path = write(tmp_path / "several.jsonl", [WRONG if n in (100, 200, 290) else GOOD for n in range(1, 301)])
    written = path.read_text().splitlines()
    written[249] = '{"prompt": "a", "prompt": "b", "completion": "c"}'
    path.write_text("\n".join(written) + "\n")
    return path


@pytest.mark.parametrize("processes", [1, 3])
def test_every_refused_row_is_named(call, plain_recipe, several, tmp_path, processes):
    given = [f"data.sources.0.path={several}", f"data.num_proc={processes}"]
    answer = call("prepare", plain_recipe, *given)
    found = lines(answer)
    assert numbered(several, found) == [100, 200, 250, 290]
    assert found[2] == f"{several}:250: one object has the key 'prompt' twice; keep one of them"
    (last,) = found[4:]
    assert last.startswith("source 'rows': 4 rows are refused; repair them, or set on_error: skip on")
    assert not tables(tmp_path) and not list((tmp_path / "cache" / "tables").glob(".partial-*"))
    assert lines(call("prepare", plain_recipe, *given)) == found
    facts = facts_of(call("prepare", plain_recipe, *given, "data.sources.0.on_error=skip", "--json"))
    assert facts["sources"][0]["dropped"] == {"unreadable": 4}


def test_a_run_stops_at_the_first(call, plain_recipe, several):
    assert numbered(several, found := lines(call("run", plain_recipe, f"data.sources.0.path={several}"))) == [
        100
    ]
    assert len(found) == 1


def test_the_other_sources_are_looked_at_and_prepared(call, plain_recipe, several, tmp_path):
    good = write(tmp_path / "good.jsonl", [GOOD] * 9)
    none = write(tmp_path / "none.jsonl", [GOOD] * 70 + [WRONG])
    sources = ", ".join(f"{{name: {path.stem}, path: {path}}}" for path in (several, good, none))
    found = lines(call("prepare", plain_recipe, f"data.sources=[{sources}]"))
    assert numbered(several, found) == [100, 200, 250, 290] and numbered(none, found) == [71]
    assert len(found) == 6
    (table,) = {Path(name).parent for name in tables(tmp_path)}
    assert json.loads((tmp_path / table / "table.json").read_text())["rows_kept"] == 9


def test_what_is_said_is_bounded(call, plain_recipe, tmp_path, monkeypatch):
    path = write(tmp_path / "many.jsonl", [GOOD] + [WRONG] * 60)
    found = lines(call("prepare", plain_recipe, f"data.sources.0.path={path}"))
    assert numbered(path, found) == [*range(2, 22)]
    assert found[20:] == [
        "source 'rows': 60 rows are refused, of which the first 20 are named; repair them, or set on_error: "
        "skip on the source, which drops such rows"
    ]
    monkeypatch.setattr(refusals, "MOST", 30)
    write(path, [GOOD] + [WRONG] * 600)  # a chunk has 64 rows
    found = lines(call("prepare", plain_recipe, f"data.sources.0.path={path}"))
    assert "64 rows are refused, of which the first 20 are named; the rows behind them were not" in found[20]


SILENT, LONG = GOOD | {"completion": ""}, GOOD | {"completion": "x" * 400}


@pytest.mark.parametrize(
    ("rows", "given", "said"),
    [
        (
            [SILENT, WRONG, GOOD, LONG, SILENT, WRONG],
            ["data.sources.0.max_examples=6"],
            "2 rows are refused; of the others 3 would be dropped (no_completion 2, overlong 1); repair "
            "them,",
        ),
        (
            [SILENT, WRONG, GOOD, LONG, SILENT, WRONG],
            [],
            "2 rows are refused; of the rows behind the first of them 2 would be dropped (no_completion 1, "
            "overlong 1); repair them,",
        ),
        (
            [GOOD, WRONG, SILENT],
            [],
            "a row is refused; of the rows behind it 1 would be dropped (no_completion 1); repair it,",
        ),
        (
            [GOOD, WRONG, LONG, SILENT],
            ["data.overlong=truncate", "data.sources.0.max_examples=4"],
            "a row is refused; of the others 1 would be dropped (no_completion 1) and 1 would be cut "
            "(truncated); repair it,",
        ),
    ],
)
def test_rows_that_would_be_dropped_are_counted_by_reason(call, plain_recipe, tmp_path, rows, given, said):
    path = write(tmp_path / "mixed.jsonl", rows)
    settings = [f"data.sources.0.path={path}", "data.max_length=200", *given]
    found = lines(call("prepare", plain_recipe, *settings))
    assert numbered(path, found[:-1]) == [n for n, row in enumerate(rows, 1) if row is WRONG]
    assert found[-1].startswith(f"source 'rows': {said} or set on_error: skip on the source")


def test_of_max_examples_the_rows_that_are_read(call, plain_recipe, tmp_path):
    """Ten of a hundred rows, of which every second is wrong."""
    path = write(tmp_path / "half.jsonl", [GOOD, WRONG] * 50)
    given = [f"data.sources.0.path={path}", "data.sources.0.max_examples=10"]
    found = lines(call("prepare", plain_recipe, *given))
    assert 1 < len(numbered(path, found)) < 10
    assert found[0] == lines(call("run", plain_recipe, *given))[0]


def test_a_file_that_cannot_be_read_on(call, plain_recipe, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\n" + "a,b\n" * 80 + "a\n" + "a,b\n")
    found = lines(call("prepare", plain_recipe, f"data.sources.0.path={path}"))
    assert found == [f"{path}:82: 1 cells, but the header has 2 columns"]
    assert found == lines(call("run", plain_recipe, f"data.sources.0.path={path}"))


def test_where_too_many_rows_of_another_source_are_dropped(call, plain_recipe, several, tmp_path):
    empty = write(tmp_path / "empty.jsonl", [GOOD | {"completion": ""}] * 9)
    for order in ((several, empty), (empty, several)):
        sources = ", ".join(f"{{name: {path.stem}, path: {path}}}" for path in order)
        found = lines(call("prepare", plain_recipe, f"data.sources=[{sources}]"))
        assert numbered(several, found) == [100, 200, 250, 290]
        assert len([said for said in found if said.startswith("source 'empty': 9 of 9 rows")]) == 1


def test_what_is_the_same_of_all_rows_is_said_once(call, plain_recipe, tmp_path):
    given = ["data.template=tokenizer"]  # bytes have none
    found = lines(call("prepare", plain_recipe, *given))
    assert len(found) == 1 and found == lines(call("run", plain_recipe, *given))


def test_every_sentence_about_a_stage_of_a_pipeline_names_it(call, plain_recipe, several, tmp_path):
    path = tmp_path / "both.yaml"
    path.write_text(
        "pipeline: both\nstages:\n  - {name: one, recipe: case.yaml}\n"
        f"  - {{name: two, recipe: case.yaml, overrides: [data.sources.0.path={several}]}}\n"
    )
    found = lines(call("prepare", path))
    assert all(said.startswith(f"{path}: stage 'two': ") for said in found) and len(found) == 5
