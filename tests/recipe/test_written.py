"""What a resolver gives is used by its value and kept as it was written; running what is kept resolves it
again."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import yaml

from posttrain.base.files import plain
from posttrain.base.resolved import Resolved
from posttrain.data.problems import catalogue
from posttrain.errors import RequestError
from posttrain.recipe import as_written, changes, load, recipe_hash, to_dict, to_yaml
from posttrain.rundir.directory import RunDir
from posttrain.stages.stage_process import finished
from tests.recipe.minimal import MINIMAL, fails

TOKEN = "model.options={token: '${oc.env:A_TOKEN}'}"
LETTERS = {"A_TOKEN": "hf_SeCrEt123", "PLACE": "/data/here", "RATE": "3e-4", "SIZES": "{rank: 4}"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in LETTERS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("override", "path", "value", "text"),
    [
        (TOKEN, "model.options.token", "hf_SeCrEt123", "${oc.env:A_TOKEN}"),
        ("data.sources.0.path=${oc.env:PLACE}/a.jsonl", "data.sources.0.path", "/data/here/a.jsonl", None),
        ("train.learning_rate=${oc.env:RATE}", "train.learning_rate", 3e-4, "${oc.env:RATE}"),
        ("train.learning_rate=${oc.decode:${oc.env:RATE}}", "train.learning_rate", 3e-4, None),
        ("train.extra=${oc.decode:${oc.env:EXTRA}}", "train.extra", {"logging_first_step": True}, None),
        (
            "data.cache_dir=${oc.env:NO,'a}b'}/${name}",
            "data.cache_dir",
            "a}b/small",
            "${oc.env:NO,'a}b'}/small",
        ),
        ("data.cache_dir=${oc.env:${name}_X,d}", "data.cache_dir", "d", "${oc.env:small_X,d}"),
        ("data.cache_dir=${data.sources[0].path}/x", "data.cache_dir", "a.jsonl/x", "a.jsonl/x"),
    ],
)
def test_the_value_is_used_and_the_expression_is_kept(recipe, monkeypatch, override, path, value, text):
    monkeypatch.setenv("EXTRA", "{logging_first_step: true}")
    found = load(recipe, [override])
    assert at(to_dict(found), path) == value
    assert at(as_written(found), path) == (override.partition("=")[2] if text is None else text)
    again = recipe.with_name("recipe.yaml")
    again.write_text(to_yaml(found))
    assert load(again) == found and recipe_hash(load(again)) == recipe_hash(found)
    assert as_written(load(again)) == as_written(found)


def at(values, path):
    for key in path.split("."):
        values = values[int(key)] if key.isdigit() else values[key]
    return values


def test_an_expression_is_kept_wherever_a_key_leads_to_it(recipe):
    values = yaml.safe_load(MINIMAL)
    values["model"]["options"] = {"token": "${oc.env:A_TOKEN}"}
    values["data"]["cache_dir"] = "x-${model.options.token}"
    values["evaluate"] = {"heldout": {"source": "${data.sources.0}"}}
    values["data"]["sources"][0]["path"] = "${oc.env:PLACE}/a.jsonl"
    recipe.write_text(yaml.safe_dump(values))
    found = load(recipe)
    assert found.data.cache_dir == "x-hf_SeCrEt123"
    assert found.evaluate.heldout.source.path == "/data/here/a.jsonl"
    text = to_yaml(found)
    assert not any(value in text for value in LETTERS.values())
    assert as_written(found)["data"]["cache_dir"] == "x-${oc.env:A_TOKEN}"


def test_a_key_named_by_a_resolver(recipe, monkeypatch):
    """Nothing can be resolved in part then: every interpolation stays as it is."""
    monkeypatch.setenv("WHICH", "template")
    overrides = ["data.cache_dir=${data.${oc.env:WHICH}}", "data.template=chatml", TOKEN]
    found = load(recipe, overrides)
    assert found.data.cache_dir == "chatml"
    assert as_written(found)["data"]["cache_dir"] == "${data.${oc.env:WHICH}}"
    assert "SeCrEt" not in to_yaml(found)


def test_saved_again_it_is_resolved_again(recipe, monkeypatch):
    again = recipe.with_name("recipe.yaml")
    again.write_text(to_yaml(load(recipe, ["train.learning_rate=${oc.env:RATE}"])))
    monkeypatch.setenv("RATE", "1e-6")
    assert load(again).train.learning_rate == 1e-6
    monkeypatch.delenv("RATE")
    assert "Environment variable 'RATE' not found" in fails(again)


def test_the_place_of_a_run_is_kept_resolved(recipe, monkeypatch):
    """The same command, and its recipe.yaml, must find the same directory again."""
    monkeypatch.setenv("JOB", "17")
    found = load(recipe, ["name=run-${oc.env:JOB}", "output_dir=${oc.env:PLACE}/runs"])
    kept = as_written(found)
    assert (kept["name"], kept["output_dir"]) == ("run-17", "/data/here/runs")


def test_the_hash_is_of_the_value_but_for_credentials(recipe, monkeypatch):
    def hashed(*overrides: str) -> str:
        return recipe_hash(load(recipe, list(overrides)))

    rate, token = hashed("train.learning_rate=${oc.env:RATE}"), hashed(TOKEN)
    assert rate == hashed("train.learning_rate=3e-4"), "an earlier version hashed the value"
    monkeypatch.setenv("RATE", "1e-6")
    monkeypatch.setenv("A_TOKEN", "hf_renewed")
    assert hashed("train.learning_rate=${oc.env:RATE}") != rate
    assert hashed(TOKEN) == token != hashed()


def test_a_refusal_names_the_key_and_no_value(recipe, tmp_path, monkeypatch):
    overrides = ["data.sources.0.path=${oc.env:PLACE}/a.jsonl", TOKEN]
    run = RunDir(tmp_path / "run")
    run.start(load(recipe, overrides), {})
    run.metrics.touch()
    assert run.check_same(load(recipe, overrides))
    monkeypatch.setenv("PLACE", "/else/where")
    with pytest.raises(RequestError, match="data.sources.*may give another value now") as caught:
        run.check_same(load(recipe, overrides))
    assert not any(place in str(caught.value) for place in ("/data/here", "/else/where", "SeCrEt"))
    with pytest.raises(RequestError, match=r"train.seed: 42 -> 1"):
        run.check_same(load(recipe, [*overrides, "train.seed=1"]))


def test_recipes_that_an_earlier_version_saved_resolved(recipe):
    """Their values are equal to those of the same recipe now; one that differs is not shown."""
    now = load(recipe, ["data.sources.0.path=${oc.env:PLACE}/a.jsonl", "train.seed=3"])
    old = json.loads(json.dumps(to_dict(now)))
    assert changes(old, now) == {}
    old["data"]["sources"][0]["path"] = "/old/secret"
    expression = "${oc.env:PLACE}/a.jsonl"
    assert changes(old, now) == {"data.sources[0].path": (..., expression)}


def test_a_finished_stage_whose_scoring_may_differ_is_run_again(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMIT", "20")
    monkeypatch.setattr("posttrain.stages.stage_process._lacks_something", lambda *_: False)
    tasks = "evaluate.tasks=[{name: gsm8k, limit: '${oc.env:LIMIT}'}]"
    for override, done in (("train.learning_rate=${oc.env:RATE}", True), (tasks, False)):
        stage = load(recipe, [override, f"output_dir={tmp_path}"])
        run = RunDir(tmp_path / stage.name)
        run.start(stage, {})
        run.update(status="finished")
        assert finished(stage) is done


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "train.max_steps=${oc.env:A_TOKEN}",
            "train.max_steps must be a whole number, not '${oc.env:A_TOKEN}'",
        ),
        ("loss.name=${oc.env:A_TOKEN}", "loss.name = '${oc.env:A_TOKEN}'"),
        ("stage=${oc.env:A_TOKEN}", "stage = '${oc.env:A_TOKEN}'"),
        ("train.bf16=${oc.env:A_TOKEN}", "train.bf16 must be true or false, not '${oc.env:A_TOKEN}'"),
        ("model.tokenizer=builtin:${oc.env:A_TOKEN}", "model.tokenizer = 'builtin:${oc.env:A_TOKEN}'"),
        ("train.report_to=['${oc.env:A_TOKEN}']", "unknown integration '${oc.env:A_TOKEN}'"),
        ("train.learning_rate=${oc.decode:'hf_${oc.env:A_TOKEN}:['}", "its interpolation cannot be read"),
    ],
)
def test_errors_quote_the_expression(recipe, override, says):
    text = fails(recipe, override)
    assert says in text and "SeCrEt" not in text


def test_what_becomes_part_of_a_row_is_plain_text(recipe, tmp_path, monkeypatch):
    """Rows are saved: as expressions they would be trained on as such by the next stage."""
    (tmp_path / "made_rows.py").write_text("def rows(style: str):\n    return [{'prompt': style}]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "data.sources=[{name: a, generator: 'made_rows:rows', system: '${oc.env:PLACE}', %s}]"
    found = load(recipe, [source % "options: {style: '${oc.env:PLACE}'}"]).data.sources[0]
    rows = catalogue.generate(found.generator, found.options)
    assert plain([found.system, rows]) == ["/data/here", [{"prompt": "/data/here"}]]


def test_resolved_text_is_text():
    text = Resolved("value", "${oc.env:X}")
    assert text == "value" and f"{text}" == "value" and hash(text) == hash("value")
    assert repr([text]) == "['${oc.env:X}']" and plain({"a": [text]}) == {"a": ["${oc.env:X}"]}
    assert copy.deepcopy([text])[0].written == "${oc.env:X}"
    assert type(pickle.loads(pickle.dumps(text))) is str, "another process needs no posttrain"
