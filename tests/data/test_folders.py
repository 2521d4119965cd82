"""Folders that `datasets` saved, and globs over folders with links."""

from __future__ import annotations

import json

import pytest

from posttrain.data.sources import list_files, open_rows
from posttrain.errors import RequestError
from posttrain.recipe.schema import Source

ROWS = [{"text": f"row {n}"} for n in range(6)]


def source(path, **more) -> Source:
    return Source(name="numbers", path=str(path), **more)


def texts(path, **more) -> list[str]:
    return [row["text"] for _, row in open_rows(source(path, **more))]


def refused(message: str, path, **more) -> None:
    for read in (list_files, open_rows):
        with pytest.raises(RequestError, match=message):
            read(source(path, **more))


@pytest.fixture
def saved(tmp_path):
    """Six rows in three files, as `save_to_disk(num_shards=3)` writes them."""
    import datasets

    folder = tmp_path / "saved"
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder), num_shards=3)
    return folder


def edit(folder, **keys) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | keys))


def test_exactly_the_files_that_state_json_lists_are_read(saved):
    import datasets

    loaded = datasets.load_from_disk(str(saved))
    loaded.map(lambda row: {"text": row["text"].upper()})  # leaves cache-*.arrow in the folder
    loaded.filter(lambda row: row["text"] == "row 0")
    caches = sorted(path.name for path in saved.glob("cache-*.arrow"))
    (saved / "more.jsonl").write_text('{"text": "more"}\n')
    assert len(caches) == 2
    assert texts(saved) == [row["text"] for row in ROWS]
    names = [f"data-0000{n}-of-00003.arrow" for n in range(3)]
    assert [entry["path"] for entry in list_files(source(saved))] == [str(saved / name) for name in names]
    edit(saved, _data_files=[{"filename": names[n]} for n in (2, 0, 1)])
    assert texts(saved) == ["row 4", "row 5", *(f"row {n}" for n in range(4))]


@pytest.mark.parametrize(("listed", "lost"), [((0, 2), 1), ((1,), 0), ((1, 0), 2)])
def test_a_state_json_that_lists_fewer_files_than_there_were_is_refused(saved, listed, lost):
    """As a copy that was cut off leaves it; the files may still be there."""
    edit(saved, _data_files=[{"filename": f"data-0000{n}-of-00003.arrow"} for n in listed])
    missing = rf"data-0000{lost}-of-00003\.arrow is missing; copy the whole folder again, or set path to"
    refused(
        rf"source 'numbers': {saved}/state\.json lists {len(listed)} of 3 files, {missing} {saved}/", saved
    )
    (saved / f"data-0000{lost}-of-00003.arrow").unlink()
    assert len(texts(f"{saved}/data-*.arrow")) == 4


def test_choices_of_a_saved_set_are_whole(saved, tmp_path):
    """`num_examples` in their dataset_info.json is that of the set they were chosen from."""
    import datasets

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    loaded = datasets.load_dataset(
        "json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    loaded.filter(lambda row: row["text"] != "row 0").save_to_disk(str(tmp_path / "chosen"), num_shards=2)
    info = json.loads((tmp_path / "chosen" / "dataset_info.json").read_text())
    assert info["splits"]["train"]["num_examples"] == 6
    assert texts(tmp_path / "chosen") == [f"row {n}" for n in range(1, 6)]


def test_a_cache_folder_without_state_json_leaves_out_results_of_map(saved):
    (saved / "data-00000-of-00003.arrow").rename(saved / "cache-1234.arrow")
    (saved / "state.json").unlink()
    assert texts(saved) == ["row 2", "row 3", "row 4", "row 5"]


def test_state_json_of_another_kind_is_no_list_of_files(tmp_path):
    (tmp_path / "state.json").write_text('[{"text": "a"}]')
    assert texts(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"_data_files": [{"filename": "../outside.arrow"}]},
            r"lists '\.\./outside\.arrow', which is not an",
        ),
        ({"_data_files": [{"filename": "/etc/outside.arrow"}]}, r"lists '/etc/outside\.arrow', which is not"),
        ({"_data_files": [{"filename": "state.json"}]}, r"lists 'state\.json', which is not an \.arrow file"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, r"lists 'gone\.arrow', but there is no such file"),
        ({"_data_files": [{"filename": None}]}, r"lists None, which is not"),
        ({"_data_files": ["data-00000-of-00003.arrow"]}, r"lists None"),
        ({"_data_files": [{"filename": "data-00000-of-00003.arrow"}] * 2}, r"lists a file twice"),
        ({"_data_files": []}, r"state\.json is damaged: it lists no _data_files"),
        ({"_data_files": 3}, r"state\.json is damaged"),
        (
            {"_indices_files": [{"filename": "indices.arrow"}]},
            r"_indices_files.*flatten_indices\(\)\.save_to",
        ),
        ({"_indices_data_files": [{"filename": "i.arrow"}]}, r"flatten_indices\(\)"),
    ],
)
def test_a_damaged_state_json_is_one_sentence(saved, keys, message):
    (saved.parent / "outside.arrow").write_bytes((saved / "data-00000-of-00003.arrow").read_bytes())
    edit(saved, **keys)
    refused(f"source 'numbers': .*{message}", saved)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_state_json_that_is_no_object(saved, content):
    (saved / "state.json").write_bytes(content)
    refused(r"source 'numbers': .*saved/state\.json is damaged", saved)


def test_a_listed_file_that_is_damaged_is_named(saved):
    path = saved / "data-00001-of-00003.arrow"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RequestError, match=r"data-00001-of-00003\.arrow"):
        texts(saved)


def test_the_split_of_a_dataset_dict(tmp_path):
    import datasets

    whole = {"train": datasets.Dataset.from_list(ROWS[:2]), "test": datasets.Dataset.from_list(ROWS[2:])}
    datasets.DatasetDict(whole).save_to_disk(str(tmp_path / "both"))
    assert texts(tmp_path / "both") == ["row 0", "row 1"]
    assert texts(tmp_path / "both", split="test") == texts(tmp_path / "both" / "test")
    assert [entry["path"] for entry in list_files(source(tmp_path / "both", split="test"))] == [
        str(tmp_path / "both" / "test" / "data-00000-of-00001.arrow")
    ]
    refused(
        r"has the splits train, test, not 'tset' \(did you mean 'test'\?\)", tmp_path / "both", split="tset"
    )
    (tmp_path / "both" / "test" / "state.json").unlink()
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "dev", "../both/test"]}')
    refused(r"lists the split 'dev', but there is no such folder", tmp_path / "both", split="dev")
    refused(r"lists the split '\.\./both/test', but", tmp_path / "both", split="../both/test")
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": {"train": 1}}')
    refused(r"dataset_dict\.json is damaged", tmp_path / "both")


def test_links_that_lead_up_end_a_glob(tmp_path):
    """Two links to the folder itself: `glob.glob` would list each file 2^40 times."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for place in ("a", "deep/b", "deep/er/c", "elsewhere/d", "deep/.hidden"):
        (tmp_path / f"{place}.jsonl").write_text(json.dumps({"text": place}) + "\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "e.jsonl").write_text('{"text": "e"}\n')
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    (tmp_path / "deep" / "again").symlink_to(tmp_path / "deep")
    (tmp_path / "deep" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "deep" / "lost").symlink_to(tmp_path / "nowhere")
    assert texts(f"{tmp_path}/**/*.jsonl") == ["a", "deep/b", "deep/er/c", "elsewhere/d"]
    assert texts(f"{tmp_path}/deep/**/[b-d].jsonl") == ["deep/b", "deep/er/c", "elsewhere/d"]
    assert texts(f"{tmp_path}/*/**/er/*.jsonl") == ["deep/er/c"]
    assert texts(f"{tmp_path}/d*/*.jsonl") == ["deep/b"]
    (tmp_path / "self.jsonl").symlink_to(tmp_path / "self.jsonl")
    assert texts(f"{tmp_path}/*.jsonl") == ["a"]
    refused("no such file or folder", tmp_path / "self.jsonl")


def test_a_recursive_glob_finds_what_glob_finds(tmp_path):
    import glob

    for place in ("a.jsonl", "x/b.jsonl", "x/y/c.jsonl", "x/y/d.csv", ".x/e.jsonl", "x/.y/f.jsonl"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("text\na\n" if place.endswith("csv") else '{"text": "a"}\n')
    for pattern in (
        "**/*",
        "**/*.jsonl",
        "x/**/*.jsonl",
        "**/y/*",
        "**/x/**/c.jsonl",
        "**/.y/*",
        "*/**/?.jsonl",
    ):
        expected = [p for p in sorted(glob.glob(f"{tmp_path}/{pattern}", recursive=True)) if "." in p[-6:]]
        found = [entry["path"] for entry in list_files(source(f"{tmp_path}/{pattern}"))]
        assert sorted(found) == expected and found
