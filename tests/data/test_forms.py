"""Files of several shapes in one source are listed before they are read."""

from __future__ import annotations

import json

import pytest

from posttrain.data import readers
from posttrain.data.sources import list_files, open_rows
from posttrain.errors import RequestError
from posttrain.recipe.schema import Columns, Source

TALK = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
QUESTION = {"prompt": "1+1=", "completion": "2"}
PAIR = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}


def write(folder, **rows):
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")


def source(path, **more) -> Source:
    return Source(name="mixed", path=str(path), **more)


def test_the_shapes_are_listed_with_their_files(tmp_path):
    write(tmp_path, a=QUESTION, b={"messages": TALK}, c=QUESTION | {"more": 1}, d=QUESTION, e=QUESTION)
    (tmp_path / "f.csv").write_text("text\nhello\n")
    with pytest.raises(RequestError) as caught:
        open_rows(source(tmp_path))
    p = str(tmp_path)
    assert str(caught.value) == (
        f"source 'mixed': {p} has files of several shapes: "
        f"4 with a prompt ({p}/a.jsonl, {p}/c.jsonl, {p}/d.jsonl, ...; columns prompt, completion); "
        f"1 with messages ({p}/b.jsonl; columns messages); 1 with text ({p}/f.csv; columns text). "
        "Make one source of each"
    )
    with pytest.raises(RequestError, match="several shapes"):
        open_rows(source(tmp_path / "*.jsonl"))
    assert len(list_files(source(tmp_path))) == 6  # it reads no row


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (QUESTION, {"question": "1+1=", "answer": "2", "id": 3}, True),
        (QUESTION, {"prompt": "1+1="}, True),  # prompts, which need no completion
        ({"messages": TALK, "prompt": "x"}, {"conversations": TALK}, True),
        (PAIR, {"chosen": TALK, "rejected": TALK}, True),
        (PAIR, {"prompt": "1+1=", "completions": [{"text": "2", "rating": 1}]}, True),
        (PAIR, {"prompt": "1+1=", "completions": '[{"text": "2", "rating": 1}]'}, True),  # as in CSV
        (PAIR | {"completion": "2"}, PAIR, True),
        (PAIR | {"completion": "2"}, QUESTION, True),
        ({"q": 1}, {"r": 2}, True),
        (PAIR, QUESTION, False),
        (PAIR, {"messages": TALK}, False),
        ({"text": "a"}, QUESTION, False),
        ({"text": "a", "messages": TALK}, {"text": "a"}, False),
        ({"q": "1+1=", "a": "2"}, QUESTION, False),
        ({"input_ids": [1], "labels": [1]}, {"text": "a"}, False),
    ],
)
def test_what_counts_as_one_shape(tmp_path, a, b, same):
    write(tmp_path, a=a, b=b)
    if same:
        assert len(list(open_rows(source(tmp_path)))) == 2
        return
    with pytest.raises(
        RequestError, match=r"1 with .*a\.jsonl.*; 1 with .*b\.jsonl.*Make one source of each"
    ):
        open_rows(source(tmp_path))


def test_named_columns_format_and_ignore_decide(tmp_path):
    write(tmp_path, a={"text": "a", "messages": TALK}, b={"text": "b"})
    assert open_rows(source(tmp_path, format="text"))
    assert open_rows(source(tmp_path, columns=Columns(text="text")))
    assert open_rows(source(tmp_path, ignore=["messages"]))
    with pytest.raises(RequestError, match="several shapes"):
        open_rows(source(tmp_path, format="messages"))
    with pytest.raises(RequestError, match="several shapes"):
        open_rows(source(tmp_path, columns=Columns(messages="messages")))


def test_empty_files_have_no_shape_and_broken_ones_are_named(tmp_path):
    write(tmp_path, b=QUESTION)
    (tmp_path / "a.jsonl").write_text("\n")
    assert [row for _, row in open_rows(source(tmp_path))] == [QUESTION]
    (tmp_path / "c.jsonl").write_text("no\n")
    with pytest.raises(RequestError, match=r"c\.jsonl:1: broken JSON"):
        open_rows(source(tmp_path))


def test_only_the_first_row_of_each_file_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(QUESTION) + "\nbroken\n")
    (tmp_path / "b.json").write_text(f"\ufeff [ {json.dumps(QUESTION)}, broken")
    rows = open_rows(source(tmp_path))
    with pytest.raises(RequestError, match=r"a\.jsonl:2"):
        [row for _, row in rows]
    assert readers.first(tmp_path / "b.json") == (f"{tmp_path}/b.json[0]", QUESTION)
    for content, found in [("[]", None), (" \n", None), ('{"a": 1}\n{"a": 2}', {"a": 1})]:
        (tmp_path / "c.json").write_text(content)
        first = readers.first(tmp_path / "c.json")
        assert (first and first[1]) == found
    (tmp_path / "c.json").write_text("[3]")
    with pytest.raises(RequestError, match=r"c\.json\[0\]: a row must be a JSON object"):
        readers.first(tmp_path / "c.json")
