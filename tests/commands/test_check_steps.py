"""What `posttrain check` says of steps and optimizers, beside what a run finds: the steps are an upper bound
or not said, and nothing is refused that would train."""

from __future__ import annotations

import json

import pytest

from posttrain.data.prepare import build
from posttrain.data.template import load_text
from posttrain.recipe import load_stage
from posttrain.recipe.plan import shape_of, steps_of
from posttrain.recipe.schema import Loss

EPOCH = ("train.max_steps=null", "train.num_train_epochs=1", "train.global_batch_size=1")
TALK = {
    "messages": [
        *({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}),
        *({"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}),
    ]
}
SFT = {"prompt": "a", "completion": "b"}


def real(path, overrides: list[str], stage: str) -> int:
    """The steps of the run."""
    recipe = load_stage(path, overrides, stage)
    tokenizer, template = load_text(recipe.model, recipe.data.template, None, recipe.data.template_options)
    prepared = build(recipe.data, Loss(), tokenizer, recipe.evaluate.heldout, seed=1, shape=shape_of(recipe))
    return steps_of(recipe, len(prepared.mixture))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "overrides", "said"),
    [
        ([SFT] * 10, [], 10),
        ([SFT] * 10, ["evaluate.heldout={share: 0.1}"], 9),
        ([SFT] * 10, ["evaluate.heldout={share: 0.01}"], 9),
        ([SFT] * 10, ["evaluate.heldout={share: 0.26}"], 7),
        ([SFT] * 10, ["evaluate.heldout={share: 0.5}", "data.sources.0.max_examples=4"], 4),
        ([TALK] * 10, ["data.train_on=each"], None),
        ([TALK] * 10, ["data.train_on=each", "data.sources.0.max_examples=3"], 3),
    ],
)
def test_steps_of_an_epoch(call, plain_recipe, tmp_path, rows, overrides, said):
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [*EPOCH, f"data.sources.0.path={path}", *overrides]
    answer = call("check", plain_recipe, "--json", *given)
    assert json.loads(answer.out)["plan"]["steps"] == said, answer
    found = real(plain_recipe, given, "sft")
    assert found == (20 if said is None else said)


def test_optimizers_that_check_refuses(call, plain_recipe, tmp_path):
    for optim, said in (
        ("lomo", "train.optim = lomo is not supported: it steps inside the backward"),
        ("galore_adamw_layerwise", "its state is not saved; use galore_adamw"),
        ("grokadamw", "it loses its state when a run is resumed"),
        ("lion_8bit", "train.optim = lion_8bit needs a GPU"),
    ):
        call("check", plain_recipe, f"train.optim={optim}").refuses("train.optim", said)
        call("sft", plain_recipe, f"train.optim={optim}").refuses("train.optim", said)
    assert not (tmp_path / "case").exists()


def test_a_limit_is_said(call, plain_recipe, monkeypatch):
    monkeypatch.setattr("posttrain.stages.preflight.wanting", lambda *_: [])
    answer = call("check", plain_recipe, "train.optim=lion_8bit")
    assert answer.code == 0 and "train.optim = lion_8bit: no test of posttrain runs it" in answer.out
