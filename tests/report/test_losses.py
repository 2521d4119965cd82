"""Values of different losses never share an axis."""

from __future__ import annotations

import pytest

from posttrain.report.losses import by_loss
from posttrain.report.training_figures import sections

CE = {"name": "cross_entropy", "n": 1.0, "segment": "completion", "z_loss": 0.0, "backend": "auto"}
CL = CE | {"name": "confidence_limited", "n": 256.0}


@pytest.fixture
def held(made):
    """held(section, *values of it) -> {index: run}."""

    def make(stage, *sections):
        key = {"sft": "loss", "dpo": "preference"}[stage]
        rows = [{"loss": 1.0, "nll": 2.0, "rewards/margins": 0.5}] * 3
        return {i: made(stage, {key: s}, rows, f"r{i}") for i, s in enumerate(sections)}

    return make


def test_what_losses_differ_in(held):
    """The back-end is no difference, nor a key at zero that an older recipe lacks, nor 256 against 256.0."""
    older = {k: v for k, v in CE.items() if k != "z_loss"}
    assert by_loss("sft", held("sft", CE, CE | {"backend": "torch"}, older)) == {"": [0, 1, 2]}
    found = by_loss("sft", held("sft", CE, CL, CL | {"n": 256}, CL | {"n": 16.0, "z_loss": 1e-4}))
    assert found == {
        "cross_entropy, n 1": [0],
        "confidence_limited, n 256": [1, 2],
        "confidence_limited, n 16, z_loss 0.0001": [3],
    }
    assert by_loss("sft", held("sft", CE, CE | {"z_loss": 1e-4}))["without these"] == [0]
    assert by_loss("sft", held("sft", CE, {}))["unknown"] == [1]
    dpo = held("dpo", {"loss": "dpo", "beta": 0.1}, {"loss": "dpo", "beta": 5, "reference": "live"})
    assert by_loss("dpo", dpo) == {"beta 0.1": [0], "beta 5": [1]}
    assert by_loss("rlvr", dpo) == {"": [0, 1]}


def test_each_loss_has_a_picture_and_nll_is_shown_together(held):
    runs = held("sft", CE, CL, CL)
    [section] = sections([*runs.values()], ["A", "B", "C"])
    titles = [f["title"] for f in section["figures"]]
    assert titles == [
        "Negative log-likelihood",
        "Loss: cross_entropy, n 1",
        "Loss: confidence_limited, n 256",
    ]
    together, entropy, limited = (str(f["svg"]) for f in section["figures"])
    assert all(f">{name}<" in together for name in "ABC")
    assert ">A<" in entropy and ">B<" not in entropy and ">A<" not in limited and ">C<" in limited
    assert section["figures"][1]["note"].endswith("not comparable with another loss")
    [section] = sections([runs[1], runs[2]], ["B", "C"])
    assert [f["title"] for f in section["figures"]] == ["Loss"], "the same loss: one picture, no nll"


def test_rewards_of_another_beta_are_apart(held):
    runs = held("dpo", {"loss": "dpo", "beta": 0.1}, {"loss": "dpo", "beta": 5.0})
    [section] = sections([*runs.values()], ["A", "B"])
    titles = [f["title"] for f in section["figures"]]
    assert titles == ["Margin: beta 0.1", "Margin: beta 5", "Loss: beta 0.1", "Loss: beta 5"]


def test_a_long_or_hostile_loss(held):
    runs = held("sft", CE | {"answer_marker": "<b>\n" * 100}, CE | {"answer_marker": "<b>\n" * 100 + "x"})
    [section] = sections([*runs.values()], ["A", "B"])
    assert len(section["figures"]) == 3 and all(len(f["title"]) < 140 for f in section["figures"])
