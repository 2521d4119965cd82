"""What a recipe may say of gates; mistakes are named with their place."""

from __future__ import annotations

import pytest

from posttrain.errors import RequestError
from posttrain.recipe import load, recipe_hash
from posttrain.recipe.sections import Gate
from posttrain.stages.preflight import preflight

RECIPE = """\
stage: sft
name: small
output_dir: {out}
model: {{from_config: {{model_type: llama}}, tokenizer: builtin:digits}}
data: {{sources: [{{name: a, generator: multiplication}}]}}
train: {{learning_rate: 1e-3, global_batch_size: 8, max_steps: 10}}
evaluate:
  tasks: [{{name: arithmetic}}]
  gates:
    - {{task: arithmetic, metric: accuracy, max_drop: 0.05}}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(out=tmp_path))
    return path


def test_a_gate_marks_what_fell_below_the_start_unless_it_says_otherwise(recipe):
    (gate,) = load(recipe).evaluate.gates
    assert gate == Gate("arithmetic", "accuracy", 0.05, "start", "mark", True)
    preflight(load(recipe))


def test_a_gate_may_change_between_a_run_and_its_continuation(recipe):
    assert recipe_hash(load(recipe)) == recipe_hash(
        load(recipe, ["evaluate.gates.0.max_drop=0.2", "evaluate.gates.0.action=stop"])
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["evaluate.gates.0.task=aritmetic"],
            "evaluate.gates[0].task = 'aritmetic' is not one of evaluate.tasks (did you mean 'arithmetic'?)",
        ),
        (
            ["evaluate.gates.0.max_drop=-0.1"],
            "evaluate.gates[0].max_drop = -0.1 must be at least 0",
        ),
        (
            ["evaluate.gates.0.max_drop=.nan"],
            "evaluate.gates[0].max_drop = nan must be finite and at least 0",
        ),
        (
            ["evaluate.gates.0.max_drop=.inf"],
            "evaluate.gates[0].max_drop = inf must be finite and at least 0",
        ),
        (
            ["evaluate.at_start=false"],
            "evaluate.gates[0].against = start needs the score of the start model; set evaluate.at_start",
        ),
        (["evaluate.gates.0.metric=nll"], "nll is better when it is lower; set greater_is_better: false"),
        (["evaluate.gates.0.action=halt"], "evaluate.gates[0].action"),
        (["evaluate.gates.0.against=last"], "evaluate.gates[0].against"),
        (["evaluate.gates.0.max_dorp=1"], "unknown key 'max_dorp' (did you mean 'max_drop'?)"),
        (["evaluate.gates=[{task: arithmetic, metric: accuracy}]"], "evaluate.gates[0].max_drop is missing"),
        (
            ["evaluate.gates.0.metric=acuracy"],
            "evaluate.gates[0].metric = 'acuracy' is not a metric of task arithmetic "
            "(did you mean 'accuracy'?)",
        ),
    ],
)
def test_what_a_recipe_may_not_say(recipe, overrides, expected):
    with pytest.raises(RequestError) as caught:
        preflight(load(recipe, overrides))
    assert expected in str(caught.value) and caught.value.exit_code == 2


def test_what_it_may_say(recipe):
    for overrides in (
        ["evaluate.gates.0.against=best", "evaluate.at_start=false"],
        ["evaluate.gates.0.metric=nll", "evaluate.gates.0.greater_is_better=false"],
        ["evaluate.gates=[]", "evaluate.at_start=false"],
    ):
        preflight(load(recipe, overrides))
