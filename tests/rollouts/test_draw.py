"""Batches of groups: dynamic sampling by hand, the same on any number of ranks, stops and failures."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import RequestError, WorkError
from posttrain.recipe.sections import TrainRollout
from posttrain.rollouts.draw import Interrupted, RolloutSource
from tests.rollouts.sampled import FakeRewards, Made, Scripted


def mixed(*positions: int):
    """Half right on these prompts; the others all wrong where even, all right where odd."""
    return lambda i, j: j < 2 if i in positions else i % 2 == 1


NONE_MIXED = mixed()


def source(value=NONE_MIXED, **rollout) -> RolloutSource:
    options = {"num_generations": 4, "batch_size": 8, "max_new_tokens": 5} | rollout
    return RolloutSource(Made(), TrainRollout(**options), FakeRewards(value), seed=9)


def at(groups) -> list[tuple[int, int]]:
    """Position and round of each group."""
    return [(g.prompt.position, g.round) for g in groups]


# ---- dynamic sampling --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("good", "refill", "groups", "aside", "unfilled", "position"),
    [
        # off: whatever comes is taken
        ((), 0, [(0, 0), (1, 0), (2, 0), (3, 0)], [], 0, 4),
        # the first round is enough: no second one
        ((0, 1, 2, 3), 3, [(0, 0), (1, 0), (2, 0), (3, 0)], [], 0, 4),
        # two of four teach; the second round asks for two, the third for one
        ((1, 2, 5, 6), 3, [(1, 0), (2, 0), (5, 1), (6, 2)], [(0, 0), (3, 0), (4, 1)], 0, 7),
        # the bound: one further round, and the last one set aside fills the batch
        ((1, 2, 5), 1, [(1, 0), (2, 0), (5, 1), (4, 1)], [(0, 0), (3, 0)], 1, 6),
        # nothing teaches: 4 + 4 + 4 sampled, the last four trained on
        ((), 2, [(8, 2), (9, 2), (10, 2), (11, 2)], [(i, i // 4) for i in range(8)], 4, 12),
    ],
)
def test_groups_that_teach_nothing_are_refilled_up_to_a_bound(
    good, refill, groups, aside, unfilled, position
):
    made, generator = source(mixed(*good), refill=refill), Scripted()
    drawn = made.draw(generator, 4)
    assert (at(drawn.groups), at(drawn.aside), drawn.unfilled) == (groups, aside, unfilled)
    assert made.position == position and len(drawn.groups) == 4
    assert sorted(i for i, _ in made.rewards.seen) == [i for i in range(position) for _ in range(4)]
    assert set(drawn.seconds) == {"generate", "score"} and min(drawn.seconds.values()) >= 0
    assert made.draw(generator, 4).groups[0].prompt.position >= position


@settings(deadline=None, max_examples=60)
@given(st.sets(st.integers(0, 40)), st.integers(0, 4), st.integers(1, 6))
def test_no_prompt_is_lost_or_asked_twice(good, refill, size):
    made = source(mixed(*good), refill=refill)
    seen = []
    for _ in range(3):
        drawn = made.draw(Scripted(), size)
        assert len(drawn.groups) == size and len(drawn.groups + drawn.aside) <= size * (refill + 1)
        seen += [g.prompt.position for g in drawn.groups + drawn.aside]
        dull = sum(g.prompt.position not in good for g in drawn.groups)
        assert drawn.unfilled == (dull if refill else 0)
    assert sorted(seen) == list(range(made.position))


@pytest.mark.parametrize("truncated", ["train", "mask", "penalise"])
def test_a_group_is_mixed_as_the_advantages_will_see_it(truncated):
    """Prompt 0: two right, both cut off; 1: all right, one cut off. Penalised: all wrong, and mixed."""
    made = source(lambda i, j: j < 2 if i == 0 else True, refill=1, truncated=truncated)
    drawn = made.draw(Scripted(lambda i, j: (i, j) in ((0, 0), (0, 1), (1, 0))), 2)
    assert drawn.groups[0].prompt.position == (1 if truncated == "penalise" else 0)
    assert drawn.unfilled == 1


def test_what_could_not_be_judged_makes_no_group_mixed():
    made = source(lambda i, j: None if j else i == 0, refill=1)
    assert made.draw(Scripted(), 2).unfilled == 2


# ---- what the generator and the rewards are asked ----------------------------------------------------------


def test_prompts_are_sampled_in_batches_on_their_own_streams():
    made, generator = source(temperature=0.7, top_p=0.9), Scripted()
    drawn = made.draw(generator, 5)
    assert [call[0] for call in generator.calls] == [[0, 1], [2, 3], [4]]
    assert generator.entered == 1
    _, n, sampling, seed = generator.calls[0]
    assert (n, seed) == (4, 9)
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens, sampling.batch_size) == (
        0.7,
        0.9,
        5,
        8,
    )
    for group in drawn.groups:
        i = group.prompt.position
        assert [c.text for c in group.completions] == [f"{i}.{j}" for j in range(4)]
        assert [g.value for g in group.graded] == [float(i % 2)] * 4
        assert all(c.log_probs is None for c in group.completions), "nothing reads the policy's own"


def test_another_program_is_called_once_a_round_and_keeps_its_log_probs():
    """vLLM's calls are collective, so their number may not depend on how many prompts a rank has."""
    made, generator = source(backend="vllm_server"), Scripted()
    drawn = made.draw(generator, 5)
    assert [call[0] for call in generator.calls] == [[0, 1, 2, 3, 4]]
    assert drawn.groups[0].completions[0].log_probs == [-1.0]
    made.rank, made.ranks = 1, 2
    made.gather = lambda mine: [mine, (False, None, [])]
    with pytest.raises(KeyError):  # the other rank is not there; this one had nothing to ask and still called
        made.draw(generator, 1)
    assert generator.calls[-1][0] == []


# ---- ranks -------------------------------------------------------------------------------------------------


def on_ranks(ranks: int, work):
    """`work(rank, gather)` on as many threads; what each returned or raised."""
    barrier, values, found = threading.Barrier(ranks), [None] * ranks, [None] * ranks

    def run(rank: int) -> None:
        def gather(value):
            values[rank] = value
            barrier.wait(timeout=10)
            all_of_them = list(values)
            barrier.wait(timeout=10)
            return all_of_them

        try:
            found[rank] = work(rank, gather)
        except BaseException as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


@pytest.fixture(scope="module")
def drawn_on():
    """`drawn_on(ranks)`: what each rank has drawn."""

    def work(rank: int, gather, ranks: int):
        made = source(mixed(1, 2, 6, 8), refill=3)
        made.rank, made.ranks, made.gather = rank, ranks, gather
        drawn = made.draw(Scripted(), 5)
        told = [
            (at([g]), [c.text for c in g.completions], [d.value for d in g.graded])
            for g in drawn.groups + drawn.aside
        ]
        return (made.position, drawn.unfilled, told), made.rewards.seen

    return lambda ranks: on_ranks(ranks, lambda rank, gather: work(rank, gather, ranks))


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_every_rank_has_the_batch_that_one_would_have(drawn_on, ranks):
    """Also with more ranks than prompts, through refills whose prompts do not divide."""
    ((alone, judged),) = drawn_on(1)
    found = drawn_on(ranks)
    assert [each for each, _ in found] == [alone] * ranks
    assert sorted(s for _, seen in found for s in seen) == sorted(judged), "each judged once"


def test_a_stop_on_one_rank_stops_all_and_costs_no_prompt():
    made = {}

    def work(rank: int, gather):
        made[rank] = source(mixed(0), refill=2)
        made[rank].rank, made[rank].ranks, made[rank].gather = rank, 2, gather
        made[rank].stop_requested = lambda: rank == 1 and len(made[1].rewards.seen) > 5  # in the second round
        made[rank].draw(Scripted(), 4)

    first, second = on_ranks(2, work)
    assert isinstance(first, Interrupted) and isinstance(second, Interrupted)
    assert made[0].position == made[1].position == 0
    assert len(made[0].rewards.seen) > len(made[1].rewards.seen) >= 6


@pytest.mark.parametrize(
    "error", [WorkError("no worker starts"), RequestError("no such rule"), ZeroDivisionError("oh")]
)
@pytest.mark.parametrize("where", ["generate", "judge"])
def test_a_rank_that_fails_does_not_leave_the_others_waiting(error, where):
    """It raises its own error; the others a sentence that names it."""
    sources = {}

    def work(rank: int, gather):
        generator = Scripted()
        made = sources[rank] = source()
        made.rank, made.ranks, made.gather = rank, 2, gather

        def fail(*_, **__):
            raise error

        if rank == 1:
            setattr(
                *((generator, "generate", fail) if where == "generate" else (made.rewards, "grade", fail))
            )
        made.draw(generator, 4)

    first, second = on_ranks(2, work)
    assert second is error
    assert isinstance(first, WorkError)
    assert str(first) == f"process 1 failed while completions were sampled: {type(error).__name__}: {error}"
    assert [made.position for made in sources.values()] == [0, 0]


# ---- stops -------------------------------------------------------------------------------------------------


def test_a_stop_is_heard_between_batches_of_sequences():
    made, generator = source(), Scripted()
    made.stop_requested = lambda: len(generator.calls) >= 2
    with pytest.raises(Interrupted):
        made.draw(generator, 8)
    assert len(generator.calls) == 2 and not made.rewards.seen and made.position == 0
    made.stop_requested = lambda: False
    assert at(made.draw(generator, 2).groups) == [(0, 0), (1, 0)]


def test_a_stop_is_heard_between_verdicts():
    made = source()
    made.stop_requested = lambda: len(made.rewards.seen) >= 3
    with pytest.raises(Interrupted):
        made.draw(Scripted(), 4)
    assert len(made.rewards.seen) == 3 and made.position == 0


def test_an_interrupt_from_the_keyboard_goes_through():
    made, generator = source(), Scripted()
    made.rewards.grade = lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        made.draw(generator, 4)
    assert made.position == 0
