"""Wrong recipes and wrong data: a sentence, exit 2, and nothing written. `check` and `run` say the same."""

from __future__ import annotations

import json
import os
import shutil

import pytest

WRONG_RECIPES = {
    "misspelt key": (["train.lerning_rate=1"], ["command line", "did you mean 'learning_rate'"]),
    "misspelt key in a list": (["data.sources.0.wieght=1"], ["data.sources[0].wieght", "'weight'"]),
    "wrong type": (["train.learning_rate=fast"], ["train.learning_rate must be a number, not 'fast'"]),
    "empty value": (["train.max_steps="], ["train.max_steps must be a whole number"]),
    "zero steps": (["train.max_steps=0"], ["train.max_steps = 0 must be above 0"]),
    "both lengths": (["train.num_train_epochs=1"], ["exactly one of num_train_epochs and max_steps"]),
    "bf16 and fp16": (["train.bf16=true", "train.fp16=true"], ["cannot both be true"]),
    "two starts": (["model.init=x/y"], ["exactly one of init"]),
    "index out of range": (
        ["data.sources.3.path=x"],
        ["'data.sources.3.path=x'", "data.sources has 1 item, numbered from 0"],
    ),
    "no sign": (["train.max_steps"], ["an override is written key=value"]),
    "no source": (["data.sources=[]"], ["add at least one source"]),
    "folder name": (["name=../x"], ["cannot be a folder name"]),
    "max_length above the model's": (["data.max_length=1000"], ["1000 is above the 512 positions"]),
    "unknown task": (["evaluate.tasks=[{name: gsm8q}]"], ["did you mean 'gsm8k'"]),
    "unknown metric": (
        ["evaluate.tasks=[{name: arithmetic}]", "checkpoints.keep_best={task: arithmetic, metric: pas@1}"],
        ["checkpoints.keep_best.metric = 'pas@1'", "did you mean 'pass@1'"],
    ),
    "unknown model field": (["model.from_config.options.hidden_siez=3"], ["'hidden_size'"]),
    "unknown extra": (["train.extra.loging_steps=3"], ["'logging_steps'"]),
    "output_dir is a file": (["output_dir=case.yaml"], ["output_dir", "case.yaml is a file"]),
    "output_dir below a file": (["output_dir=/dev/null/x"], ["/dev/null is a file"]),
}


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize("case", WRONG_RECIPES)
def test_wrong_recipe(call, plain_recipe, case, command):
    overrides, words = WRONG_RECIPES[case]
    before = sorted(os.listdir())
    call(command, plain_recipe, *overrides).refuses(*words)
    assert sorted(os.listdir()) == before


def test_all_that_is_wrong_is_said_at_once_with_its_line(call, plain_recipe):
    text = plain_recipe.read_text().replace("max_length", "max_lenght").replace("optim:", "optm:")
    plain_recipe.write_text(text.replace("  learning_rate: 0.5\n", ""))
    lines = {line.split(":")[0].strip(): n for n, line in enumerate(text.splitlines(), 1)}
    answer = call("check", plain_recipe)
    answer.refuses(
        f"case.yaml:{lines['max_lenght']}: data.max_lenght: unknown key 'max_lenght'",
        "train.optm: unknown key 'optm' (did you mean 'optim'?)",
        "train.learning_rate is missing; it takes a number",
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["no such recipe file (did you mean 'case.yaml'?)"]),
        ("folder", ["is a folder, not a recipe file; it contains inside.yaml"]),
        ("", ["a recipe is a mapping"]),
        ("- a\n", ["a recipe is a mapping"]),
        ("stage: sft\nname: [\n", ["cas.yaml:3:1: not valid YAML"]),
        ("stage: sft\nname: a\nname: b\n", ["cas.yaml:3:1", "duplicate key name"]),
        ("stage: sfft\n", ["stage = 'sfft' (did you mean 'sft'?)"]),
        ("name: x\n", ["stage is missing (one of: dpo, pairs, pass_rate, rlvr, sft)"]),
        (b"\xff\xfe", ["not UTF-8 text"]),
    ],
)
def test_wrong_file(call, plain_recipe, tmp_path, text, words):
    path = tmp_path / "cas.yaml"
    if text == "folder":
        path.mkdir()
        (path / "inside.yaml").touch()
    elif text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    call("check", path).refuses(*words)
    call("run", path).refuses(*words)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission_to_read(call, plain_recipe, rows_file, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows_file.read_text())
    rows.chmod(0)
    call("check", plain_recipe, f"data.sources.0.path={rows}").refuses(f"{rows}: cannot be read")
    plain_recipe.chmod(0)
    call("check", plain_recipe).refuses("cannot be read: Permission denied")


def test_what_the_machine_refuses_is_a_sentence(tmp_path, capsys):
    from posttrain.base.exit_codes import exit_code_of

    def refused():
        raise PermissionError(13, "Permission denied", "/data/rows.jsonl")

    assert exit_code_of(refused) == 1
    assert capsys.readouterr().err == "error: /data/rows.jsonl: Permission denied\n"
    with pytest.raises(FileNotFoundError):  # a file we expected: a defect keeps its traceback
        exit_code_of((tmp_path / "nothing").read_text)


GOOD = {"prompt": "a", "completion": "b", "answer": "b"}
BAD_DATA = {
    "no such file": (None, ["rows2.jsonl", "no such file"]),
    "empty": ("", ["rows2.jsonl has no rows"]),
    "broken first line": ("{oops\n", ["rows2.jsonl:1: broken JSON"]),
    "no answer": (
        '{"prompt": "a"}\n',
        ["rows2.jsonl:1", "with the completion was found", "columns.completion"],
    ),
    "a list": ("[1]\n", ["rows2.jsonl:1: a row must be a JSON object, not an array"]),
}


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_in_the_first_row(call, plain_recipe, tmp_path, case, command):
    text, words = BAD_DATA[case]
    path = tmp_path / "rows2.jsonl"
    if text is not None:
        path.write_text(text)
    before = sorted(os.listdir())
    call(command, plain_recipe, f"data.sources.0.path={path}").refuses(*words)
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("second", "overrides", "words"),
    [
        ("{oops", [], ["rows2.jsonl:2: broken JSON"]),
        ('{"prompt": "a"}', [], ["rows2.jsonl:2", "with the completion was found"]),
        (json.dumps(GOOD | {"completion": "x" * 400}), [], ["1 overlong", "raise data.max_length"]),
        (json.dumps(GOOD), ["data.max_length=4"], ["none is left to train on", "2 overlong"]),
        (
            json.dumps(GOOD),
            ["loss.name=confidence_limited", "loss.segment=answer", "loss.answer_marker='@@'"],
            ["2 no_answer_marker", "correct loss.answer_marker (now '@@')"],
        ),
        (json.dumps(GOOD), ["model.tokenizer=builtin:digits"], ["the tokenizer has no token for"]),
    ],
)
def test_bad_data_further_down_stops_the_run(call, plain_recipe, tmp_path, second, overrides, words):
    path = tmp_path / "rows2.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + second + "\n")
    call("run", plain_recipe, f"data.sources.0.path={path}", *overrides).refuses(*words)
    assert not (tmp_path / "case").exists()


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(
    ("init", "words"),
    [
        ("./nowhere", ["model.init: ./nowhere: no such run or path"]),
        ("empty", ["model.init: empty contains no model (no config.json)"]),
        ("run", ["model.init: run has no complete checkpoint yet"]),
    ],
)
def test_a_start_model_that_is_not_there(call, recipe, tmp_path, init, words, command):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    call(command, recipe, f"model.init={init}").refuses(*words)
    assert not (tmp_path / "case").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.lora={r: 4, target_modules: [nope]}"], ["model.lora.target_modules", "nope"]),
        (["model.lora={r: 4, options: {usedora: true}}"], ["model.lora.options", "usedora"]),
        (["model.options={foo: 3}"], ["model.init", "foo"]),
        (["train.report_to=[tensorbord]"], ["did you mean 'tensorboard'"]),
        (["train.optim=nope"], ["nope"]),
        (["data.template=chatlm"], ["did you mean 'chatml'"]),
        (["model.init=nosuchmodel"], ["no such folder here", "nosuchmodel"]),
        (["model.attention=flash_attention_2", "train.bf16=true"], ["package flash-attn,"]),
    ],
)
def test_what_only_the_libraries_know(call, recipe, overrides, words):
    call("run", recipe, *overrides).refuses(*words)


def test_world_size_that_does_not_divide(call, recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "3")
    call("run", recipe).refuses("cannot be split over 3 rank(s)", "multiple of 3")
    assert not (tmp_path / "case").exists()


def test_a_template_the_tokenizer_does_not_have(call, recipe, tiny, tmp_path):
    bare = shutil.copytree(tiny, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    call("run", recipe, f"model.init={bare}", "data.template=tokenizer").refuses(
        "has no chat template; set data.template to one of chatml"
    )
    call("chat", bare, stdin="hi\n").refuses("bare has no chat template")


def test_commands_for_other_recipes(call, plain_recipe, tmp_path):
    path = tmp_path / "pipe.yaml"
    path.write_text("pipeline: p\nstages: [{name: a, recipe: case.yaml}]\n")
    call("sft", path).refuses("is a pipeline recipe", "posttrain run")
    call("run", path, "--accelerate", "ddp.yaml").refuses("--accelerate ddp.yaml: no such file")
    (tmp_path / "ddp.yaml").touch()
    call("run", plain_recipe, "--accelerate", "dpp.yaml").refuses("did you mean 'ddp.yaml'")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("distributed_type: MULTI_GPU\nof_2030: 1\n", "had unknown keys (['of_2030']), please try upgrading"),
        ("distributed_type: NOPE\n", "'NOPE' is not a valid DistributedType"),
        ("", "'NoneType' object"),
        ("a: [", "while parsing a flow node"),
    ],
)
def test_a_config_of_another_accelerate(call, plain_recipe, tmp_path, text, words):
    config = tmp_path / "of_another.yaml"
    config.write_text(text)
    call("run", plain_recipe, "--accelerate", config).refuses(
        f"{config}: accelerate ", "cannot read it: ", words
    )
