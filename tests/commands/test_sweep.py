"""`posttrain sweep`: bad requests, each a sentence with nothing written; the list of the runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from posttrain.recipe import load, to_yaml
from posttrain.recipe.sweep import sweep_of_words
from posttrain.rundir.directory import RunDir
from posttrain.stages.sweep import plan_sweep

RATES = "train.learning_rate=0.1,0.2"
WRONG = {
    "a misspelt key": (
        ["train.lerning_rate=1,2"],
        "command line: train.lerning_rate: unknown key 'lerning_rate' (did you mean 'learning_rate'?)",
    ),
    "a value of the wrong type": (
        ["train.learning_rate=1e-3,fast"],
        "command line: train.learning_rate must be a number, not 'fast'",
    ),
    "one value in two spellings": (
        ["train.learning_rate=1e-3,1,.001"],
        "command line: train.learning_rate = 1e-3 and train.learning_rate = .001 are the same run: the "
        "values are equal; leave one out",
    ),
    "a key that a section does not have": (
        ["loss.m=1,2"],
        "command line: loss.m: unknown key 'm' (one of: answer_marker, backend, chunk_rows, entropy_bonus, "
        "exponent, label_smoothing, n, name, p, p_below, reduction, segment, skip_below, step_delimiter, "
        "value, weight_above, z_loss)",
    ),
    "a section that there is not": (
        ["nope.x=1,2"],
        "command line: unknown key 'nope' (one of: checkpoints, data, evaluate, guard, loss, model, name, "
        "output_dir, stage, train)",
    ),
    "one value twice": (
        ["train.learning_rate=1,0.5,1.0"],
        "command line: train.learning_rate = 1 and train.learning_rate = 1.0 are the same run: the values "
        "are equal; leave one out",
    ),
    "a key that decides nothing": (
        ["train.logging_steps=1,2"],
        "command line: train.logging_steps = 1 and train.logging_steps = 2 are the same run: nothing that is "
        "trained or sampled depends on it; leave one out",
    ),
    "no value": (
        [RATES, "loss.n="],
        "'loss.n=' has no value; write loss.n=1,16,256, or loss.n='\"\"' for empty text",
    ),
    "an empty value": (
        ["loss.n=1,,2"],
        "'loss.n=1,,2' has an empty value; write loss.n=1,16,256, or loss.n='\"\"' for empty text",
    ),
    "nothing that varies": (
        ["train.max_steps=3"],
        "command line: nothing varies; give a key several values, or several seeds",
    ),
    "a key twice": (
        ["data.sources[0].weight=1,2", "data.sources.0.weight=3"],
        "command line: data.sources[0].weight is given twice; list all its values once",
    ),
    "names": (
        ["name=a,b"],
        "command line: name cannot be a key of a sweep: its runs are named by their values; name the sweep "
        "(--name, or sweep: in its file)",
    ),
    "places": (
        ["output_dir=a,b"],
        "command line: output_dir cannot be a key of a sweep: all its runs lie in one folder; give a single "
        "output_dir",
    ),
    "seeds as a key": (
        ["train.seed=1,2"],
        "command line: train.seed is what seeds set; list seeds instead, such as 0,1,2",
    ),
    "seeds in a section": (
        ["train={seed: 5},{seed: 6}"],
        "command line: train.seed is what seeds set; list seeds instead, such as 0,1,2",
    ),
    "seeds, and one in a section": (
        ["train={max_steps: 2},{max_steps: 3, seed: 6}", "--seeds", "2"],
        "command line: train.seed is what seeds set; list seeds instead, such as 0,1,2",
    ),
    "a key in brackets, twice": (
        ["loss[n]=1,2", "loss.n=3,4"],
        "command line: loss[n] is given twice; list all its values once",
    ),
    "an unknown key in brackets": (
        ["data.sources[0][max_exampels]=1,2"],
        "command line: data.sources[0].max_exampels: unknown key 'max_exampels' (did you mean "
        "'max_examples'?)",
    ),
    "zeros before a number": (
        ["data.sources.00.weight=1,2"],
        "command line: data.sources.00.weight: the items of a list are numbered 0, 1, 2, ...; write 0, not "
        "00",
    ),
    "an item from the end": (
        ["data.sources[-1].weight=1,2"],
        "command line: data.sources[-1].weight: the items of a list are numbered 0, 1, 2, ..., so -1 is none "
        "of them",
    ),
    "two dots": (
        ["loss..n=1,2"],
        "command line: loss..n: its parts stand between single dots, as in data.sources.0.weight",
    ),
    "a bracket that is not closed": (
        ["loss[n=1,2"],
        "command line: loss[n: its parts stand between single dots, as in data.sources.0.weight",
    ),
    "a place that is a list": (
        [RATES, "output_dir=[a]"],
        "command line: output_dir must be text, not ['a']",
    ),
    "a place that is null": ([RATES, "output_dir=null"], "command line: output_dir must be text, not null"),
    "two places": (
        [RATES, "output_dir=a", "output_dir=b"],
        "command line: output_dir is given twice; a sweep lies in one folder",
    ),
    "seeds and their key": (
        [RATES, "train.seed=1", "--seeds", "2"],
        "command line: train.seed is what seeds set; list seeds instead, such as 0,1,2",
    ),
    "no seeds": ([RATES, "--seeds", "0"], "command line: seeds = 0 asks for no run; give at least one seed"),
    "a seed twice": (
        [RATES, "--seeds", "0,0"],
        "command line: seed 0 is listed twice; each run needs its own",
    ),
    "seeds of text": (
        [RATES, "--seeds", "few"],
        "--seeds few must be a number of seeds, such as 3, or a list, such as 0,5,9",
    ),
    "too many": (
        ["train.max_steps=" + ",".join(map(str, range(1, 502))), "--seeds", "2"],
        "command line: 1,002 runs are more than 1,000, the most of a sweep; leave out values or seeds",
    ),
    "a word": (
        ["loss.n"],
        "'loss.n': a key of a sweep is written key=value,value without spaces, e.g. loss.n=1,16,256",
    ),
    "seeds as a word": ([RATES, "seeds=3"], "'seeds=3': of a recipe it is an option; write --seeds 3"),
    "a number that is none": (
        ["train.learning_rate=1,1e400"],
        "command line: train.learning_rate = inf must be finite and above 0",
    ),
    "a list in the place of values": (
        ["loss.n=[1,16]"],
        "command line: nothing varies: [1, 16] is one value of loss.n; give a key several values, or several "
        "seeds",
    ),
    "another case": (
        ["loss.N=1,16"],
        "command line: loss.N: unknown key 'N' (did you mean 'n'?)",
    ),
    "a broken combination": (
        ["loss.name=cross_entropy,confidence_limited", "loss.n=1,4"],
        "command line: loss.n = 4 is used only with loss.name = confidence_limited, not cross_entropy",
    ),
}


def files() -> list[str]:
    return sorted(os.path.join(at, name) for at, _, names in os.walk(".") for name in names)


def test_the_recipe_comes_first(call, plain_recipe):
    call("sweep", RATES, plain_recipe).refuses(
        f"{RATES}: no such recipe file; the file comes before its keys"
    )


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_sweep_is_one_sentence_and_writes_nothing(call, plain_recipe, case):
    words, sentence = WRONG[case]
    before = files()
    answer = call("sweep", plain_recipe, *words)
    assert (answer.code, answer.out, answer.err) == (2, "", f"error: {sentence}\n")
    assert files() == before


PIPELINE = "pipeline: both\nstages: [{name: one, recipe: case.yaml}, {name: two, recipe: case.yaml}]\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["tow.loss.n=1,2"],
            "command line: tow.loss.n does not begin with a stage of p.yaml (did you mean 'two'?)",
        ),
        (["loss.n=1,2"], "command line: loss.n does not begin with a stage of p.yaml (one of: one, two)"),
        (
            ["two.train.lerning_rate=1,2"],
            "command line: stage 'two': train.lerning_rate: unknown key 'lerning_rate' (did you mean "
            "'learning_rate'?)",
        ),
        (
            ["two.train.max_steps=1,1"],
            "command line: two.train.max_steps = 1 and two.train.max_steps = 1 are the same run: the values "
            "are equal; leave one out",
        ),
        (
            ["two={},{train: {max_steps: 1}}"],
            "command line: two is a stage; write keys of its recipe after it, such as two.model.init",
        ),
        (
            ["two[train][seed]=1,2"],
            "command line: two.train.seed is what seeds set; list seeds instead, such as 0,1,2",
        ),
        (
            ["two.train={seed: 1},{seed: 2}"],
            "command line: two.train.seed is what seeds set; list seeds instead, such as 0,1,2",
        ),
        (["two.train.max_steps=1,2", "output_dir=[a]"], "command line: output_dir must be text, not ['a']"),
        (
            ["two.name=a,b"],
            "command line: two.name cannot be a key of a sweep: its runs are named by their values; name the "
            "sweep (--name, or sweep: in its file)",
        ),
    ],
)
def test_a_wrong_sweep_of_a_pipeline(call, plain_recipe, words, sentence):
    plain_recipe.with_name("p.yaml").write_text(PIPELINE)
    before = files()
    answer = call("sweep", "p.yaml", *words)
    assert (answer.code, answer.out, answer.err) == (2, "", f"error: {sentence}\n")
    assert files() == before


def test_a_folder_that_holds_something_else_is_left_as_it_is(call, plain_recipe, tmp_path):
    def refused(*words: str) -> str:
        before = files()
        for more in ([], ["--dry-run"]):
            answer = call("sweep", plain_recipe, *words, *more)
            assert (answer.code, answer.out) == (2, "") and files() == before
        (line,) = answer.err.splitlines()
        return line.removeprefix("error: ").replace(f"{tmp_path}/", "")

    for name, file in (("run", "metrics.jsonl"), ("pipe", "pipeline.json"), ("broken", "sweep.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{")
    assert refused(RATES, "--name", "run") == "run contains a run; choose another --name"
    assert refused(RATES, "--name", "pipe") == "pipe contains a pipeline; choose another --name"
    assert refused(RATES, "--name", "broken").startswith("broken/sweep.json: cannot be read: ")

    def claim(*words: str, **more: object) -> None:
        sweep = sweep_of_words(str(plain_recipe), list(words))
        for key, value in more.items():
            setattr(sweep, key, value)
        plan_sweep(sweep, "command line").claim()

    claim(RATES, sweep="swept")
    assert refused("train.max_steps=1,2", "--name", "swept") == (
        "swept contains a sweep of other keys (train.learning_rate); choose another --name"
    )
    assert refused(RATES, "--seeds", "2", "--name", "swept") == (
        "swept contains a sweep without seeds; leave out --seeds, or choose another --name"
    ), "the names would differ"
    left = "has {}; give their values and seeds too, or choose another --name"
    one = "a run that this sweep leaves out: learning_rate-0.1"
    assert refused("train.learning_rate=0.2", "--seeds", "2", "--name", "swept") == (
        f"swept {left.format(one)}"
    ), "fewer values"
    claim(RATES, "train.max_steps=1,2", seeds=[3, 5], sweep="seeded")
    assert refused(RATES, "train.max_steps=1,2", "--name", "seeded") == (
        "seeded contains a sweep of the seeds 3,5; give --seeds 3,5, or choose another --name"
    )
    assert refused("train.max_steps=1,2", RATES, "--seeds", "3,5", "--name", "seeded") == (
        "seeded contains a sweep of its keys in another order (train.learning_rate, train.max_steps); choose "
        "another --name"
    )
    fewer = [f"learning_rate-{rate}_max_steps-1_seed-{seed}" for seed in (3, 5) for rate in ("0.1", "0.2")]
    some = f"4 runs that this sweep leaves out: {', '.join(fewer)}"
    assert refused(RATES, "train.max_steps=2", "--seeds", "3,5", "--name", "seeded") == (
        f"seeded {left.format(some)}"
    )
    other = plain_recipe.with_name("other.yaml")
    other.write_text(plain_recipe.read_text())
    call("sweep", other, RATES, "--name", "swept").refuses(
        f"{tmp_path}/swept contains a sweep of case.yaml, not of other.yaml; choose another --name\n"
    )
    # more values are the same sweep; fewer would take runs from its page
    more = "train.learning_rate=0.1,0.2,0.3"
    assert call("sweep", plain_recipe, more, "--name", "swept", "--dry-run").code == 0
    assert refused("train.learning_rate=0.2,0.5", "--name", "swept") == (
        "swept has a run that this sweep leaves out: learning_rate-0.1; give their values and seeds too, or"
        " choose another --name"
    )

    # a file that was changed
    file = tmp_path / "swept" / "sweep.json"
    whole = json.loads(file.read_text())
    for changed in ({}, whole | {"seeds": [1]}, {k: v for k, v in whole.items() if k != "digest"}):
        file.write_text(json.dumps(changed))
        assert refused(RATES, "--name", "swept") == (
            "swept/sweep.json was changed since it was written (its digest is not that of its content); "
            "restore it, or choose another --name"
        )
    file.write_text(json.dumps(whole))

    # a run that has begun with another recipe
    run = RunDir(tmp_path / "swept" / "learning_rate-0.2")
    run.path.mkdir()
    run.start(load(plain_recipe, ["train.learning_rate=0.2", "train.seed=1"]), {})
    (run.path / "metrics.jsonl").write_text("{}\n")
    before = files()
    answer = call("sweep", plain_recipe, RATES, "--name", "swept")
    answer.refuses("run 'learning_rate-0.2':", "contains a run of another recipe", "train.seed: 1 -> 42")
    assert "another recipe; choose another --name, or remove the folder.\n" in answer.err
    assert files() == before


def test_a_pipeline_is_not_run_over_a_sweep(call, plain_recipe, tmp_path):
    plan_sweep(sweep_of_words(str(plain_recipe), [RATES, f"output_dir={tmp_path}/runs"]), "").claim()
    plain_recipe.with_name("p.yaml").write_text(PIPELINE)
    call("run", "p.yaml", "pipeline=case-sweep").refuses(
        "runs/case-sweep contains a sweep; choose another pipeline=..."
    )


LISTED = """\
run                    train.learning_rate  seed  steps
learning_rate-0.1      0.1                  42    5
learning_rate-0.0002   0.0002               42    5
loss.n = 1 throughout
2 runs in swept, 2 at the same time
"""


@pytest.fixture
def sweep_file(plain_recipe):
    path = plain_recipe.parent / "sweeps" / "rates.yaml"
    path.parent.mkdir()
    path.write_text(
        "sweep: swept\nrecipe: ../case.yaml\noutput_dir: .\nparallel: 2\n"
        "keys: [{key: train.learning_rate, values: [0.1, 2.0e-4]}, {key: loss.n, values: [1]}]\n"
    )
    return path


def test_the_runs_are_listed(call, plain_recipe, sweep_file):
    """By the command line and by the file alike; nothing is written."""
    before = files()
    words = ["train.learning_rate=0.1,2e-4", "loss.n=1", "output_dir=.", "--parallel", "2", "--name", "swept"]
    for asked in (
        ["sweep", plain_recipe, *words, "--dry-run"],
        ["sweep", sweep_file, "--dry-run"],
        ["check", sweep_file],
    ):
        answer = call(*asked)
        assert (answer.code, answer.err) == (0, "")
        assert [line.split() for line in answer.out.splitlines()] == [
            line.split() for line in LISTED.splitlines()
        ]
    assert files() == before
    listed = json.loads(call("check", sweep_file, "--json").out)
    assert [(run["run"], run["steps"]) for run in listed["runs"]] == [
        ("learning_rate-0.1", 5),
        ("learning_rate-0.0002", 5),
    ]
    assert json.loads(call("sweep", sweep_file, "seeds=[1, 2]", "--dry-run", "--json").out)["seeds"] == [1, 2]
    call("check", sweep_file, "--rows", 1).refuses(
        "is a sweep; --rows and --all are for the recipe that it names"
    )
    call("prepare", sweep_file).refuses(
        f"{sweep_file} is a sweep; start it with posttrain sweep {sweep_file}"
    )
    call("sweep", sweep_file, "--json").refuses("--json: only with --dry-run")


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ("${oc.env:PLACE}", "PLACE/case-sweep"),
        ("", "case-sweep"),
        ("''", "case-sweep"),
        ("~/x", "HOME/x/case-sweep"),
    ],
)
@pytest.mark.parametrize("pipeline", [False, True])
def test_the_place_is_read_as_that_of_a_run(
    call, plain_recipe, tmp_path, monkeypatch, given, place, pipeline
):
    monkeypatch.setenv("PLACE", str(tmp_path / "there"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    plain_recipe.with_name("p.yaml").write_text(PIPELINE.replace("both", "case"))
    words = ["p.yaml", "two.train.max_steps=1,2"] if pipeline else [plain_recipe, RATES]
    answer = call("sweep", *words, f"output_dir={given}", "--dry-run")
    place = place.replace("PLACE", str(tmp_path / "there")).replace("HOME", str(tmp_path / "home"))
    assert (answer.code, answer.out.splitlines()[-1]) == (0, f"{3 if pipeline else 2} runs in {place}"), (
        answer.err
    )


def test_a_key_in_another_spelling_is_the_key(call, plain_recipe):
    found = {
        key: json.loads(call("sweep", plain_recipe, f"{key}=1,2", "--dry-run", "--json").out)["runs"]
        for key in ("data.sources.0.weight", "data.sources[0][weight]", "data[sources][ 0 ].weight")
    }
    one, *others = found.values()
    assert [run["run"] for run in one] == ["weight-1", "weight-2"] and others == [one, one]


def test_a_file_with_one_value_in_two_spellings(call, sweep_file):
    sweep_file.write_text(sweep_file.read_text().replace("[0.1, 2.0e-4]", "[1.0e-3, 1, .001]"))
    call("sweep", sweep_file, "--dry-run").refuses(
        "train.learning_rate = 0.001 (value 1) and train.learning_rate = 0.001 (value 3) are the same run"
    )


def test_the_list_has_null_and_true(call, plain_recipe):
    words = ["train.activation_checkpointing=true,false", "evaluate.heldout=null"]
    answer = call("sweep", plain_recipe, *words, "--dry-run")
    assert answer.code == 0, answer.err
    assert [line.split()[1] for line in answer.out.splitlines()[1:3]] == ["true", "false"]
    assert "evaluate.heldout = null throughout" in answer.out and "None" not in answer.out


def test_what_a_run_would_be_refused_for_is_said_by_the_list(call, plain_recipe, rows_file):
    answer = call("sweep", plain_recipe, "data.max_length=256,1000", "--dry-run")
    answer.refuses("case.yaml: run 'max_length-1000': data.max_length = 1000 is above the 512 positions")
    answer = call("sweep", plain_recipe, "train.max_steps=null", "train.num_train_epochs=1,2", "--dry-run")
    # 48 rows in batches of 8
    assert [line.split()[-1] for line in answer.out.splitlines()[1:3]] == ["6", "12"]


@pytest.mark.slow
def test_the_list_needs_no_torch(root, sweep_file):
    program = (
        "import sys; from posttrain.cli import main; code = main(['check', sys.argv[1]]);"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(sweep_file)],
        env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_a_made_recipe_is_one_that_could_be_written(plain_recipe):
    """What a run is given loads from its file as the same recipe."""
    plan = plan_sweep(sweep_of_words(str(plain_recipe), [RATES]), "")
    path = plain_recipe.with_name("made.yaml")
    for recipe in plan.recipes.values():
        path.write_text(to_yaml(recipe))
        assert load(path) == recipe
