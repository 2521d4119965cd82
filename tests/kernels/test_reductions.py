"""Reductions, gates, weights and counts worked by hand, on both back-ends.

The head is chosen so that probabilities are round: hidden row t is one-hot at t and W[:, t] = log
q_t, hence the logits of token t are log q_t and its probabilities are q_t. With V = 2 and label 0
everywhere, token t has p = q_t.

    token        0     1     2     3     4        5        6
    p            1/2   1/4   1/2   1/4   1/2      1/8      1/2
    segment      1     1     2     0     ignored  0        4
    label        0     0     0     0     -100     0        -100

Segment 1: p = 1/2 * 1/4 = 1/8 over 2 tokens. Segment 2: p = 1/2, 1 token. Segments 3 (absent) and 4
(all ignored) are empty. Tokens 3 and 5 are in no segment: -log p = 2 ln 2 and 3 ln 2.
Trained tokens: 5. Units: segments 1, 2 and tokens 3, 5 make 4.

With N = 2, 1 - (1-p)^2 = p (2 - p) and F = 2 (1-p) p / (p (2-p)) = 2 (1-p) / (2-p):
    segment 1: L = -ln(1/8 * 15/8) = -ln(15/64);  F = 2 * 7/8 / (15/8) = 14/15
    segment 2: L = -ln(1/2 *  3/2) = -ln(3/4);    F = 2 * 1/2 / (3/2)  = 2/3
"""

import math

import pytest
import torch

from posttrain_kernels import confidence_limited, count

LN2 = math.log(2)
L1, L2 = -math.log(15 / 64), -math.log(3 / 4)
F1, F2 = 14 / 15, 2 / 3
CE1, CE2 = 3 * LN2, LN2  # -log p of the segments
PLAIN = 5 * LN2  # tokens 3 and 5
P = torch.tensor([1 / 2, 1 / 4, 1 / 2, 1 / 4, 1 / 2, 1 / 8, 1 / 2], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 0, 0, -100, 0, -100])
IDS = torch.tensor([1, 1, 2, 0, 1, 0, 4])


@pytest.fixture(params=["torch", "torch-2", "reference"])
def loss(request):
    """-> (output, dLoss/dlog p_t [T]). The gradient by logit 0 of token t is this times 1 - p_t."""
    backend, _, rows = request.param.partition("-")

    def run(n=2.0, **options):
        hidden = torch.eye(7, dtype=torch.float64)
        weight = torch.stack([P.log(), (1 - P).log()]).requires_grad_()
        if rows:
            options["chunk_rows"] = int(rows)
        out = confidence_limited(hidden, weight, LABELS, IDS, n, num_segments=4, backend=backend, **options)
        out.loss.backward()
        return out, weight.grad[0] / (1 - P)

    return run


def check(got, want):
    assert got.tolist() == pytest.approx(want, rel=1e-9)


def test_sum(loss):
    """L1 + L2 + 5 ln 2; slopes -F of the segment, -1 for plain tokens, 0 where ignored."""
    out, slope = loss(reduction="sum")
    check(out.loss, L1 + L2 + PLAIN)
    check(slope, [-F1, -F1, -F2, -1, 0, -1, 0])
    check(out.coef, [F1, F2, 0, 0])
    check(out.segment_log_probs, [-CE1, -CE2, 0, 0])
    check(out.log_probs, [-LN2, -2 * LN2, -LN2, -2 * LN2, 0, -3 * LN2, 0])
    h2, h4, h8 = LN2, 2 * LN2 - 0.75 * math.log(3), 3 * LN2 - 7 / 8 * math.log(7)
    check(out.entropy, [h2, h4, h2, h4, 0, h8, 0])
    # P(label 0) < 1/2 is wrong; at exactly 1/2 either answer is an argmax
    assert out.correct[[1, 3, 4, 5, 6]].tolist() == [False] * 5


def test_token_mean(loss):
    """(L1 + L2 + 5 ln 2) / 5 trained tokens."""
    out, slope = loss(reduction="token_mean")
    check(out.loss, (L1 + L2 + PLAIN) / 5)
    check(slope, [-F1 / 5, -F1 / 5, -F2 / 5, -1 / 5, 0, -1 / 5, 0])


def test_segment_mean(loss):
    """(L1 + L2 + 5 ln 2) / 4 units: empty segments are not in the denominator."""
    out, slope = loss(reduction="segment_mean")
    check(out.loss, (L1 + L2 + PLAIN) / 4)
    check(slope, [-F1 / 4, -F1 / 4, -F2 / 4, -1 / 4, 0, -1 / 4, 0])


def test_length_mean(loss):
    """(L1 / 2 + L2 / 1 + 2 ln 2 / 1 + 3 ln 2 / 1) / 4; the ignored token is no length."""
    out, slope = loss(reduction="length_mean")
    check(out.loss, (L1 / 2 + L2 + PLAIN) / 4)
    check(slope, [-F1 / 8, -F1 / 8, -F2 / 4, -1 / 4, 0, -1 / 4, 0])


@pytest.mark.parametrize("reduction", ["token_mean", "segment_mean", "length_mean"])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_global_normalizer_replaces_the_count(loss, reduction, kind):
    """A count of 40 over all ranks: numerator / 40. A sum is divided by nothing."""
    first = L1 / 2 if reduction == "length_mean" else L1
    out, slope = loss(reduction=reduction, normalizer=kind(40))
    check(out.loss, (first + L2 + PLAIN) / 40)
    assert slope[2].item() == pytest.approx(-F2 / 40)
    check(loss(reduction="sum", normalizer=kind(40))[0].loss, L1 + L2 + PLAIN)


def test_micro_batches_add_up_to_the_whole(loss):
    """Tokens 0-2 alone count 3, tokens 3-6 count 2; each divided by 5, they add up."""
    whole, _ = loss(reduction="token_mean")
    parts = []
    for rows in (slice(0, 3), slice(3, 7)):
        hidden = torch.eye(7, dtype=torch.float64)[rows]
        weight = torch.stack([P.log(), (1 - P).log()])
        parts.append(confidence_limited(hidden, weight, LABELS[rows], IDS[rows], 2.0, normalizer=5).loss)
    check(sum(parts), whole.loss.item())


def test_surrogate(loss):
    """Value F * (-log p): 14/15 * 3 ln 2 + 2/3 * ln 2 + 5 ln 2; the slopes of `exact`."""
    out, slope = loss(reduction="sum", value="surrogate")
    check(out.loss, F1 * CE1 + F2 * CE2 + PLAIN)
    check(slope, [-F1, -F1, -F2, -1, 0, -1, 0])


def test_external_p(loss):
    """p = 1/2 for segment 1: F = 2/3; p = 1: F = 0; p = 0: F = 1 (empty segments stay at 0)."""
    p = torch.tensor([0.5, 1.0, 0.0, 0.0])
    out, slope = loss(reduction="sum", value="surrogate", p=p)
    check(out.loss, 2 / 3 * CE1 + 0 + PLAIN)
    check(slope, [-2 / 3, -2 / 3, 0, -1, 0, -1, 0])
    check(out.coef, [2 / 3, 0, 0, 0])
    check(loss(reduction="sum", value="surrogate", p=p.flip(0))[0].coef, [1, 1, 0, 0])


def test_segment_weights(loss):
    """-3 L1 + 0 L2 + 5 ln 2 over the same 5 tokens; coef stays F."""
    weights = torch.tensor([-3.0, 0.0, 7.0, 7.0])
    out, slope = loss(segment_weights=weights)
    check(out.loss, (-3 * L1 + PLAIN) / 5)
    check(slope, [3 * F1 / 5, 3 * F1 / 5, 0, -1 / 5, 0, -1 / 5, 0])
    check(out.coef, [F1, F2, 0, 0])


def test_n_per_segment(loss):
    """N = 1 for segment 1 (3 ln 2, slope -1), N = 2 for segment 2."""
    out, slope = loss(n=torch.tensor([1.0, 2.0, 9.0, 9.0]), reduction="sum")
    check(out.loss, CE1 + L2 + PLAIN)
    check(slope, [-1, -1, -F2, -1, 0, -1, 0])


def test_p_gate_is_strict(loss):
    """p = 1/8 and 1/2. Threshold 1/2 stops segment 2 (1/2 < 1/2 is false) and keeps segment 1; the
    denominator stays 5."""
    out, slope = loss(p_threshold=0.5 * (1 - 1e-12))
    check(out.loss, (L1 + PLAIN) / 5)
    check(slope, [-F1 / 5, -F1 / 5, 0, -1 / 5, 0, -1 / 5, 0])
    check(out.coef, [F1, 0, 0, 0])
    p = torch.tensor([0.5, 0.25, 0.0, 0.0])  # external p is exact in floating point
    check(loss(p=p, value="surrogate", p_threshold=0.5)[0].coef, [0, 2 * 0.75 / 1.75, 0, 0])


def test_weight_gate_is_strict(loss):
    """F = 14/15 and 2/3: threshold 0.7 stops segment 2. Under cross-entropy F = 1, not > 1."""
    check(loss(reduction="sum", weight_threshold=0.7)[0].loss, L1 + PLAIN)
    check(loss(reduction="sum", n=1, weight_threshold=1.0)[0].loss, PLAIN)
    check(loss(reduction="sum", n=1, weight_threshold=0.999)[0].loss, CE1 + CE2 + PLAIN)


def test_temperature(loss):
    """tau = 1/2 squares the odds: p = 1/2 stays, 1/4 (odds 1/3) becomes 1/10, 1/8 (1/7) becomes
    1/50. N = 1, sum: ln 2 + ln 10 + ln 2 + ln 10 + ln 50. d/dlogit = (1 - p') / tau."""
    out, slope = loss(n=1, reduction="sum", temperature=0.5)
    check(out.loss, 2 * LN2 + 2 * math.log(10) + math.log(50))
    # `slope` divided by 1 - p, so undo it: token 1 has 1 - p' = 9/10 and 1 - p = 3/4
    assert slope[1].item() == pytest.approx(-(9 / 10) / 0.5 / (3 / 4))


def test_count():
    """5 trained tokens; 4 units; [B, L] and [T] agree; nothing trained counts 0; a sum counts 1."""
    for labels, ids in ((LABELS, IDS), (LABELS[:6].view(2, 3), IDS[:6].view(2, 3))):
        assert count(labels, ids, "token_mean").item() == 5
        assert count(labels, ids, "segment_mean").item() == 4
        assert count(labels, ids, "length_mean").item() == 4
        assert count(labels, ids, "sum").item() == 1
    nothing = torch.full((3,), -100)
    assert count(nothing, torch.tensor([1, 1, 0]), "segment_mean").item() == 0
    assert count(nothing[:0], nothing[:0], "length_mean").item() == 0
    with pytest.raises(ValueError, match="reduction"):
        count(LABELS, IDS, "mean")
    with pytest.raises(ValueError, match="segment_ids"):
        count(LABELS, IDS[:3])
