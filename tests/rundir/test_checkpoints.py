"""Complete or not there: names, markers, rotation and references, without a trainer."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from posttrain.base.files import append_jsonl, hash_of
from posttrain.errors import RequestError
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.proof import digest, seal
from posttrain.rundir.scores import ScoreStore
from tests.rundir.written import stored


def make(folder: Path, step: int, complete: bool = True, **facts) -> Path:
    path = folder / ckpt.name_of(step)
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"w%d" % step)
    facts = {"step": step, "resumable": True} | seal(path) | facts
    (path / "checkpoint.json").write_text(json.dumps(facts))
    if complete:
        (path / "COMPLETE").write_text(hash_of(path / "checkpoint.json"))
    return path


def score(run: Path, step: int, value: float, metric: str = "pass@1") -> None:
    row = {"checkpoint": ckpt.name_of(step), "step": step, "task": "t", "metric": metric, "value": value}
    append_jsonl(run / "scores.jsonl", row)


def test_half_written_ones_are_skipped_with_a_message(tmp_path, caplog):
    make(tmp_path, 10)
    make(tmp_path, 20, complete=False)
    (tmp_path / ".tmp-step-000030").mkdir()
    (tmp_path / "notes").mkdir()
    with caplog.at_level(logging.WARNING):
        assert [c.step for c in ckpt.all_complete(tmp_path)] == [10]
    assert "step-000020 is half-written" in caplog.text
    make(tmp_path, 5, complete=False)  # half-rotated
    ckpt.remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes", "step-000010", "step-000020"]
    sound, damaged = ckpt.newest_sound(tmp_path, 99)
    assert sound.step == 10 and damaged == {"step-000020": "COMPLETE is missing"}


def test_steps_sort_by_number_beyond_six_digits(tmp_path):
    for step in (999_999, 1_000_000, 5):
        make(tmp_path, step)
    assert [c.step for c in ckpt.all_complete(tmp_path)] == [5, 999_999, 1_000_000]


def test_only_resumable_checkpoints_are_resumed(tmp_path):
    make(tmp_path, 0, resumable=False)
    assert ckpt.newest_sound(tmp_path, 99) == (None, {})
    make(tmp_path, 5)
    make(tmp_path, 9, resumable=False)
    assert ckpt.newest_sound(tmp_path, 99)[0].step == 5


def test_finish_seals_and_renames(tmp_path):
    tmp = tmp_path / ".tmp-step-000007"
    tmp.mkdir()
    (tmp / "model.safetensors").write_bytes(b"x")
    ckpt.finish(tmp, tmp_path / "step-000007", {"step": 7})
    assert ckpt.is_complete(tmp_path / "step-000007") and not tmp.exists()


def test_rotation_keeps_the_newest_and_the_named(tmp_path):
    for step in range(0, 50, 10):
        make(tmp_path, step)
    assert ckpt.rotate(tmp_path, None, set()) == []
    assert ckpt.rotate(tmp_path, 2, {"step-000010"}) == ["step-000000", "step-000020"]
    assert [c.step for c in ckpt.all_complete(tmp_path)] == [10, 30, 40]


def test_a_failing_write_leaves_nothing(tmp_path):
    tmp = tmp_path / ".tmp-step-000001"
    tmp.mkdir()
    with pytest.raises(OSError, match="disk"), ckpt.clean_on_error(tmp, True):
        (tmp / "half").touch()
        raise OSError("disk")
    assert not tmp.exists()


def test_digest_follows_content_and_name(tmp_path):
    a, b = make(tmp_path / "a", 1), make(tmp_path / "b", 1)
    assert digest(a) == digest(b) != ""
    (b / "model.safetensors").write_bytes(b"other")
    assert digest(a) != digest(b)
    (b / "model.safetensors").unlink()
    assert digest(b) == ""


def test_references_lead_to_checkpoints(tmp_path):
    run = tmp_path / "runs" / "a"
    for step in (10, 20, 30):
        make(run / "checkpoints", step)
    for step, value in ((10, 0.3), (20, 0.5), (30, 0.4)):
        score(run, step, value)
    place, parent = ckpt.resolve(str(run))
    assert Path(place).name == "step-000030" and parent == {"run": str(run), "checkpoint": "step-000030"}
    assert Path(ckpt.resolve(f"{run}@best:t/pass@1")[0]).name == "step-000020"
    assert Path(ckpt.resolve(f"{run}@step-000010")[0]).name == "step-000010"
    assert ckpt.resolve(str(run / "checkpoints" / "step-000010"))[1]["checkpoint"] == "step-000010"
    assert ckpt.resolve("org/model") == ("org/model", None)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("{run}@best:t/pass@7", "no score t/pass@7"),
        ("{run}@last", "best:<task>/<metric>"),
        ("{runs}/emty", "did you mean 'empty'?"),
        ("{runs}/empty", "no complete checkpoint yet"),
        ("{run}/checkpoints/step-000020", "half-written checkpoint"),
        ("{run}@best:t/gone", "step-000005 has the best t/gone but was deleted by rotation"),
    ],
)
def test_references_that_lead_nowhere(tmp_path, reference, expected):
    runs = tmp_path / "runs"
    make(runs / "a" / "checkpoints", 10)
    make(runs / "a" / "checkpoints", 20, complete=False)
    (runs / "empty" / "checkpoints").mkdir(parents=True)
    score(runs / "a", 10, 0.5)
    score(runs / "a", 5, 0.9, metric="gone")
    with pytest.raises(RequestError) as caught:
        ckpt.resolve(reference.format(run=runs / "a", runs=runs))
    assert expected in str(caught.value)


def test_best_breaks_ties_by_the_later_step(tmp_path):
    for step, value in ((1, 0.5), (2, 0.5), (3, 0.1)):
        score(tmp_path, step, value)
    assert ckpt.best(tmp_path, "t", "pass@1") == "step-000002"
    assert ckpt.best(tmp_path, "t", "pass@1", greater_is_better=False) == "step-000003"
    assert ckpt.best(tmp_path, "t", "other") is None


def test_best_compares_only_what_was_measured_alike(tmp_path):
    """A later look at one checkpoint under other settings (five problems, all right) does not win."""
    for step, value in ((1, 0.4), (2, 0.6), (3, 0.5)):
        score(tmp_path, step, value)
    row = {
        "checkpoint": "step-000001",
        "step": 1,
        "task": "t",
        "metric": "pass@1",
        "value": 1.0,
        "settings": "limit5",
    }
    append_jsonl(tmp_path / "scores.jsonl", row)
    assert ckpt.best(tmp_path, "t", "pass@1") == "step-000002"


def test_best_of_stored_scores(tmp_path):
    store = ScoreStore(tmp_path)
    assert ckpt.best(tmp_path, "arithmetic", "pass@1") is None
    store.append(
        [
            stored(1, value=0.2),
            stored(2, value=0.6),
            stored(3, value=0.4),
            stored(2, "nll", 1.0),
            stored(3, "nll", 3.0),
        ]
    )
    assert ckpt.best(tmp_path, "arithmetic", "pass@1") == "step-000002"
    assert ckpt.best(tmp_path, "arithmetic", "pass@1", greater_is_better=False) == "step-000001"
    assert ckpt.best(tmp_path, "arithmetic", "nll", greater_is_better=False) == "step-000002"


def test_a_kill_in_the_middle_of_rotation_leaves_no_part_under_its_name(tmp_path, monkeypatch):
    for step in (1, 2):
        make(tmp_path, step)

    def killed(path, **_) -> None:
        if Path(path).exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ckpt.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            ckpt.rotate(tmp_path, 1, set())
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-000002"]
    ckpt.remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000002"]
