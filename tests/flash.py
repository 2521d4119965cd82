"""flash-attn on a CPU: its functions as transformers calls them, with its refusals, computed in fp32.

Everything above them is transformers' own path: padding that is cut out, documents found by their position
ids, types. Left out: dropout, ALiBi, caches in pages.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

IMPLEMENTATION = "flash_attention_2"


def _refuse(*tensors: Tensor) -> None:
    if tensors[0].dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    if len({x.dtype for x in tensors}) > 1:
        raise RuntimeError("query and key must have the same dtype")
    if any(x.stride(-1) != 1 for x in tensors):
        raise RuntimeError("Input tensor must have contiguous last dimension")
    if tensors[0].shape[-1] > 256:
        raise RuntimeError("FlashAttention forward only supports head dimension at most 256")


def _attend(q: Tensor, k: Tensor, v: Tensor, scale, causal: bool, window, softcap: float) -> Tensor:
    """One sequence: q [S, H, D], k and v [T, G, D]; the last query is at the last key."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.einsum("shd,thd->hst", q.float(), k.float()) * (scale or q.shape[-1] ** -0.5)
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    at = torch.arange(len(q))[:, None] + len(k) - len(q)
    back = at - torch.arange(len(k))[None]  # how far back a key is
    left, right = window[0], 0 if causal else window[1]
    out = (back > left if left >= 0 else False) | (-back > right if right >= 0 else False)
    if out is not False:
        scores = scores.masked_fill(out, -torch.inf)
    return torch.einsum("hst,thd->shd", scores.softmax(-1), v.float()).to(q.dtype)


def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0
):
    """q [B, S, H, D], k and v [B, T, G, D]."""
    _refuse(q, k, v)
    assert not dropout_p
    rows = zip(q, k, v, strict=True)
    return torch.stack([_attend(*row, softmax_scale, causal, window_size, softcap) for row in rows])


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
):
    """q [T, H, D]; sequence i is q[cu_seqlens_q[i] : cu_seqlens_q[i + 1]], likewise of k and v."""
    _refuse(q, k, v)
    assert not dropout_p and cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert int(cu_seqlens_q.diff().max()) <= max_seqlen_q and int(cu_seqlens_k.diff().max()) <= max_seqlen_k
    parts = [x.split(n.diff().tolist()) for x, n in ((q, cu_seqlens_q), (k, cu_seqlens_k), (v, cu_seqlens_k))]
    rows = zip(*parts, strict=True)
    return torch.cat([_attend(*row, softmax_scale, causal, window_size, softcap) for row in rows])


@pytest.fixture
def flash(monkeypatch) -> str:
    """As if flash-attn were installed and ran on CPUs; the name of the implementation."""
    from transformers import PreTrainedModel
    from transformers import modeling_flash_attention_utils as utils

    from posttrain.models import self_check
    from posttrain.recipe import attention

    monkeypatch.setattr(attention, "PACKAGES", {})

    def functions(implementation: str, *args, **kwargs) -> tuple:
        if implementation != IMPLEMENTATION:
            raise ImportError(f"no {implementation}")
        return flash_attn_func, flash_attn_varlen_func, None, utils._pad_input, utils._unpad_input

    def can_dispatch(model, *args, **kwargs) -> bool:  # it also asks for the package and a GPU
        if not model._supports_flash_attn:
            raise ValueError(f"{type(model).__name__} does not support Flash Attention 2 yet.")
        return True

    monkeypatch.setattr(utils, "_lazy_imports", functions)
    monkeypatch.setattr(utils, "_loaded_implementation", None)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", can_dispatch)
    monkeypatch.setattr(self_check, "CPU_ATTENTION", (*self_check.CPU_ATTENTION, IMPLEMENTATION))
    return IMPLEMENTATION
