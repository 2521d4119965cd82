"""The mixture contract: prefixes, epochs, determinism, independence of ranks, and what is refused."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.mixture import MixedSource, Mixture
from posttrain.errors import RequestError

OF_EACH = {
    "weights": "weight",
    "caps": "cap",
    "max_repeats": "max_repeats",
    "mean_tokens": "mean_tokens",
    "fingerprints": "fingerprint",
}
"""Lists over the sources -> the field of `MixedSource`."""


def mixed(sizes, names, weights=None, **arguments) -> Mixture:
    """A mixture whose sources are given as lists."""
    lists = {"weights": weights} | arguments
    of_each = {field: lists[key] for key, field in OF_EACH.items() if lists.get(key) is not None}
    sources = [
        MixedSource(name, size, **{field: values[i] for field, values in of_each.items()})
        for i, (name, size) in enumerate(zip(names, sizes, strict=True))
    ]
    return Mixture(sources, **{key: value for key, value in arguments.items() if key not in OF_EACH})


@st.composite
def mixtures(draw, proportional=None):
    """Arguments of a small mixture."""
    m = draw(st.integers(1, 6))
    sizes = draw(st.lists(st.integers(1, 40), min_size=m, max_size=m))
    if proportional is None:
        proportional = draw(st.booleans())
    positive = st.sampled_from([0.1, 0.25, 1, 2, 3.5, 7])
    return {
        "sizes": sizes,
        "names": [f"s{i}" for i in range(m)],
        "weights": None if proportional else draw(st.lists(positive, min_size=m, max_size=m)),
        "seed": draw(st.integers(0, 2**32)),
        "shuffle": draw(st.booleans()),
        "caps": draw(st.lists(st.none() | st.integers(1, 50), min_size=m, max_size=m)),
    }


@settings(deadline=None, max_examples=60)
@given(mixtures())
def test_every_prefix_is_within_one_example_and_counts_say_so(arguments):
    m = mixed(**arguments)
    counts = [0] * len(m.sizes)
    for i in range(200):
        counts[m[i][0]] += 1
        assert m.counts(i + 1) == counts
        assert all(abs(c - w * (i + 1)) < 1 - 1e-9 for c, w in zip(counts, m.weights, strict=True))
    assert m.repeats(200) == [c / n for c, n in zip(counts, m.sizes, strict=True)]
    assert m.realised(200) == pytest.approx([c / 200 for c in counts])


@settings(deadline=None, max_examples=60)
@given(mixtures(proportional=True))
def test_by_default_an_epoch_shows_every_row_once(arguments):
    m = mixed(**arguments)
    epochs = [[m[e * len(m) + i] for i in range(len(m))] for e in range(3)]
    assert len(m) == sum(m.sizes)
    for epoch in epochs:
        assert len(set(epoch)) == len(m)
        assert set(epoch) == set(epochs[0])  # a cap chooses the same rows every time
    for s, (size, cap) in enumerate(zip(arguments["sizes"], arguments["caps"], strict=True)):
        rows = {row for source, row in epochs[0] if source == s}
        assert len(rows) == min(size, cap or size) and rows <= set(range(size))


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(mixtures(), st.permutations(range(120)))
def test_any_order_of_access_any_process_the_same_examples(arguments, positions):
    one, other = mixed(**arguments), pickle.loads(pickle.dumps(mixed(**arguments)))
    sequential = [one[i] for i in range(120)]
    assert [other[i] for i in positions] == [sequential[i] for i in positions]
    assert one.fingerprint == other.fingerprint


def test_passes_over_a_source_have_their_own_orders_and_no_shuffle_is_file_order():
    shuffled = mixed([50], ["a"], seed=3)
    passes = [[shuffled[e * 50 + i][1] for i in range(50)] for e in range(3)]
    assert all(sorted(p) == list(range(50)) for p in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]
    assert passes[0] != list(range(50))
    in_order = mixed([4, 2], ["a", "b"], seed=3, shuffle=False)
    # 4 : 2 is 2 : 1, e = 1/2: A from 1, 3 by 1, 3 and B from 2 by 3, so A B A.
    assert [in_order[i] for i in range(8)] == [
        *[(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (0, 3)],
        *[(0, 0), (1, 0)],
    ]


def test_a_cap_is_a_seeded_choice_in_file_order_without_shuffle():
    def rows(seed):
        m = mixed([1000], ["a"], seed=seed, shuffle=False, caps=[20])
        return [m[i][1] for i in range(20)]

    assert rows(1) == sorted(rows(1)) != rows(2)
    assert rows(1) != list(range(20)) and max(rows(1)) > 500


def test_seed_and_name_make_the_order_and_other_sources_do_not_matter():
    def of_source(m, name):
        s = m.names.index(name)
        return [row for source, row in (m[i] for i in range(60)) if source == s][:15]

    base = mixed([30, 30], ["a", "b"], seed=1)
    assert of_source(base, "a") != of_source(base, "b")
    assert of_source(base, "b") == of_source(mixed([9, 30], ["x", "b"], [1, 3], seed=1), "b")
    assert of_source(base, "a") != of_source(mixed([30, 30], ["a", "b"], seed=2), "a")


@pytest.mark.parametrize(("ranks", "micro", "workers"), [(1, 1, 1), (2, 4, 3), (8, 1, 2)])
def test_a_global_batch_holds_the_same_examples_whatever_the_ranks(ranks, micro, workers):
    """Batch k is positions 24k .. 24k + 23, cut over ranks, accumulation and loader workers alike."""
    arguments = {"sizes": [40, 25, 7], "names": ["a", "b", "c"], "weights": [5, 3, 2], "seed": 9}
    reference = mixed(**arguments)
    for k in (0, 3, 50):
        held = []
        for rank in range(ranks):
            of_worker = [mixed(**arguments) for _ in range(workers)]  # each its own process
            mine = range(24 * k + rank, 24 * (k + 1), ranks)
            batches = [list(mine)[j : j + micro] for j in range(0, len(mine), micro)]
            for number, batch in enumerate(batches):
                held += [of_worker[number % workers][i] for i in batch]
        assert sorted(held) == sorted(reference[i] for i in range(24 * k, 24 * (k + 1)))


@pytest.mark.slow
def test_another_process_with_another_hash_seed_agrees():
    code = (
        "from posttrain.data.mixture import MixedSource, Mixture\n"
        "sources = [MixedSource('ä', 40, 0.3), MixedSource('b', 25, 0.7, cap=11)]\n"
        "m = Mixture(sources, seed=9)\n"
        "print(m.fingerprint, [m[i] for i in range(60)])"
    )
    out = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    m = mixed([40, 25], ["ä", "b"], [0.3, 0.7], seed=9, caps=[None, 11])
    assert out == {f"{m.fingerprint} {[m[i] for i in range(60)]}\n"}


def test_weights_by_trained_tokens():
    # Equal shares of the tokens; a row of b has four times the tokens of a row of a: 4 rows of a for 1 of b.
    m = mixed([100, 100], ["a", "b"], [1, 1], seed=0, weighting="tokens", mean_tokens=[10.0, 40.0])
    assert m.weights == [0.5, 0.5] and m.shares == [0.8, 0.2]
    assert m.counts(500) == [400, 100] and m.realised(500) == [0.5, 0.5]
    unset = mixed([100, 50], ["a", "b"], seed=0, weighting="tokens", mean_tokens=[10.0, 40.0])
    assert unset.shares == pytest.approx([2 / 3, 1 / 3]) and unset.rounding == 0.0
    assert unset.weights == pytest.approx([1 / 3, 2 / 3])  # 1000 and 2000 tokens


def test_temperature():
    # 16 : 1 at T = 2 is 4 : 1; at T = 4 it is 2 : 1.
    assert mixed([16, 1], ["a", "b"], seed=0, temperature=2.0).shares == [0.8, 0.2]
    four = mixed([5, 5], ["a", "b"], [16, 1], seed=0, temperature=4.0)
    assert four.weights == pytest.approx([2 / 3, 1 / 3])
    assert four.shares == pytest.approx([2 / 3, 1 / 3], abs=four.rounding + 1e-12)
    huge = mixed([5, 5], ["a", "b"], [1e300, 1e299], seed=0, temperature=0.5)
    assert huge.shares == pytest.approx([100 / 101, 1 / 101], abs=1e-6)


def test_a_weight_of_zero_leaves_a_source_out():
    m = mixed([10, 20], ["a", "b"], [1, 0], seed=0)
    assert len(m) == 10 and {m[i][0] for i in range(50)} == {0}


def test_max_repeats_names_source_count_and_limit():
    m = mixed([100, 10], ["big", "small"], [1, 1], seed=0, max_repeats=[None, 3])
    m.check(60)  # 30 examples of 10 rows: exactly three times
    with pytest.raises(RequestError) as error:
        m.check(70)
    text = str(error.value)
    assert "data.sources[1].max_repeats" in text and "'small'" in text
    assert "3.5 times (35 examples of 10 rows)" in text and "limit is 3" in text
    once = mixed([7, 5], ["a", "b"], seed=0, max_repeats=[1, 1])
    once.check(len(once))
    with pytest.raises(RequestError, match="limit is 1"):
        once.check(len(once) + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [1, -1]}, r"data\.sources\[1\]\.weight = -1"),
        ({"weights": [float("nan"), 1]}, r"data\.sources\[0\]\.weight = nan"),
        ({"weights": [1, float("inf")]}, r"data\.sources\[1\]\.weight = inf"),
        ({"weights": [0, 0.0]}, "every weight is 0"),
        ({"weights": [1, None]}, r"data\.sources\[1\]\.weight is not set.*all or none"),
        ({"weights": [None, 1]}, r"data\.sources\[0\]\.weight is not set.*all or none"),
        ({"sizes": [3, 0]}, r"data\.sources\[1\]: source 'b' has no rows"),
        ({"names": ["a", "a"]}, r"data\.sources\[1\]\.name = 'a' is used twice"),
        ({"caps": [0, None]}, r"data\.sources\[0\]\.max_examples = 0"),
        ({"temperature": 0.0}, r"data\.temperature"),
        ({"temperature": float("nan")}, r"data\.temperature"),
        ({"sizes": [], "names": []}, "data.sources is empty"),
        ({"weighting": "tokens"}, "data.weighting"),
        ({"weighting": "tokens", "mean_tokens": [0.0, 1.0]}, "data.weighting"),
    ],
)
def test_refusals_name_the_key(change, message):
    arguments = {"sizes": [3, 4], "names": ["a", "b"], "seed": 0} | change
    with pytest.raises(RequestError, match=message):
        mixed(**arguments)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"weights": [1, 2]},
        {"caps": [2, None]},
        {"temperature": 2.0},
        {"fingerprints": ["x", "z"]},
        {"names": ["a", "c"]},
        {"sizes": [3, 5]},
        {"shuffle": False},
    ],
)
def test_the_fingerprint_tells_mixtures_apart(change):
    base = {"sizes": [3, 4], "names": ["a", "b"], "seed": 0, "fingerprints": ["x", "y"]}
    assert mixed(**base).fingerprint == mixed(**base).fingerprint
    assert mixed(**base).fingerprint != mixed(**base | change).fingerprint


def test_negative_positions():
    with pytest.raises(IndexError):
        mixed([3], ["a"], seed=0)[-1]
