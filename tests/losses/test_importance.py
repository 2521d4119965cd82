"""Importance weights: by hand, against TRL's own lines, and properties."""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posttrain.losses.importance import MODES, importance_ratio

LN2 = math.log(2)


def of(differences, mode, mask=None, **bounds):
    """Weights for log-ratios `differences` [B, T]; the sampler's are all -1."""
    sampler = torch.full_like(torch.tensor(differences), -1.0)
    kept = torch.ones_like(sampler) if mask is None else torch.tensor(mask)
    return importance_ratio(sampler + torch.tensor(differences), sampler, kept, mode, **bounds).tolist()


def test_by_hand():
    """Log-ratios ln 2, ln 2, -ln 4: tokens 2, 2, 1/4; completion 2 * 2 / 4 = 1. Then ln 2 three times: 8."""
    rows = [[LN2, LN2, -2 * LN2], [LN2, LN2, LN2]]
    close = pytest.approx
    assert of(rows, "token_truncate", high=1.5)[0] == close([1.5, 1.5, 0.25])
    assert of(rows, "token_truncate", high=1.5, low=0.5)[0] == close([1.5, 1.5, 0.5])
    assert of(rows, "token_mask", high=1.5)[0] == close([0, 0, 0.25])
    assert of(rows, "token_mask", high=None, low=0.5)[0] == close([2, 2, 0])
    assert [r[0] for r in of(rows, "sequence_truncate")] == close([1, 3])
    assert [r[0] for r in of(rows, "sequence_mask")] == close([1, 0])
    assert [r[0] for r in of(rows, "sequence_mask", high=8.01)] == close([1, 8])
    assert [r[0] for r in of(rows, "sequence_mask", mask=[[1, 1, 0], [1, 1, 0]])] == [0, 0]  # 4
    assert [r[0] for r in of(rows, "sequence_truncate", high=None, low=None)] == close([1, 8])


def test_what_is_masked_or_unknown_is_not_read():
    inf, nan = math.inf, math.nan
    policy = torch.tensor([[-1.0, -inf, nan, -3.0]], requires_grad=True)
    sampler = torch.tensor([[-1.0 - LN2, -inf, -2.0, nan]])
    mask = torch.tensor([[1, 0, 0, 1]])
    found = importance_ratio(policy, sampler, mask, "token_truncate")
    assert found[0].tolist() == pytest.approx([2, 1, 1, 1]) and not found.requires_grad
    assert importance_ratio(policy, sampler, mask, "sequence_mask").item() == pytest.approx(2)
    half = importance_ratio(policy.bfloat16(), sampler.bfloat16(), mask, "token_mask")
    assert half.dtype == torch.float32


def trl_lines():
    """The statements of TRL's trainer that compute the ratio, as a function of the trainer and the batch."""
    from trl import GRPOTrainer

    tree = ast.parse(textwrap.dedent(inspect.getsource(GRPOTrainer._generate_and_score_completions)))
    asked = "self.use_vllm and self.vllm_importance_sampling_correction"
    (block,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
        and ast.unparse(node.test) == asked
        and "vllm_importance_sampling_ratio = torch.exp" in ast.unparse(node)
    ]
    body = "\n".join(map(ast.unparse, block.body))
    names = "self, completion_mask, tool_mask, old_per_token_logps, sampling_per_token_logps"
    source = (
        f"def ratio({names}):\n{textwrap.indent(body, '    ')}\n    return vllm_importance_sampling_ratio"
    )
    scope = {"torch": torch, "math": math}
    exec(source, scope)
    return scope["ratio"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bounds", [(3.0, None), (1.2, 0.8), (None, 0.5)])
def test_against_trl(mode, bounds):
    torch.manual_seed(0)
    policy, sampler = -torch.rand(64, 9) * 4, -torch.rand(64, 9) * 4
    sampler[3, 2] = math.nan
    mask = (torch.arange(9) < torch.randint(1, 10, (64, 1))).long()
    trainer = SimpleNamespace(
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_max=bounds[0],
        vllm_importance_sampling_clip_min=bounds[1],
    )
    theirs = trl_lines()(trainer, mask, None, policy, sampler)
    ours = importance_ratio(policy, sampler, mask, mode, *bounds)
    assert ours.shape == theirs.shape == (64, 9 if mode.startswith("token") else 1)
    assert torch.allclose(ours, theirs, rtol=1e-6)
    assert (ours != 1).float().mean() > 0.4  # the case shows something
    assert ((ours == 0).any() or mode.endswith("truncate")) and (ours > 0).any()


@given(
    st.lists(st.floats(-30, 30), min_size=1, max_size=6),
    st.sampled_from(MODES),
    st.floats(1, 50),
    st.floats(0.01, 1),
)
def test_bounds_hold_and_equal_programs_weigh_one(differences, mode, high, low):
    found = torch.tensor(of([differences], mode, high=high, low=low))
    allowed = (found >= low * 0.999) & (found <= high * 1.001)
    assert (allowed | ((found == 0) & torch.tensor(mode.endswith("mask")))).all()
    assert of([[0.0] * len(differences)], mode, high=high, low=low)[0][0] == 1.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "sequence"}, "unknown mode 'sequence'; choose one of token_truncate"),
        ({"low": 4.0}, "low = 4.0 is above high = 3.0"),
        ({"mask": torch.ones(2, 2)}, "expected the same"),
    ],
)
def test_wrong_calls(arguments, words):
    given = {"policy": torch.zeros(2, 3), "sampler": torch.zeros(2, 3), "mask": torch.ones(2, 3)}
    with pytest.raises(ValueError, match=words):
        importance_ratio(**(given | arguments))
