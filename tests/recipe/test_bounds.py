"""Numbers that nothing can compute with and names that no file can have are refused, each by one sentence."""

from __future__ import annotations

import pytest
import yaml

from posttrain.base.printable import UNSAFE
from posttrain.errors import RequestError
from posttrain.recipe import load
from tests.recipe.minimal import MINIMAL, fails

TASKS = "evaluate.tasks=[{name: gsm8k, %s}]"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.max_steps=1e20", "train.max_steps = 100000000000000000000 must be at most 2,147,483,647"),
        ("train.learning_rate=1e9", "train.learning_rate = 1000000000.0 must be at most 1,000"),
        ("train.learning_rate=1e-400", "train.learning_rate = 0.0 must be above 0"),
        (
            "train.global_batch_size=1e18",
            "global_batch_size = 1000000000000000000 must be at most 2,147",
        ),
        ("data.max_length=1e12", "data.max_length = 1000000000000 must be at most 2,147,483,647"),
        ("train.seed=-1", "train.seed = -1 must be at least 0"),
        ("train.seed=36893488147419103232", "must be at most 4,294,967,295"),
        ("train.adam_beta1=.nan", "train.adam_beta1 = nan must be a finite number"),
        ("train.weight_decay=1e300", "train.weight_decay = 1e+300 must be at most 1,000,000,000,000,000"),
        ("data.temperature=1e-300", "data.temperature = 1e-300 must be at least 1e-06"),
        ("data.prepare_timeout=1e12", "must be at most 10,000,000"),
        ("data.num_proc=257", "data.num_proc = 257 must be at most 256"),
        ("data.sources.0.max_examples=1e30", "data.sources[0].max_examples = 1"),
        (TASKS % "samples: 1e18", "evaluate.tasks[0].samples = 1000000000000000000 must be at most"),
        (TASKS % "k: [1e18]", "evaluate.tasks[0].k[0] = 1000000000000000000 must be at most"),
        (TASKS % "seed: -5", "evaluate.tasks[0].seed = -5 must be at least 0"),
        (TASKS % "temperature: .nan", "evaluate.tasks[0].temperature = nan must be a finite number"),
    ],
)
def test_absurd_numbers(recipe, override, expected):
    text = fails(recipe, override)
    assert expected in text and len(text.splitlines()) == 1


def test_absurd_epochs(recipe):
    text = fails(recipe, "train.max_steps=null", "train.num_train_epochs=1e300")
    assert "train.num_train_epochs = 1e+300 must be at most 1,000,000" in text


def test_large_numbers_that_people_use(recipe):
    load(
        recipe,
        [
            *("train.max_steps=1_000_000_000", "data.max_length=1048576", "train.learning_rate=100"),
            *("train.max_grad_norm=1e12", "train.seed=4294967295", "data.sources.0.max_examples=1e9"),
            *("guard.spike_factor=1e10", "data.sources.0.max_repeats=1e10", "train.weight_decay=0"),
        ],
    )


NAMES = [
    ("a\x1b[31m", r"it contains '\x1b', a character that does not print"),
    ("a\nb", r"it contains '\n', a character that does not print"),
    ("a\u202eb", r"it contains '\u202e', a character that does not print"),
    ("a\u00a0b", r"it contains '\xa0', a character that does not print"),
    ("it's", "it contains a quote (')"),
    ('a"b', 'it contains a quote (")'),
    ("a`b`", "it contains a quote (`)"),
    ("-rf", "it starts with a dash, which commands take for an option"),
    ("x" * 101, "it has 101 characters, and a name has at most 100"),
    ("\u8bad" * 90, "it takes 270 bytes, and a name has at most 200"),
]


@pytest.mark.parametrize(("name", "reason"), NAMES)
@pytest.mark.parametrize("place", ["name", "data.sources[0].name", "rewards[0].label", "stages[0].name"])
def test_names_that_no_file_or_command_can_have(tmp_path, place, name, reason):
    assert reason in refused(tmp_path, place, name)


@pytest.mark.parametrize(
    "name", ["\u8bad\u7ec3-1", "\u00e9t\u00e9_2", "\u041e\u043f\u044b\u0442.3", "x" * 100, "a+b=c,d"]
)
def test_letters_of_all_scripts_are_fine(recipe, name):
    found = load(recipe, [f"name={name}", f"data.sources.0.name={name}"])
    assert found.name == found.data.sources[0].name == name


@pytest.mark.parametrize("place", ["pipeline", "stages[0].name"])
@pytest.mark.parametrize("name", ["../up", "a b", "", "a@b"])
def test_a_pipeline_and_its_stages_are_folders(tmp_path, place, name):
    assert "cannot be a folder name" in refused(tmp_path, place, name)


def refused(folder, place: str, name: str) -> str:
    """What is said about a recipe or pipeline with `name` at `place`; the sentence names the place."""
    values = yaml.safe_load(MINIMAL)
    pipeline = {"pipeline": "p", "stages": [{"name": "s", "recipe": "r.yaml"}]}
    if place.startswith("rewards"):
        del values["train"]
        values |= {"stage": "pairs", "rewards": [{"name": "math", "label": name}]}
    elif place == "name":
        values["name"] = name
    elif place == "pipeline":
        pipeline["pipeline"] = name
    elif place.startswith("stages"):
        pipeline["stages"][0]["name"] = name
    else:
        values["data"]["sources"][0]["name"] = name
    (folder / "r.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    (folder / "p.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    with pytest.raises(RequestError) as caught:
        load(folder / ("p.yaml" if place.startswith(("pipeline", "stages")) else "r.yaml"))
    (sentence,) = str(caught.value).splitlines()
    assert f"{place} = " in sentence and not UNSAFE.search(sentence)
    return sentence
