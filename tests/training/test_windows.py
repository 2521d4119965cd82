"""What is logged of a window does not depend on whether the run was stopped and resumed within it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from posttrain.base.files import plain
from posttrain.losses.preference import PairLogProbs
from posttrain.rollouts.stats import RolloutStats
from posttrain.training.metrics import LossStats, PairStats, ReplyStats

CPU = torch.device("cpu")
SPEED = ("tokens_per_second",)


def batch(i: int) -> dict:
    return {
        "num_tokens": 10 + i,
        "example_ids": torch.tensor([[i % 2, i], [2, i]]),  # 2: of no source
        "desirable": torch.tensor([True, i % 2 == 0]),
        "reply_tokens": torch.tensor([3, 4 + i]),
    }


def loss_window() -> LossStats:
    return LossStats(CPU, ["a", "b"], skipping=True)


def add_loss(stats: LossStats, i: int) -> None:
    draw = torch.Generator().manual_seed(i)
    out = SimpleNamespace(
        aux_loss=None,
        label_mask=torch.rand(7, generator=draw) > 0.3,
        log_probs=-torch.rand(7, generator=draw),
        entropy=torch.rand(7, generator=draw),
        is_top1=torch.rand(7, generator=draw) > 0.5,
        coef=torch.rand(2, generator=draw),
        segment_log_probs=-torch.rand(2, generator=draw),
        skipped=torch.tensor(i),
    )
    stats.add(out, batch(i))


def pair_window() -> PairStats:
    return PairStats(CPU, ["a", "b"], True, True)


def add_pair(stats: PairStats, i: int) -> None:
    values = torch.rand(8, 2, generator=torch.Generator().manual_seed(i))
    pairs = PairLogProbs(*values[:4], torch.tensor([3, 4]), torch.tensor([5, 6]))
    stats.add(pairs, values[4], (values[5], values[6]), (values[7], values[7]), batch(i))


def reply_window() -> ReplyStats:
    return ReplyStats(CPU, ["a", "b"])


def add_reply(stats: ReplyStats, i: int) -> None:
    values = torch.rand(5, 2, generator=torch.Generator().manual_seed(i))
    stats.add(*values[:4], values[4, 0], batch(i))


KINDS = {"sft": (loss_window, add_loss), "pairs": (pair_window, add_pair), "kto": (reply_window, add_reply)}


def saved(state: dict) -> dict:
    """As it comes back from checkpoint.json."""
    return json.loads(json.dumps(plain(state)))


def logged(stats) -> dict:
    return {name: value for name, value in stats.means(lambda x: x.clone()).items() if name not in SPEED}


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_goes_on_where_it_was_saved(kind):
    make, add = KINDS[kind]
    whole, before, after = make(), make(), make()
    for i in range(6):
        add(whole, i)
        add(before if i < 2 else after, i)
        if i == 1:
            after.load(saved(before.state(lambda x: x.clone())))
    assert logged(after) == logged(whole)
    assert after.input_tokens < whole.input_tokens, "the speed is that of this process"


@pytest.mark.parametrize("kind", KINDS)
def test_of_two_ranks_one_has_the_sums_of_both(kind):
    """Micro-batches are dealt in turn; the sums at the stop are those of both ranks."""
    make, add = KINDS[kind]
    whole, first, second, resumed, other = (make() for _ in range(5))
    for i in range(4):
        add(whole, i)
    add(first, 0)
    add(second, 1)
    resumed.load(saved(first.state(lambda x: x + (second.sums if x is first.sums else second.shares))))
    add(resumed, 2)
    add(other, 3)

    def over_both(values: torch.Tensor) -> torch.Tensor:
        tokens = other.sums.new_full((1,), other.input_tokens)
        return values + torch.cat([other.sums, tokens, other.shares])

    found = {name: value for name, value in resumed.means(over_both).items() if name not in SPEED}
    assert found == pytest.approx(logged(whole), rel=1e-12)


def test_a_nan_stays_one():
    stats, after = loss_window(), loss_window()
    stats.sums[1] = float("nan")
    after.load(saved(stats.state(lambda x: x.clone())))
    assert torch.equal(after.sums.isnan(), stats.sums.isnan())


def test_rollouts_of_a_window_go_on():
    whole, before, after = (RolloutStats(["a", "b"]) for _ in range(3))
    for stats, rows in ((whole, (0, 1, 2)), (before, (0, 1)), (after, ())):
        for i in rows:
            _rollouts(stats, i)
    after.load(saved(before.state()))
    assert after.means() == {k: v for k, v in before.means().items() if k not in SPEED}, "no batch, no speed"
    _rollouts(after, 2)
    assert {**after.means(), "tokens_per_second": 0} == {**whole.means(), "tokens_per_second": 0}
    after.reset()
    assert after.means() == {}


def _rollouts(stats: RolloutStats, i: int) -> None:
    stats.values["reward"].append(0.1 * i)
    stats.values["completions/max_length"].append(float(5 - i))
    stats.drawn.update(["a", "b", "b"][: i + 1])
    stats.teaching.update(["b"])
    stats.tokens += 7
