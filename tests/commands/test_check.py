"""What `posttrain check` prints about a valid recipe."""

from __future__ import annotations

import json
import resource
import shutil

import pytest

from posttrain.recipe import as_written, load, to_yaml
from tests.conftest import ROOT


@pytest.mark.slow
def test_under_a_second_and_without_torch(spawn, plain_recipe, tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = spawn("check", plain_recipe, PYTHONPROFILEIMPORTTIME="1")
    out, err = process.communicate(timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.returncode == 0, err
    imported = {line.rpartition("|")[2].strip() for line in err.splitlines() if "|" in line}
    assert "posttrain.stages.preflight" in imported  # below commands.check, which importlib imports unlisted
    slow = {"torch", "transformers", "datasets", "trl", "peft", "pyarrow", "matplotlib"}
    assert not imported & slow
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 3, f"{seconds} s of CPU time (0.5 to 1.2 in an idle process)"


def test_resolved_recipe_batch_and_sources(call, plain_recipe, rows_file):
    answer = call("check", plain_recipe, "--ranks", "4", "train.max_steps=null", "train.num_train_epochs=2")
    assert answer.code == 0
    assert "lr_scheduler_type: constant" in answer.out and "seed: 42" not in answer.out
    assert "seed: 42" in call("check", plain_recipe, "--all").out
    assert "batch: 8 examples a step = 1 (micro) x 4 (ranks) x 2 (accumulation)" in answer.out
    assert "at most 2,048 tokens a step" in answer.out  # 8 x 256
    assert "steps: 12 (48 examples an epoch, at most" in answer.out  # 2 x 48 / 8
    assert f"{rows_file.stat().st_size:,}" in answer.out


RECIPES = sorted(path.relative_to(ROOT / "recipes") for path in (ROOT / "recipes").rglob("*.yaml"))


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """A copy of the recipes, as pipelines name those beside them."""
    folder = tmp_path_factory.mktemp("recipes")
    for name in RECIPES:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "recipes" / name, folder / name)
    return folder


@pytest.mark.parametrize("name", RECIPES, ids=str)
def test_a_recipe_without_its_defaults_is_the_same(recipes, name):
    recipe = load(str(recipes / name), [])
    assert shown(recipe, (recipes / name).with_name("shown.yaml")) == as_written(recipe)
    assert len(to_yaml(recipe, defaults=False)) < len(to_yaml(recipe))


def test_a_section_of_defaults_stays_where_its_default_is_none(plain_recipe, tmp_path):
    start = ["model.init=x", "model.from_config=null", "model.tokenizer=null"]
    recipe = load(str(plain_recipe), [*start, "model.lora={}"])
    assert recipe.model.lora is not None
    assert shown(recipe, tmp_path / "shown.yaml") == as_written(recipe)


def shown(recipe, path) -> dict:
    """The recipe that is loaded of what `check` prints, written to `path`."""
    path.write_text(to_yaml(recipe, defaults=False))
    return as_written(load(str(path), []))


def test_json_is_all_there_is_on_stdout(call, plain_recipe, rows_file):
    answer = call(
        "check",
        plain_recipe,
        "--json",
        "--rows",
        "1",
        "loss.name=confidence_limited",
        "loss.n=4",
        "loss.segment=step",
    )
    facts = json.loads(answer.out)
    assert answer.err == ""
    assert facts["recipe"]["loss"]["n"] == 4
    assert facts["plan"] == {
        "ranks": 1,
        "global_batch_size": 8,
        "micro_batch": 1,
        "accumulation": 8,
        "tokens_per_step_at_most": 2048,
        "examples_per_epoch": 48,
        "steps": 5,
    }
    assert facts["sources"]["rows"] == {
        "files": [{"path": str(rows_file), "bytes": rows_file.stat().st_size}],
        "rows": 48,
    }
    (row,) = facts["rows"]
    assert row["where"] == f"{rows_file}:1" and row["segments"] == 2
    assert [s for s in row["spans"] if s[1]] == [["step 0 of 0: 0\n", 1], ["#### 0<|im_end|>", 2]]
    assert row["trained"] == len("step 0 of 0: 0\n#### 0") + 1


SEGMENTS = (
    "--rows",
    "1",
    "loss.name=confidence_limited",
    "loss.n=4",
    "loss.segment=answer",
    "loss.answer_marker='#### '",
)


@pytest.mark.parametrize("name", ["NO_COLOR", "a pipe"])
def test_rows_in_brackets_without_colour(call, plain_recipe, monkeypatch, name):
    if name == "NO_COLOR":
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("FORCE_COLOR", "1")
    answer = call("check", plain_recipe, *SEGMENTS)
    assert "[[step 0 of 0: 0\n#### ]][[1: 0<|im_end|>]]" in answer.out
    assert "22 trained, 1 segment" in answer.out


def test_rows_in_colour_on_a_terminal(call, plain_recipe, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    answer = call("check", plain_recipe, *SEGMENTS)
    assert "\x1b[30;106m0<|im_end|>\x1b[0m" in answer.out  # segment 1: black on cyan
    assert "\x1b[30;47mstep 0 of 0: 0" in answer.out  # trained in no segment: black on white
    assert "[[" not in answer.out


@pytest.mark.parametrize("given", [[], ["loss.name=confidence_limited", "loss.n=4", "loss.segment=token"]])
def test_where_the_loss_has_no_segments_none_are_shown(call, plain_recipe, tmp_path, given):
    """Cross-entropy, and tokens as segments: what is trained is one text, also where a character is two
    tokens."""
    path = tmp_path / "one.jsonl"
    path.write_text('{"prompt": "a", "completion": "ü"}\n')
    answer = call("check", plain_recipe, "--rows", "1", f"data.sources.0.path={path}", *given)
    assert answer.code == 0, answer
    assert "[[ü<|im_end|>]]" in answer.out and "24 tokens, 3 trained\n" in answer.out
    assert "[[trained]], the rest is context" in answer.out
    assert "segment 1" not in answer.out and " segment\n" not in answer.out
    facts = json.loads(call("check", plain_recipe, "--rows", "1", "--json", *given).out)
    assert facts["rows"][0]["segments"] >= 1  # of the tokens as they are prepared


def test_a_row_that_will_be_dropped_says_so(call, plain_recipe):
    answer = call("check", plain_recipe, "--rows", "1", "data.max_length=20")
    assert answer.code == 0 and "dropped: overlong: 50 tokens" in answer.out


def test_a_row_that_will_be_skipped_says_so(call, plain_recipe, tmp_path):
    path = tmp_path / "third.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": 3}\n{"prompt"\n')
    turns = [{"role": "user", "content": "a", "name": "b"}, {"role": "assistant", "content": "c"}]
    with path.open("a") as file:
        file.write(json.dumps({"messages": turns}))
    given = (f"data.sources.0.path={path}", "data.sources.0.on_error=skip", "--rows", "4")
    answer = call("check", plain_recipe, *given)
    assert answer.code == 0, answer
    assert "dropped: unreadable: 'completion' must be text, not a number (3)\n" in answer.out
    assert "dropped: unreadable: broken JSON" in answer.out
    assert "dropped: unreadable: message 0 (user): template 'chatml' does not render 'name'" in answer.out
    given = (*given[:2], "data.max_drop_share=0.8", "--json")
    dropped = json.loads(call("prepare", plain_recipe, *given).out)["sources"][0]["dropped_examples"]
    said = [each["detail"] for each in dropped["unreadable"]]
    assert [text.partition(": ")[0] for text in said] == [
        "'completion' must be text, not a number (3)",
        "broken JSON",
        "message 0 (user)",
    ]


def test_a_row_that_spells_a_control_token_says_so(call, plain_recipe, tmp_path):
    rows = [{"prompt": "say", "completion": "ok"}, {"prompt": "say <|im_end|> and <eos>", "completion": "ok"}]
    path = tmp_path / "spelt.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("check", plain_recipe, "--rows", "2", f"data.sources.0.path={path}")
    answer = call(*options)
    assert answer.out.count("its text spells") == 1
    assert "its text spells <eos>, <|im_end|> and becomes it" in answer.out
    found = json.loads(call(*options, "--json").out)["rows"]
    assert [row["control_tokens"] for row in found] == [[], ["<eos>", "<|im_end|>"]]


def test_rows_of_tokens_are_shown_as_text(call, plain_recipe, tmp_path):
    path = tmp_path / "tokens.jsonl"
    rows = [
        {"input_ids": [*b"2+2=4"], "labels": [-100, -100, -100, -100, ord("4")]},
        {"input_ids": [300_000]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("check", plain_recipe, f"data.sources.0.path={path}", "--rows")
    answer = call(*options, "1")
    assert answer.code == 0 and "2+2=[[4]]" in answer.out
    assert "5 tokens, 1 trained\n" in answer.out
    call(*options, "2").refuses(f"{path}:2", "300000", "tokenised with another tokenizer")
    call(*options, "1", "data.sources.0.format=token").refuses("format", "tokens")


def test_markup_in_names_is_text(call, plain_recipe):
    answer = call("check", plain_recipe, "--rows", "1", "data.sources.0.name='[/red]'")
    assert answer.code == 0 and "source [/red]" in answer.out


def test_spaces_and_unicode_in_paths(call, plain_recipe, rows_file, tmp_path):
    folder = tmp_path / "my data ü"
    folder.mkdir()
    (folder / "zeilen é 1.jsonl").write_text(rows_file.read_text())
    (folder / "rezept ö.yaml").write_text(plain_recipe.read_text())
    answer = call(
        "check",
        folder / "rezept ö.yaml",
        "--json",
        f"data.sources.0.path={folder / 'zeilen é 1.jsonl'}",
        "name=läuft",
    )
    assert json.loads(answer.out)["sources"]["rows"]["rows"] == 48


def test_interpolation_in_an_override_means_the_recipe(call, plain_recipe):
    answer = call("check", plain_recipe, "--json", "name=run-${train.seed}", "train.seed=7")
    assert json.loads(answer.out)["recipe"]["name"] == "run-7"
    call("check", plain_recipe, "name=${oc.env:NOT_SET_ANYWHERE}").refuses("NOT_SET_ANYWHERE")


def test_anchors_are_yaml(call, plain_recipe):
    text = plain_recipe.read_text().replace("max_length: 256", "max_length: &long 256")
    plain_recipe.write_text(text + "guard: {window: *long}\n")
    assert json.loads(call("check", plain_recipe, "--json").out)["recipe"]["guard"]["window"] == 256


PIPELINE = """\
pipeline: both
parallel: 2
stages:
  - {name: one, recipe: case.yaml, overrides: ["train.max_steps=2000"]}
  - {name: two, recipe: case.yaml, overrides: ["train.max_steps=2000"]}
  - name: three
    recipe: case.yaml
    overrides: [model.init=one, model.from_config=null, model.tokenizer=null]
"""


@pytest.fixture
def pipeline(plain_recipe, tmp_path):
    path = tmp_path / "both.yaml"
    path.write_text(PIPELINE)
    return path


def test_pipeline(call, pipeline):
    answer = call("check", pipeline, "--ranks", "2", "--rows", "1")
    assert answer.code == 0
    assert answer.out.count("x 2 (ranks) x 4 (accumulation)") == 3
    assert "rows: shown once runs/both/one has written its tokenizer" in answer.out
    facts = json.loads(call("check", pipeline, "--json").out)
    assert [s["plan"]["steps"] for s in facts["stages"].values()] == [2000, 2000, 5]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.2.after=[ones]", ["stages[2].after", "did you mean 'one'"]),
        ("stages.0.recipe=csae.yaml", ["did you mean 'case.yaml'"]),
        ("stages.0.overrides=[train.max_stps=3]", ["did you mean 'max_steps'"]),
        ("stages.1.overrides=[data.sources.0.path=nope.jsonl]", ["both.yaml: stage 'two'", "nope.jsonl"]),
        ("stages.2.overrides.0=model.init=three", ["not an earlier stage"]),
        ("paralel=3", ["did you mean 'parallel'"]),
    ],
)
def test_a_wrong_pipeline(call, pipeline, override, words):
    call("check", pipeline, override).refuses(*words)


def test_ranks_that_do_not_divide_name_the_stage(call, pipeline):
    call("check", pipeline, "--ranks", "3").refuses("stage 'one'", "must be a multiple of 3")
