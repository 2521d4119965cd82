"""What the path of a source means: files here, a hub id, or a sentence that says what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.data.paths import source_files
from posttrain.errors import RequestError
from posttrain.recipe.schema import Source


def files_of(path) -> list[str] | None:
    found = source_files(Source(name="numbers", path=str(path)))
    return found if found is None else [str(file) for file in found]


def refusal(path) -> str:
    with pytest.raises(RequestError) as caught:
        files_of(path)
    return str(caught.value)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """The working folder, which is the home folder, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("data/b.jsonl", "data/a.jsonl", "data/deep/c.jsonl", "data/notes.txt", "rows.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "data" / "folder.jsonl").mkdir()
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("path", "files"),
    [
        ("rows.jsonl", ["rows.jsonl"]),
        ("./rows.jsonl", ["rows.jsonl"]),
        ("data", ["data/a.jsonl", "data/b.jsonl"]),
        ("data/*", ["data/a.jsonl", "data/b.jsonl"]),  # neither folders nor notes
        ("data/[b].jsonl", ["data/b.jsonl"]),
        ("data/**/*.jsonl", ["data/a.jsonl", "data/b.jsonl", "data/deep/c.jsonl"]),
        ("~/rows.jsonl", ["{home}/rows.jsonl"]),
        ("~/data", ["{home}/data/a.jsonl", "{home}/data/b.jsonl"]),
        ("~/data/?.jsonl", ["{home}/data/a.jsonl", "{home}/data/b.jsonl"]),
        ("file://{home}/rows.jsonl", ["{home}/rows.jsonl"]),
    ],
)
def test_files_are_found_and_sorted(here, path, files):
    assert files_of(path.format(home=here)) == [file.format(home=here) for file in files]


@pytest.mark.parametrize("path", ["org/name", "org-1/name.v2_x", "_o.r-g/n"])
def test_a_name_of_two_parts_that_is_no_file_is_a_hub_id(path):
    assert files_of(path) is None


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("org", "no such file or folder: org (one of: data, empty, rows.jsonl)"),
        ("org/", "no such file or folder: org (one of: data, empty, rows.jsonl)"),
        ("org/name/more", "no such file or folder: org/name/more (there is no org)"),
        ("org/na me", "no such file or folder: org/na me (there is no org)"),
        ("org/rows.jsonl", "no such file or folder: org/rows.jsonl (there is no org)"),
        ("./org/name", "no such file or folder: org/name (there is no org)"),
        (".org/name", "no such file or folder: .org/name (there is no .org)"),
        ("/org-of-none/name", "no such file or folder: /org-of-none/name (there is no /org-of-none)"),
        ("~/org/name", "no such file or folder: {home}/org/name (there is no {home}/org)"),
        ("row.jsonl", "no such file or folder: row.jsonl (did you mean 'rows.jsonl'?)"),
        ("dat/a.jsonl", "no such file or folder: dat/a.jsonl (there is no dat) (did you mean 'data'?)"),
        ("empty/a.jsonl", "no such file or folder: empty/a.jsonl (its folder is empty)"),
        ("$D/x", "no such file: $D/x ($NAME is not expanded in a recipe; write ${{oc.env:NAME}})"),
        ("data/*.csv", "no readable file matches data/*.csv"),
        ("data/*.txt", "no readable file matches data/*.txt"),
        ("data/folder*", "no readable file matches data/folder*"),
        ("data/notes.txt", "data/notes.txt does not end in one of .jsonl, "),
        (" ", "the path is empty (is an environment variable unset?)"),
    ],
)
def test_what_is_no_source_is_one_sentence(here, path, said):
    assert refusal(path).startswith(f"source 'numbers': {said.format(home=here)}")


def test_a_name_that_is_too_long():
    assert refusal(f"{'x' * 300}.jsonl") == f"source 'numbers': {'x' * 100}...: File name too long"


@pytest.mark.parametrize(("length", "dots"), [(100, ""), (101, "...")])
def test_a_path_is_shown_up_to_100_characters(length, dots):
    path = f"~nobody-of-this-name/{'x' * 200}"[:length]
    assert refusal(path).startswith(f"source 'numbers': {path[:100]}{dots}: ")
