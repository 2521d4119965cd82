"""Gradients of the fused head under torch's `fully_shard`, beside those of one process, and what enters and
leaves it under bf16; a case of test_fsdp2.py, for every rank of its launch.

Gloo on CPU. Every case trains on other rows on each rank, in two micro-batches; the reference sees all four.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from posttrain.models.head import attach_fused_head
from posttrain_kernels import confidence_limited
from tests.models.test_head import FAMILIES, adapted, gradients, model_of, worst
from tests.training import test_launcher as accelerates

V, MICRO = 64, 2

CASES: dict[str, dict[str, Any]] = {
    f"{tie}-{unit}-{sync}": {"tie": tie == "tied", "unit": unit, "sync": sync}
    for tie in ("untied", "tied")
    for unit in ("root", "own", "tail")
    for sync in ("last", "each")
    if sync == "last" or (tie, unit) in (("untied", "own"), ("tied", "root"))
} | {
    "bf16": {"bf16": True},
    "bf16-tied": {"bf16": True, "tie": True},
    "bf16-tokens": {"bf16": True, "tokens": True},
    "bf16-lora": {"bf16": True, "lora": True},
    "bias": {"unit": "own", "kind": "phi"},
    "softcap": {"unit": "tail", "kind": "gemma2", "tie": True},
    "scale": {"unit": "own", "kind": "cohere"},
    "lora": {"unit": "own", "lora": True},
    "lora-root": {"unit": "root", "lora": True},
    "tokens": {"unit": "own", "tokens": True},
    "tokens-tied": {"unit": "tail", "tie": True, "tokens": True},
    "tokens-lora": {"unit": "own", "lora": True, "tokens": True},
}


def rows(rank: int, micro: int) -> dict[str, torch.Tensor]:
    """One micro-batch: two rows of 10 tokens in three segments, and another share of trained tokens on each
    rank."""
    seed = torch.Generator().manual_seed(10 * rank + micro)
    ids = torch.randint(3, V, (2, 10), generator=seed)
    labels = ids.clone()
    labels[:, : 3 + 2 * rank + micro] = -100
    segments = torch.tensor([[1] * 5 + [2] * 5, [3] * 10])
    return {"input_ids": ids, "labels": labels, "segment_ids": segments.where(labels >= 0, 0)}


def loss_of(model: nn.Module, data: dict[str, torch.Tensor], count: float, case: dict[str, Any]):
    if case.get("tokens"):
        out = model(**data, tokens={})
        # Any loss of log-probabilities and entropies: here the odds and a bonus.
        return (-(out.log_probs + 0.1 * out.log_probs**2) + 0.3 * out.entropy).sum() / count
    fused = {"n": 4.0, "num_segments": 3, "normalizer": count, "chunk_rows": 6}
    return model(**data, fused=fused).loss


def build(case: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """(the model to call, the model that has the head), the same weights on every rank."""
    kind = case.get("kind", "llama")
    if case.get("lora"):
        model, base = adapted(kind=kind)
    else:
        options = {**FAMILIES[kind][0], "tie_word_embeddings": case.get("tie", False)}
        base = model = model_of(kind, **options)
    attach_fused_head(base)
    return model, base


def shard(model: nn.Module, base: nn.Module, case: dict[str, Any], mesh) -> None:
    if case.get("bf16"):
        accelerates.shard(model)
        return
    options: dict[str, Any] = {"mesh": mesh}
    for layer in base.model.layers:
        fully_shard(layer, **options)
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    # A shared weight belongs to one unit, so with a tied head the embedding comes along.
    shared = [embedding] if case.get("tie") else []
    norm = getattr(base.model, "norm", None) or base.model.final_layernorm
    if case["unit"] == "own":
        fully_shard([*shared, head] if shared else head, **options)
    elif case["unit"] == "tail":  # as accelerate does
        fully_shard([norm, *shared, head], **options)
    fully_shard(model, **options)


def run(name: str, mesh) -> dict[str, Any]:
    case, rank, world = CASES[name], dist.get_rank(), dist.get_world_size()
    batches = [[rows(r, m) for m in range(MICRO)] for r in range(world)]
    count = float(sum((b["labels"][:, 1:] >= 0).sum() for part in batches for b in part))
    model, _ = build(case)
    if case.get("bf16"):
        total, expected = in_bf16(model, [b for part in batches for b in part], count, case)
    else:
        total = sum(loss_of(model, b, count, case) for part in batches for b in part)
        expected = gradients(model, total)

    model, base = build(case)
    shard(model, base, case, mesh)
    assert isinstance(model, FSDPModule)
    mine = 0.0
    for m, data in enumerate(batches[rank]):
        model.set_requires_gradient_sync(case.get("sync", "last") == "each" or m == MICRO - 1)
        loss = loss_of(model, data, count, case) * world  # FSDP takes the mean over ranks
        loss.backward()
        mine += loss.item() / world
    found, sharded = {}, True
    for key, p in model.named_parameters():
        sharded &= isinstance(p, DTensor) and p.placements == (Shard(0),)
        sharded &= p.to_local().numel() < p.numel() or p.shape[0] == 1
        if p.grad is not None:
            found[key] = p.grad.full_tensor()
    loss = torch.tensor(mine)
    dist.all_reduce(loss)
    head = [k for k in expected if "lm_head" in k] or [k for k in expected if "embed_tokens" in k]
    return {
        "sharded": sharded,
        "loss": abs(loss.item() / total.item() - 1),
        "head": worst({k: found[k] for k in head}, {k: expected[k] for k in head}),
        "all": worst(found, expected),
    }


def in_bf16(model: nn.Module, batches: list, count: float, case: dict[str, Any]):
    """Loss and gradients of bf16 weights, the micro-batches summed in fp32."""
    for p in model.parameters():
        p.data = p.data.bfloat16()
    total, summed = 0.0, {}
    for data in batches:
        loss = loss_of(model, data, count, case)
        total += loss.detach()
        for name, g in gradients(model, loss).items():
            summed[name] = summed.get(name, 0.0) + g.float()
    return total, summed


def values(ours: bool) -> dict[str, Any]:
    """What enters the head and what leaves the model under accelerate's bf16 policy, or `ours`."""
    model, seen = accelerates.fused("llama"), []
    nn.init.zeros_(model.lm_head.weight)  # every token has p = 1/64
    accelerates.shard(model, ours)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    model.lm_head.register_forward_pre_hook(lambda _, x, more: seen.append(more["fused"]), with_kwargs=True)
    data, given = rows(dist.get_rank(), 0), {"normalizer": 12345.0, "p": 0.9973, "segment_weights": 0.9973}
    fused = {k: torch.tensor(v if k == "normalizer" else [v] * 3) for k, v in given.items()}
    coef = model(**data, fused={"n": 4.0, "num_segments": 3, "value": "surrogate", **fused}).coef
    log_probs = model(**data, tokens={}).log_probs
    return {
        **{name: seen[0][name].flatten()[0].item() for name in given},
        "coef": coef[0].item(),
        "log_p": log_probs[0, -1].item(),
    }


def direct(mesh) -> dict[str, Any]:
    """The loss called outside the head's forward: on the DTensor, and on what `full_tensor` makes of it."""
    world, found = dist.get_world_size(), {}
    labels = torch.arange(6) % V
    ids = torch.tensor([1, 1, 1, 2, 2, 0])
    for kind in ("whole", "full_tensor"):
        torch.manual_seed(0)
        head = nn.Linear(16, V, bias=True)
        hidden = [torch.randn(6, 16) for _ in range(world)]
        for h in hidden:
            confidence_limited(
                h, head.weight, labels, ids, 4.0, bias=head.bias, normalizer=6.0 * world
            ).loss.backward()
        expected = {k: p.grad.clone() for k, p in head.named_parameters()}
        head.zero_grad()
        fully_shard(head, mesh=mesh)
        weight, bias = head.weight, head.bias
        assert isinstance(weight, DTensor)
        if kind == "full_tensor":
            weight, bias = weight.full_tensor(), bias.full_tensor()
        out = confidence_limited(
            hidden[dist.get_rank()], weight, labels, ids, 4.0, bias=bias, normalizer=6.0 * world
        )
        (out.loss * world).backward()
        found[kind] = worst({k: p.grad.full_tensor() for k, p in head.named_parameters()}, expected)
    return found


def results() -> dict[str, Any]:
    """By case; of the first rank."""
    PartialState()  # joins the other ranks, unless a case before this one has
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    found: dict[str, Any] = {name: run(name, mesh) for name in CASES}
    found |= {"direct": direct(mesh), "ours": values(True), "accelerate's": values(False)}
    return found | {"world": dist.get_world_size()}
