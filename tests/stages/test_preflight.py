"""Checks before anything is loaded: the packages of loggers, and who says whether there is a GPU."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from types import SimpleNamespace

import pytest
from transformers.integrations import integration_utils

from posttrain.errors import RequestError
from posttrain.recipe import load_stage
from posttrain.recipe.build import Problems
from posttrain.stages.loggers import SERVER, SWITCHES, loggers
from posttrain.stages.preflight import preflight
from tests.tiny import RECIPE, tiny_model, write_rows
from tests.training.preferences import write_recipe as write_pairs
from tests.training.rollouts import write_recipe

AT_IMPORT = {"comet_ml", "neptune"}
"""Loggers of which transformers decides once, while it is imported, whether they are there."""
ASKED = {"azure_ml": "azureml", "flyte": "flytekit"}
"""Loggers whose package has another name."""
PACKAGES = ("azureml", "flytekit", "mlflow", "tensorboardX")
"""Packages that decide about a logger of another name."""
LOGGERS = sorted(set(integration_utils.INTEGRATION_TO_CALLBACK) - AT_IMPORT)


@pytest.fixture
def recipe(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", 8)
    path = tmp_path / "case.yaml"
    path.write_text(RECIPE.format(out=tmp_path, model=tiny_model(tmp_path / "model"), rows=rows))
    return path


@pytest.fixture
def installed(monkeypatch):
    """`installed(*names)`: of the packages of all loggers, these are there."""
    packages = {*PACKAGES, *LOGGERS, *AT_IMPORT}
    plain = importlib.util.find_spec

    def only(*names: str) -> None:
        def find(name: str, package: str | None = None):
            top = name.partition(".")[0]
            there = SimpleNamespace(origin=f"{top}/__init__.py")
            return (there if top in names else None) if top in packages else plain(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", find)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://dagshub.com/someone/something.mlflow")
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=None))
    monkeypatch.delenv(SERVER, raising=False)
    return only


def accepted(logger: str) -> bool:
    loggers([logger], problems := Problems())
    return not problems


@pytest.mark.parametrize("logger", LOGGERS)
def test_a_logger_is_there_where_transformers_finds_it(installed, monkeypatch, logger):
    available = getattr(integration_utils, f"is_{ASKED.get(logger, logger)}_available")
    packages = {*PACKAGES, logger}
    seen = set()
    for server in (False, True):
        if server:
            monkeypatch.setenv(SERVER, "http://trainer")
        for count in range(len(packages) + 1):
            for names in itertools.combinations(sorted(packages), count):
                installed(*names)
                assert accepted(logger) == available(), (names, server)
                seen.add(available())
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("logger", "words"),
    [
        ("wandb", "wandb needs the package wandb, which is not installed"),
        ("neptune", "neptune needs the package neptune, which is not installed"),
        ("tensorboard", "tensorboard needs the package tensorboard or tensorboardX, which is not installed"),
        ("kubeflow", "kubeflow needs the environment variable KUBEFLOW_TRAINER_SERVER_URL, which is not set"),
    ],
)
def test_what_is_missing_is_named(recipe, installed, logger, words):
    installed()
    with pytest.raises(RequestError, match=f"train.report_to: {words}"):
        preflight(load_stage(recipe, [f"train.report_to=[{logger}]"], "sft"))


@pytest.mark.parametrize("logger", sorted(SWITCHES))
def test_a_logger_that_the_environment_switches_off(installed, monkeypatch, logger):
    installed(logger)
    monkeypatch.setenv(SERVER, "http://trainer")
    available = getattr(integration_utils, f"is_{logger}_available")
    for value, there in (("FALSE", True), ("true", False)):
        monkeypatch.setenv(SWITCHES[logger], value)
        assert accepted(logger) == available() == there


def test_a_folder_with_the_name_of_a_package_is_none(recipe, tmp_path, monkeypatch):
    """wandb writes its runs into one; a stage that is started beside it finds it first on its path."""
    (tmp_path / "here" / "trackio" / "run-1").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    assert integration_utils.is_trackio_available(), "transformers takes it for the package"
    with pytest.raises(RequestError, match="the package trackio, which is not installed .*here/trackio only"):
        preflight(load_stage(recipe, ["train.report_to=[trackio]"], "sft"))


@pytest.mark.parametrize("logger", ["mlflow", "tensorboard", "dvclive"])
def test_all_beside_such_a_folder(recipe, tmp_path, monkeypatch, logger):
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name in LOGGERS else plain(name)
    )
    preflight(load_stage(recipe, ["train.report_to=[all]"], "sft"))  # nothing is installed: nothing is asked
    (tmp_path / "here" / logger / "run-1").mkdir(parents=True)
    folder = SimpleNamespace(origin=None, submodule_search_locations=[str(tmp_path / "here" / logger)])
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: folder if name == logger else plain(name)
    )
    assert getattr(integration_utils, f"is_{logger}_available")(), "transformers takes it for the package"
    with pytest.raises(RequestError) as caught:
        preflight(load_stage(recipe, ["train.report_to=[all]"], "sft"))
    assert f"train.report_to: of all, {logger} needs the package {logger}" in str(caught.value)
    assert "only has its name); rename the folder, or list the loggers" in str(caught.value)


@pytest.mark.parametrize(
    ("logger", "variable", "value"),
    [
        ("comet_ml", "COMET_API_KEY", "key"),
        ("comet_ml", "COMET_START_ONLINE", "0"),
        ("dagshub", "MLFLOW_TRACKING_URI", "https://dagshub.com/someone/something.mlflow"),
    ],
)
def test_a_logger_without_its_settings(installed, tmp_path, monkeypatch, logger, variable, value):
    """They are read when training begins: a traceback, after the model is loaded."""
    installed(logger, "mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("COMET_API_KEY", "COMET_CONFIG", "COMET_START_ONLINE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    loggers([logger], problems := Problems())
    assert "needs the environment variable" in str(problems.found[0])
    monkeypatch.setenv(variable, value)
    assert accepted(logger)
    if logger == "dagshub":
        monkeypatch.setenv(variable, "mlruns")
        assert not accepted(logger)
    else:
        monkeypatch.delenv(variable)
        (tmp_path / ".comet.config").touch()
        assert accepted(logger)


def test_a_stage_that_has_asked_torch_is_believed(recipe):
    """Without it the devices of this machine would be looked for once more, with another answer for a GPU
    that is not an NVIDIA one."""
    text = recipe.read_text().replace("stage: sft", "stage: rlvr")
    recipe.write_text(f"{text}rewards: [{{name: math}}]\nrollout: {{num_generations: 4}}\n")
    served = load_stage(recipe, ["rollout.backend=vllm_server", "rollout.max_new_tokens=8"], "rlvr")
    preflight(served, on_cpu=lambda: None)
    with pytest.raises(RequestError, match="needs a GPU for the policy \\(torch finds none\\)"):
        preflight(served, on_cpu=lambda: "torch finds none")


def test_a_first_row_that_is_skipped_is_none_to_judge_by(recipe, tmp_path):
    """Of a hundred rows one must fit."""
    rows, skip = tmp_path / "rows.jsonl", "data.sources.0.on_error=skip"
    good = rows.read_text()
    for bad in ('{"prompt": 5, "completion": "b"}\n', "{\n"):
        rows.write_text(bad + good)
        preflight(load_stage(recipe, [skip], "sft"))
        with pytest.raises(RequestError, match="rows.jsonl:1: "):
            preflight(load_stage(recipe, [], "sft"))
    rows.write_text('{"prompt": 5, "completion": "b"}\n' * 100 + good)
    with pytest.raises(RequestError, match="rows.jsonl:1: "):
        preflight(load_stage(recipe, [skip], "sft"))
    rows.write_text("{\n" * 300)
    with pytest.raises(RequestError, match="no row can be read: .*rows.jsonl:1: broken JSON"):
        preflight(load_stage(recipe, [skip], "sft"))


def test_every_row_of_a_task_is_read(recipe, tmp_path):
    """A missing answer far behind the first rows would end the run at its first score."""
    rows = tmp_path / "asked.jsonl"
    lines = [json.dumps({"question": f"{i}?", "answer": str(i)}) + "\n" for i in range(900)]
    rows.write_text("".join(lines))
    tasks = f"evaluate.tasks=[{{name: gsm8k, path: {rows}, limit: 5}}]"
    preflight(load_stage(recipe, [tasks], "sft"))
    lines[816] = json.dumps({"question": "816?", "answer": None}) + "\n"
    rows.write_text("".join(lines))
    with pytest.raises(RequestError, match=r"evaluate\.tasks\[0\]: .*asked\.jsonl:817: .*'None'"):
        preflight(load_stage(recipe, [tasks], "sft"))


def test_rows_of_a_task_are_read_once(recipe, tmp_path, monkeypatch):
    """Each run of a sweep would read them again."""
    from posttrain.evaluate.tasks.file_task import FileTask

    rows, read, plain = tmp_path / "asked.jsonl", [], FileTask.problems
    monkeypatch.setattr(FileTask, "problems", lambda task: read.append(task.task.name) or plain(task))
    for answers in (("1", "2"), ("1", "2"), ("1", "3", "4")):
        rows.write_text("".join(json.dumps({"question": "?", "answer": a}) + "\n" for a in answers))
        for options in ("{}", "{system: Think.}"):
            for _ in range(3):
                task = f"evaluate.tasks=[{{name: gsm8k, path: {rows}, options: {options}}}]"
                preflight(load_stage(recipe, [task], "sft"))
    assert len(read) == 6


# ---- the config of the start model -------------------------------------------------------------------------


def changed(folder, **values) -> None:
    """Writes `values` to the config of the model in `folder`."""
    path = folder / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_sampling_across_the_switch_of_longrope(tmp_path, key):
    """Samples would have other probabilities."""
    rope = {key: {"rope_type": "longrope"}, "original_max_position_embeddings": 132}
    path = write_recipe(tmp_path, tiny_model(tmp_path / "model"))
    changed(tmp_path, **rope)
    preflight(load_stage(str(path), ["data.max_length=120"], "rlvr"))
    with pytest.raises(RequestError, match=r"max_length = 121 .* = 12 are above the 132 .*; lower data.max"):
        preflight(load_stage(str(path), ["data.max_length=121"], "rlvr"))


def test_positions_and_longrope_of_a_nested_config(tmp_path):
    """Those of the text model decide, not those around it; an option of the recipe over both."""
    path = write_recipe(tmp_path, tiny_model(tmp_path / "model"))
    text = {"rope_parameters": {"rope_type": "longrope"}, "original_max_position_embeddings": 132}
    changed(tmp_path, max_position_embeddings=9, text_config=text | {"max_position_embeddings": 140})
    preflight(load_stage(str(path), ["data.max_length=120"], "rlvr"))
    for length, limit in ((121, "132 tokens beyond"), (129, "140 positions")):
        with pytest.raises(RequestError, match=f"max_length = {length} and .* are above the {limit}"):
            preflight(load_stage(str(path), [f"data.max_length={length}"], "rlvr"))
    options = "model.options={original_max_position_embeddings: 133}"
    preflight(load_stage(str(path), ["data.max_length=121", options], "rlvr"))


def test_rows_on_both_sides_of_the_switch_of_longrope(recipe, tmp_path):
    """The factors are those of the longest row of a micro-batch; where both sets are one, nothing changes."""
    rope = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
    two = "train.per_device_train_batch_size=2"
    changed(tmp_path, rope_parameters=rope, original_max_position_embeddings=256)
    preflight(load_stage(str(recipe), [two], "sft"))
    changed(tmp_path, original_max_position_embeddings=255)
    for more in (two, "data.padding_free=true", "evaluate.heldout={share: 0.1}"):
        with pytest.raises(
            RequestError, match="= 256 is above the 255 tokens .*; lower data.max_length to 255"
        ):
            preflight(load_stage(str(recipe), [more], "sft"))
    preflight(load_stage(str(recipe), ["train.per_device_train_batch_size=1"], "sft"))  # each row by itself
    changed(tmp_path, rope_parameters=None, rope_scaling=rope)
    one = "model.options={rope_parameters: {rope_type: longrope, short_factor: [2.0], long_factor: [2.0]}}"
    preflight(load_stage(str(recipe), [two, one], "sft"))


def test_a_balancing_loss_in_a_dpo_stage(tmp_path):
    path = write_pairs(tmp_path, tiny_model(tmp_path / "model"))
    changed(tmp_path, output_router_logits=True, router_aux_loss_coef=0.1)
    with pytest.raises(
        RequestError, match="which a dpo stage does not have; set model.options.output_router_"
    ):
        preflight(load_stage(str(path), [], "dpo"))
    for option in ("output_router_logits: false", "router_aux_loss_coef: 0"):
        preflight(load_stage(str(path), [f"model.options={{{option}}}"], "dpo"))
