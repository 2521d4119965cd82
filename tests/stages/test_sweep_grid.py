"""Which runs a sweep has: a recipe's grid, the stages that runs of a pipeline share, what each is given."""

from __future__ import annotations

import pytest

from posttrain.errors import RequestError
from posttrain.recipe import TrainRecipe, load, recipe_hash, to_yaml
from posttrain.recipe.sweep import sweep_of_words
from posttrain.report.members import doubted
from posttrain.report.swept import cells
from posttrain.rundir.directory import RunDir
from posttrain.rundir.reading import RunData
from posttrain.rundir.sweeps import SweepData
from posttrain.stages.pipeline import dependencies
from posttrain.stages.sweep import plan_sweep

SAMPLING = """\
stage: pairs
name: pairs
model: {{init: sft}}
data: {{template: chatml, max_length: 256, sources: [{{name: rows, path: {rows}}}]}}
rewards: [{{name: math}}]
rollout: {{num_generations: 4, max_new_tokens: 16}}
seed: 42
"""
PIPELINE = """\
pipeline: chain
parallel: 2
output_dir: {out}
stages:
  - {{name: sft, recipe: case.yaml}}
  - {{name: pairs, recipe: pairs.yaml}}
  - {{name: more, recipe: case.yaml, overrides: [data.sources.0.path=pairs/kept.jsonl]}}
  - {{name: other, recipe: case.yaml, overrides: ["model.init=sft@best:math/pass@1"], after: [more]}}
"""


@pytest.fixture
def chain(recipe, rows_file):
    """sft -> pairs -> more; sft -> other, which waits for more without using it. All seeds are 42."""
    (recipe.parent / "pairs.yaml").write_text(SAMPLING.format(rows=rows_file))
    path = recipe.parent / "chain.yaml"
    path.write_text(PIPELINE.format(out=recipe.parent))
    return path


def plan(path, *words, seeds=None, name=""):
    sweep = sweep_of_words(str(path), list(words))
    sweep.seeds, sweep.sweep = seeds, name
    return plan_sweep(sweep, "command line")


def test_the_first_seed_of_every_cell_comes_first(recipe):
    """2 values x 2 values x 2 seeds; the last key moves fastest within a seed."""
    found = plan(recipe, "train.learning_rate=0.1,0.2", "train.optim=sgd,adamw_torch", "loss.n=1", seeds=2)
    assert list(found.recipes) == [
        f"learning_rate-{rate}_optim-{optim}_seed-{seed}"
        for seed in (42, 43)
        for rate in ("0.1", "0.2")
        for optim in ("sgd", "adamw_torch")
    ]
    last = found.recipes["learning_rate-0.2_optim-adamw_torch_seed-43"]
    assert (last.train.learning_rate, last.train.optim, last.train.seed) == (0.2, "adamw_torch", 43)
    assert last.data == found.recipes["learning_rate-0.1_optim-sgd_seed-42"].data
    assert last.output_dir == str(recipe.parent / "case-sweep") and found.pipeline.parallel == 1
    assert found.facts | {"runs": found.facts["runs"][-1:]} == {
        "sweep": "case-sweep",
        "recipe": str(recipe),
        "keys": {"train.learning_rate": [0.1, 0.2], "train.optim": ["sgd", "adamw_torch"]},
        "fixed": {"loss.n": 1.0},
        "seeds": [42, 43],
        "runs": [
            {
                "run": "learning_rate-0.2_optim-adamw_torch_seed-43",
                "stage": "",
                "values": {"train.learning_rate": 0.2, "train.optim": "adamw_torch"},
                "seed": 43,
                "recipe_hash": recipe_hash(last),
            }
        ],
    }


def test_without_seeds_a_run_has_the_recipes_own(recipe):
    found = plan(recipe, "train.learning_rate=1,0.5")
    assert list(found.recipes) == ["learning_rate-1", "learning_rate-0.5"]
    assert found.facts["seeds"] == [42] and {r["seed"] for r in found.facts["runs"]} == {42}
    assert {r.train.seed for r in found.recipes.values()} == {42}
    assert list(plan(recipe, seeds=[0, 5]).recipes) == ["seed-0", "seed-5"]
    assert list(plan(recipe, "train.seed=7", "train.learning_rate=1,2").recipes.values())[0].train.seed == 7


def test_a_number_is_written_as_its_key_has_it(recipe):
    """16 for a key that takes a float is 16.0 in sweep.json, as in recipe.yaml; both are `16` in the name."""
    runs = plan(recipe, "loss.name=confidence_limited", "loss.n=1,16").facts["runs"]
    assert [run["run"] for run in runs] == ["n-1", "n-16"]
    assert all(type(run["values"]["loss.n"]) is float for run in runs)


def test_a_stage_runs_once_for_what_concerns_it(chain):
    """Swept on the last of a chain, what comes before is made once for each seed."""
    found = plan(chain, "more.train.learning_rate=0.1,0.2", seeds=[0, 1])
    assert list(found.recipes) == [
        name
        for seed in (0, 1)
        for name in (
            f"sft_seed-{seed}",
            f"pairs_seed-{seed}",
            f"more_learning_rate-0.1_seed-{seed}",
            f"other_seed-{seed}",
            f"more_learning_rate-0.2_seed-{seed}",
        )
    ]
    root = chain.parent / "chain-sweep"
    for name, recipe in found.recipes.items():
        seed = int(name[-1])
        assert (recipe.train.seed if isinstance(recipe, TrainRecipe) else recipe.seed) == seed
        if name.startswith("pairs"):
            assert recipe.model.init == str(root / f"sft_seed-{seed}")
        if name.startswith("more"):
            assert recipe.data.sources[0].path == str(root / f"pairs_seed-{seed}" / "kept.jsonl")
        if name.startswith("other"):
            assert recipe.model.init == f"{root / f'sft_seed-{seed}'}@best:math/pass@1"
    waits = dependencies(found.pipeline, found.recipes)
    assert waits["more_learning_rate-0.2_seed-1"] == {"pairs_seed-1"}
    # `after` asks for an order only: its keys make no runs, and each run of it is waited for
    assert waits["other_seed-1"] == {"sft_seed-1", *(f"more_learning_rate-{r}_seed-1" for r in (0.1, 0.2))}
    assert found.pipeline.parallel == 2


def test_what_is_swept_first_concerns_all_that_comes_from_it(chain):
    found = plan(chain, "sft.train.learning_rate=0.1,0.2", "pairs.rollout.temperature=0.5,1")
    short = [(run["stage"], *run["values"].values()) for run in found.facts["runs"]]
    assert sorted(short) == sorted(
        [("sft", r) for r in (0.1, 0.2)]
        + [("other", r) for r in (0.1, 0.2)]
        + [(stage, r, t) for stage in ("pairs", "more") for r in (0.1, 0.2) for t in (0.5, 1.0)]
    )
    more = found.recipes["more_learning_rate-0.2_temperature-0.5"]
    assert more.data.sources[0].path.endswith("/pairs_learning_rate-0.2_temperature-0.5/kept.jsonl")
    other = found.recipes["other_learning_rate-0.1"]
    assert other.model.init.endswith("/sft_learning_rate-0.1@best:math/pass@1")


def test_where_a_stage_starts_may_be_swept(chain):
    """Then only the runs that start from a stage have its keys."""
    found = plan(chain, f"other.model.init=sft,{chain.parent / 'case'}", "sft.train.learning_rate=0.1,0.2")
    other = [run["values"] for run in found.facts["runs"] if run["stage"] == "other"]
    assert other == [
        {"other.model.init": "sft", "sft.train.learning_rate": 0.1},
        {"other.model.init": "sft", "sft.train.learning_rate": 0.2},
        {"other.model.init": str(chain.parent / "case")},
    ]


def test_seeds_are_counted_from_one_that_all_stages_have(chain):
    assert plan(chain, seeds=2).facts["seeds"] == [42, 43]
    pairs = chain.parent / "pairs.yaml"
    pairs.write_text(pairs.read_text().replace("seed: 42", "seed: 1"))
    with pytest.raises(RequestError) as caught:
        plan(chain, seeds=2)
    assert str(caught.value) == (
        f"command line: the runs of {chain} have different seeds of their own (sft 42, pairs 1, more 42, "
        "other 42); list those of the sweep, such as 0,1,2"
    )
    assert plan(chain, seeds=[0, 1]).facts["seeds"] == [0, 1]
    unasked = plan(chain, "sft.train.learning_rate=0.1,0.2").facts
    assert unasked["seeds"] == [] and {run["seed"] for run in unasked["runs"]} == {1, 42}


def test_names_that_would_be_one_folder_are_refused(chain):
    text = chain.read_text().replace("name: more,", "name: other_max_steps-3,")
    chain.write_text(text.replace("after: [more]", "after: []"))
    with pytest.raises(RequestError, match="would be called 'other_max_steps-3'"):
        plan(chain, "other.train.max_steps=2,3")


def test_a_long_grid_is_counted_before_it_is_read(recipe):
    words = [f"{key}={','.join(map(str, range(1, 102)))}" for key in ("train.max_steps", "data.max_length")]
    with pytest.raises(RequestError, match="10,201 runs are more than 1,000, the most of a sweep"):
        plan(recipe, *words)


@pytest.mark.parametrize(
    "words",
    [
        ["other.model={init: sft},{init: CASE}", "sft.loss.n=1", "sft.train.learning_rate=1e-1,.2"],
        ["sft.train.learning_rate=${oc.env:RATE},0.5", "sft.train.max_steps=3", "pairs.seed=7"],
        [
            "more.data.sources.0.path=${oc.env:ROWS},pairs/kept.jsonl",
            "sft.evaluate.tasks=[]",
            "sft.data.template_options={a: [1]},{a: [2]}",
        ],
    ],
)
def test_a_run_records_the_hash_that_its_entry_has(chain, rows_file, monkeypatch, words):
    """Its process reads what it is given again: with references, seeds, expressions, lists, floats in another
    spelling, lists."""
    monkeypatch.setenv("RATE", "0.25")
    monkeypatch.setenv("ROWS", str(rows_file))
    words = [word.replace("CASE", str(chain.parent / "case")) for word in words]
    found = plan(chain, *words, seeds=None if any("seed" in word for word in words) else [3, 4])
    found.claim()
    data = SweepData.load(found.root)
    assert [run.run for run in data.runs] == list(found.recipes) and data.intact
    for run in data.runs:
        file = chain.parent / "made.yaml"
        file.write_text(to_yaml(found.recipes[run.run]))
        made = RunDir(found.root / run.run)
        made.path.mkdir()
        made.start(load(file), {})
        assert made.info()["recipe_hash"] == run.recipe_hash
    runs = [RunData.load(found.root / name) for name in found.recipes]
    assert doubted(data, runs) == {} and len(cells(runs)) == len(runs) > 3
