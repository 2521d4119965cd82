"""What a step asks of the host: nothing in a micro-batch, one answer an optimizer step.

The device here is `meta`, whose tensors have no values: whatever reads one fails, and every mix of it with
the host is seen by a dispatch mode. How long a GPU's queue really gets is not measured by this.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from posttrain.data.collate import Collator
from posttrain.models.head import FusedOutput
from posttrain.recipe.sections import Guard
from posttrain.sft import HostCopies, SftTrainer
from posttrain.training.guard import StepGuard
from posttrain.training.metrics import LossStats
from posttrain.training.trainer import RunTrainer
from posttrain_kernels import OnHost, count

ROWS = [
    {
        "input_ids": [5, 6, 7, 8],
        "labels": [-100, 6, 7, 8],
        "segment_ids": [0, 1, 1, 2],
        "p": None,
        "source": 0,
        "row": 3,
    },
    {
        "input_ids": [5, 6, 7],
        "labels": [-100, -100, 7],
        "segment_ids": [0, 0, 1],
        "p": None,
        "source": 9,
        "row": 1,
    },
]


class OnDeviceOnly(TorchDispatchMode):
    """Fails on an operation that touches a tensor of the host: a copy to the device, or from it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            assert not isinstance(leaf, torch.Tensor) or leaf.device.type == "meta", function
        return out


def output(device: str) -> FusedOutput:
    """Of `ROWS`: log-probabilities -1, entropies 2; F of the three segments 1, 0.05 and 1."""
    mask = torch.tensor([[True, True, True], [False, True, False]])
    tokens = {
        "log_probs": -1.0 * mask,
        "entropy": 2.0 * mask,
        "is_top1": mask & mask.roll(1, 1),
        "label_mask": mask,
    }
    segments = {"coef": torch.tensor([1.0, 0.05, 1.0]), "segment_log_probs": torch.tensor([-2.0, -1.0, -1.0])}
    rest = {"skipped": torch.tensor(1)}
    return FusedOutput(**{k: v.to(device) for k, v in (tokens | segments | rest).items()})


def batch(device: str = "cpu", padding_free: bool = False) -> dict:
    made = HostCopies(Collator(0, padding_free))(ROWS)
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in made.items()}


def test_statistics_of_a_micro_batch_stay_on_the_device():
    stats = LossStats(torch.device("meta"), ["a", "b"])
    out, data = output("meta"), batch("meta")
    with OnDeviceOnly():
        stats.add(out, data)
        stats.add(out, data)


def test_statistics_by_hand():
    """4 trained tokens, 3 segments, 7 real input tokens; the second row belongs to no source of the
    mixture."""
    stats = LossStats(torch.device("cpu"), ["a", "b"], skipping=True)
    for _ in range(2):
        stats.add(output("cpu"), batch())
    assert stats.input_tokens == 14 and stats.state(lambda x: x)["sums"]["segments"] == 6
    means = stats.means(lambda x: x)
    assert means.pop("tokens_per_second") > 0
    assert means == pytest.approx(
        {
            "nll": 1.0,
            "entropy": 2.0,
            "token_accuracy": 3 / 4,
            "trained_tokens": 8.0,
            "weight_mean": 2.05 / 3,
            "weight_below_0.1": 1 / 3,
            "segment_logp": -4 / 3,
            "skipped_rows": 0.25,
            "share/a": 1.0,
            "share/b": 0.0,
        }
    )
    stats.reset()
    assert stats.means(lambda x: x)["trained_tokens"] == 0
    assert "skipped_rows" not in LossStats(torch.device("cpu"), ["a"]).means(lambda x: x)


@pytest.mark.parametrize("padding_free", [False, True])
def test_what_the_host_keeps_is_what_the_loss_gets(padding_free):
    data = batch(padding_free=padding_free)
    assert torch.equal(data["host"].labels, data["labels"][:, 1:].reshape(-1))
    assert torch.equal(data["host"].segment_ids, data["segment_ids"][:, 1:].reshape(-1))
    assert data["num_tokens"] == 7


@pytest.mark.parametrize("reduction", ["token_mean", "segment_mean", "length_mean"])
def test_the_global_count_is_taken_on_the_host(reduction):
    data = batch("meta")
    trainer = SimpleNamespace(reduction=reduction, reduce=lambda x: x.clone())
    trainer._count = lambda one: SftTrainer._count(trainer, one)
    expected = count(batch()["labels"][:, 1:], batch()["segment_ids"][:, 1:], reduction)
    assert trainer._count(data) == expected > 0
    made = SftTrainer._get_num_items_in_batch(trainer, [data, data], torch.device("cpu"))
    assert made.item() == 2 * expected
    with torch.device("meta"):
        SftTrainer._get_num_items_in_batch(trainer, [data, data], torch.device("meta"))


def test_host_copies_stay_where_they_are():
    """accelerate and DDP move tensors, not objects that hold some; a loader's worker hands them over
    whole."""
    from accelerate.utils import send_to_device
    from torch.distributed.utils import _to_kwargs

    made = next(
        iter(DataLoader(ROWS, batch_size=2, collate_fn=HostCopies(Collator(0, False)), num_workers=1))
    )
    moved = send_to_device(made, "meta")
    assert moved["labels"].device.type == "meta"
    assert moved["host"] is made["host"] and moved["host"].labels.device.type == "cpu"
    _, (kwargs,) = _to_kwargs(
        (), {"fused": {"host": made["host"]}, "labels": made["labels"]}, torch.device("meta"), False
    )
    assert kwargs["labels"].device.type == "meta" and kwargs["fused"]["host"] is made["host"]


@pytest.mark.parametrize(("device", "given"), [("cpu", False), ("cuda", True)])
def test_the_loss_gets_host_copies_off_the_cpu(device, given):
    trainer = SimpleNamespace(
        loss_arguments={"n": 2.0}, external_p=False, args=SimpleNamespace(device=torch.device(device))
    )
    data = batch()
    asked = SftTrainer._forward(trainer, lambda **inputs: inputs, data, None)
    assert set(asked) == {"input_ids", "attention_mask", "labels", "segment_ids", "fused"}
    assert isinstance(asked["fused"].get("host"), OnHost) == given


class Waits:
    """Counts what makes the host wait for a device."""

    def __init__(self, monkeypatch) -> None:
        self.count = 0
        for name in ("tolist", "item", "__float__", "__int__", "__bool__", "cpu"):
            monkeypatch.setattr(torch.Tensor, name, self._counted(getattr(torch.Tensor, name)))

    def _counted(self, plain):
        def counted(tensor, *args):
            self.count += 1
            return plain(tensor, *args)

        return counted


@pytest.mark.parametrize("norm", [torch.tensor(1.5), 1.5, None], ids=["tensor", "number", "none"])
def test_a_step_waits_once(monkeypatch, norm):
    seen = []
    guard = StepGuard(Guard())
    guard.decide = lambda loss, grad_norm: seen.append((loss, grad_norm)) or "go"
    trainer = SimpleNamespace(
        _step_loss=torch.tensor(3.0, dtype=torch.float64),
        _window_losses=[],
        stop=SimpleNamespace(requested=True),
        guard=guard,
        reduce=lambda x: 2 * x,
        args=SimpleNamespace(world_size=2, fp16=False),
        _last_norm=norm,
        stop_agreed=False,
    )
    waits = Waits(monkeypatch)
    RunTrainer.check_step(trainer)
    assert waits.count == 1
    assert seen == [(3.0, None if norm is None else 1.5)]
    assert trainer.stop_agreed  # where the run then stops is decided at the step's end
    assert trainer._step_loss == 0 and trainer._window_losses == [3.0]


def test_the_norm_is_kept_without_reading_it(monkeypatch):
    class Base:
        def _get_grad_norm(self, model, grad_norm=None):
            return grad_norm

    class Trainer(RunTrainer, Base):
        pass

    trainer, norm = Trainer(), torch.tensor(2.0)
    waits = Waits(monkeypatch)
    assert trainer._get_grad_norm(None, norm) is norm and trainer._last_norm is norm
    assert waits.count == 0


def test_a_norm_that_is_not_finite_stops_the_run(tmp_path):
    from posttrain.training.guard import Diverged

    trainer = SimpleNamespace(
        _step_loss=torch.tensor(3.0, dtype=torch.float64),
        _window_losses=[],
        stop=SimpleNamespace(requested=False),
        guard=StepGuard(Guard()),
        reduce=lambda x: x.clone(),
        args=SimpleNamespace(world_size=1, fp16=False),
        _last_norm=torch.tensor(float("inf")),
        state=SimpleNamespace(global_step=6),
        run=SimpleNamespace(checkpoints=tmp_path),
    )
    with pytest.raises(Diverged, match="step 7.*gradient norm inf. There is no checkpoint yet"):
        RunTrainer.check_step(trainer)
