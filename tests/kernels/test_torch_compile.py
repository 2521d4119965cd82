"""Mode A as one operator of a compiled graph: no break, no other numbers, shapes that vary."""

import pytest
import torch

from posttrain_kernels import compiled, compiled_tokens, confidence_limited, token_log_probs

H, V = 8, 11


def problem(tokens: int, dtype=torch.float32) -> dict[str, torch.Tensor]:
    gen = torch.Generator().manual_seed(tokens)
    labels = torch.randint(V, (tokens,), generator=gen)
    labels[::5] = -100
    return {
        "hidden": torch.randn(tokens, H, generator=gen).to(dtype).requires_grad_(),
        "weight": torch.randn(V, H, generator=gen).to(dtype).requires_grad_(),
        "labels": labels,
        "segment_ids": torch.arange(tokens) // 4 + 1,
        "bias": torch.randn(V, generator=gen).to(dtype).requires_grad_(),
        "left": torch.randn(tokens, 2, generator=gen).to(dtype).requires_grad_(),
        "right": torch.randn(V, 2, generator=gen).to(dtype).requires_grad_(),
        "n": torch.full((-(-tokens // 4),), 16.0),
        "normalizer": torch.tensor(7.0),
    }


def step(t, n, segments, **controls):
    """Something of the loss on either side of it, as in a model."""
    out = confidence_limited(
        t["hidden"].tanh(),
        t["weight"],
        t["labels"],
        t["segment_ids"],
        n,
        bias=t["bias"],
        low_rank=(t["left"], t["right"]),
        normalizer=t["normalizer"],
        num_segments=segments,
        value="surrogate",
        reduction="length_mean",
        weight_threshold=0.01,
        softcap=20.0,
        z_loss=0.1,
        **controls,
    )
    return out.loss * 2, out


@pytest.mark.slow
@pytest.mark.parametrize("n", [1.0, 16.0, "table"])
def test_a_compiled_step_gives_the_same_numbers_without_a_graph_break(n):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    for tokens in (12, 20, 29):
        grads, outs = [], []
        for run in (step, traced):
            t = problem(tokens)
            loss, out = run(t, t["n"] if n == "table" else n, -(-tokens // 4))
            loss.backward()
            grads.append([t[k].grad for k in ("hidden", "weight", "bias", "left", "right")])
            outs.append(out)
            assert not any(x.requires_grad for x in out[1:])
        for a, b in zip(grads[0] + list(outs[0]), grads[1] + list(outs[1]), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert all(g.norm() > 0 for g in grads[0])
    stats = torch._dynamo.utils.counters
    assert not stats["graph_break"]
    assert stats["stats"]["unique_graphs"] <= 2, "the number of tokens must not recompile each time"


@pytest.mark.slow
def test_smoothing_and_bonus_reach_the_operator():
    torch._dynamo.reset()
    controls = {"member": "cross_entropy", "label_smoothing": 0.2, "entropy_bonus": 0.3}
    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    grads, outs = [], []
    for run, more in ((step, controls), (traced, controls), (step, {"member": "cross_entropy"})):
        t = problem(12)
        loss, _ = run(t, 1.0, 3, **more)
        loss.backward()
        grads.append(t["weight"].grad)
        outs.append(loss)
    assert torch.equal(grads[0], grads[1]) and torch.equal(outs[0], outs[1])
    assert not torch.allclose(grads[0], grads[2]) and outs[0] != outs[2]


@pytest.mark.slow
def test_the_operator_keeps_its_promises():
    """Schema, fake and autograd registration, by torch's own checker."""
    t = problem(8, torch.float64)
    for wants in ([True, True, True, True], [True, False, False, False]):
        arguments = (
            t["hidden"],
            t["weight"],
            t["left"],
            t["right"],
            t["labels"],
            t["segment_ids"],
            torch.tensor(3.0),
            None,
            None,
            None,
            2,
            "confidence",
            None,
            "exact",
            "token_mean",
            None,
            None,
            1.0,
            None,
            None,
            0.0,
            0.0,
            0.3,
            None,
            "torch",
            None,
            wants,
        )
        tests = ["test_schema", "test_faketensor", "test_aot_dispatch_dynamic"]
        if not all(wants):
            tests = tests[:2]  # the rest needs gradients of every tensor that requires one
        results = torch.library.opcheck(compiled._loss, arguments, test_utils=tests)
        assert set(results.values()) == {"SUCCESS"}


@pytest.mark.slow
def test_bad_values_are_refused_when_the_operator_runs():
    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    t = problem(12)
    with pytest.raises(ValueError, match=r"n: 0\.5 is not a finite number >= 1"):
        traced(t, 0.5, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "num_segments: needed"), ({"backend": "reference", "num_segments": 3}, "backend: not")],
)
def test_what_a_graph_cannot_hold_is_named(options, message):
    torch._dynamo.reset()

    def loss(t):
        return confidence_limited(
            t["hidden"], t["weight"], t["labels"], t["segment_ids"], 4.0, **options
        ).loss

    with pytest.raises(Exception, match=message):
        torch.compile(loss, backend="aot_eager", fullgraph=True)(problem(12))


def token_step(t):
    out = token_log_probs(
        t["hidden"].tanh(),
        t["weight"],
        t["labels"],
        bias=t["bias"],
        low_rank=(t["left"], t["right"]),
        softcap=20.0,
        temperature=0.7,
    )
    return (out.log_probs * torch.arange(len(out.log_probs))).sum() - 0.3 * out.entropy.sum(), out


@pytest.mark.slow
def test_mode_b_compiles_to_the_same_numbers():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    traced = torch.compile(token_step, backend="aot_eager", fullgraph=True)
    for tokens in (12, 20, 29):
        found = []
        for run in (token_step, traced):
            t = problem(tokens)
            loss, out = run(t)
            loss.backward()
            grads = [t[k].grad for k in ("hidden", "weight", "bias", "left", "right")]
            found.append([*grads, *(x.detach() for x in out)])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@pytest.mark.slow
def test_the_operators_of_mode_b_keep_their_promises():
    t = problem(8, torch.float64)
    arguments = (t["hidden"], t["weight"], t["left"], t["right"], t["labels"], 1.0, 5.0, None, "torch", None)
    assert set(torch.library.opcheck(compiled_tokens._forward, arguments).values()) == {"SUCCESS"}
