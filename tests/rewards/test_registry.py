"""Naming rewards, settling their options, and what a broken checker or verdict becomes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from importlib import metadata

import pytest

from posttrain.base.registry import Registry
from posttrain.errors import RequestError
from posttrain.rewards import REWARDS, Bound, bind, load_all, score, score_batch
from posttrain.rewards.catalogue import MODULES
from posttrain.rewards.registry import find
from posttrain.types import Example
from tests.rewards import probes

PROBES = "tests.rewards.probes"
EXAMPLE = Example(answer="5")


# ---- names -------------------------------------------------------------------------------------------------


def test_wrong_names_get_the_nearest_spelling():
    with pytest.raises(RequestError, match="unknown reward 'mathh'.*did you mean 'math'.*rewards list"):
        bind("mathh")
    with pytest.raises(RequestError, match=r"^rewards\[2\]: unknown reward 'mathh'"):
        bind("mathh", at="rewards[2]")
    with pytest.raises(RequestError, match="has no 'equals'.*did you mean 'equal'"):
        bind(f"{PROBES}:equals")
    with pytest.raises(RequestError, match="NOT_A_FUNCTION is not a function but int"):
        bind(f"{PROBES}:NOT_A_FUNCTION")
    with pytest.raises(RequestError, match="cannot import tests.rewards.prboes: ModuleNotFoundError"):
        bind("tests.rewards.prboes:equal")


def test_a_module_that_breaks_on_import_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "broken_reward.py").write_text("raise ZeroDivisionError('oh')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RequestError, match="cannot import broken_reward: ZeroDivisionError: oh"):
        bind("broken_reward:fn")


def test_dotted_paths_and_entry_points_reach_the_workers(tmp_path, monkeypatch):
    """An entry point of a distribution that lies on sys.path, as an installed one does."""
    (tmp_path / "outside.py").write_text(
        "from posttrain.types import Verdict\n"
        "def halves(completion, example, of: float = 1.0):\n    return Verdict(of / 2)\n"
    )
    dist = tmp_path / "outside-1.0.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (dist / "entry_points.txt").write_text(
        "[posttrain.rewards]\nhalves = outside:halves\nmath = outside:halves\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert score("halves", "x", EXAMPLE, of=0.5).value == 0.25
    assert score("outside:halves", "x", EXAMPLE).value == 0.5
    assert find("math").fn is REWARDS["math"].fn, "a plugin cannot take the place of a built-in reward"
    with pytest.raises(RequestError, match="did you mean 'halves'"):
        bind("halvess")
    assert any(p.name == "halves" for p in metadata.entry_points(group="posttrain.rewards"))


def test_a_name_is_registered_once():
    registry = Registry("reward")
    registry.register("a")(1)
    with pytest.raises(ValueError, match="'a' is registered twice"):
        registry.register("a")(2)


def test_every_reward_says_what_it_judges_and_types_its_options():
    assert len(list(load_all())) > 15
    for name in REWARDS:
        spec = REWARDS[name]
        assert spec.about and len(spec.about) <= 150, name
        assert spec.options is not None, name


# ---- options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"wole": 2}, "unknown option 'wole' .did you mean 'whole'"),
        ({"whole": 1.5}, "whole must be a whole number, not 1.5"),
        ({"whole": "1"}, "whole must be a whole number, not '1'"),
        ({"share": "x"}, "share must be a number, not 'x'"),
        ({"share": True}, "share must be a number, not true"),
        ({"names": "x"}, "names must be a list of text, not 'x'"),
        ({"names": [1]}, r"names\[0\] must be text, not 1"),
        ({"mode": "c"}, r"mode = 'c' \(one of: a, b\)"),
    ],
)
def test_options_are_checked_before_anything_runs(options, sentence):
    with pytest.raises(RequestError, match=sentence):
        bind(f"{PROBES}:options", options, "rewards[0]")


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(RequestError) as error:
        bind(f"{PROBES}:options", {"wole": 1, "mode": "c"}, "rewards[0]")
    assert str(error.value).count("rewards[0]: reward") == 2


def test_options_arrive_with_their_defaults_and_types():
    given = bind(f"{PROBES}:options", {"whole": 2.0, "share": 1, "names": ["x"]})
    verdict = score_batch(given, [""], [EXAMPLE])[0]
    assert verdict.details["options"] == [2, 1.0, ["x"], "a"]
    assert [type(v) for v in verdict.details["options"][:2]] == [int, float]


def test_a_reward_must_name_its_options():
    with pytest.raises(RequestError, match=r"takes \*args or \*\*kwargs; declare every option"):
        bind(f"{PROBES}:starred")


# ---- rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (Example(where="f:3", extra={"tests": ["x"]}), "f:3: reward 'probe-strict' needs column 'answer'"),
        (
            Example(answer="1", where="f:4", extra={"test": ["x"]}),
            "f:4: .*'tests' or 'stdin_tests' .did you mean 'test'",
        ),
        (Example(answer="x", where="f:5", extra={"tests": ["x"]}), "f:5: .*the answer 'x' is not a number"),
    ],
)
def test_rows_are_checked_at_load_time(row, sentence):
    good = Example(answer="1", extra={"stdin_tests": []})
    bind("probe-strict").check_row(good)
    with pytest.raises(RequestError, match=sentence):
        bind("probe-strict").check_row(row)


def test_check_row_receives_the_options_that_it_names():
    """With their bound values: defaults are declared once, in the reward."""
    bound, seen = bind(f"{PROBES}:options", {"share": 0.25}), []

    def check(check_row) -> None:
        Bound(dataclasses.replace(bound.spec, check_row=check_row), bound.options).check_row(EXAMPLE)

    check(lambda example, mode, share: seen.append((mode, share)))
    check(lambda example, **options: seen.append(options))
    check(lambda example: seen.append(example))
    assert seen == [("a", 0.25), bound.options, EXAMPLE] and bound.options["whole"] == 1
    with pytest.raises(RequestError, match="check_row reads the unknown option 'shar' .did you mean 'share'"):
        check(lambda example, shar: None)


# ---- verdicts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"value": float("nan")}, "nan, not a finite number"),
        ({"value": float("inf")}, "inf, not a finite number"),
        ({"value": 1.5}, "1.5, outside"),
        ({"value": -0.1}, "-0.1, outside"),
        ({"value": None}, "None, not a finite number"),
        ({"value": "1"}, "'1', not a finite number"),
        ({"value": 1.0, "status": "fine"}, "the status 'fine'"),
        (1.0, "returned float, not a Verdict"),
        (None, "returned NoneType, not a Verdict"),
    ],
)
def test_what_is_no_verdict_in_range_is_an_error_of_the_checker(given, reason):
    verdict = score(f"{PROBES}:returns", "", Example(extra={"given": given}))
    assert (verdict.value, verdict.status) == (None, "error") and reason in verdict.reason


def test_a_verdict_passes_through_with_its_time():
    given = {"value": True, "details": {"answer": "5"}}
    verdict = score(f"{PROBES}:returns", "", Example(extra={"given": given}))
    assert verdict.value == 1.0 and type(verdict.value) is float
    assert (verdict.status, verdict.details) == ("scored", {"answer": "5"})
    assert 0 < verdict.ms < 1000


@pytest.mark.parametrize("status", ["timeout", "error"])
def test_a_failed_check_has_no_value(status):
    given = {"value": 0.0, "status": status, "reason": "slow"}
    assert score(f"{PROBES}:returns", "", Example(extra={"given": given})).value is None


def test_an_exception_is_the_checkers_fault_exhaustion_the_completions():
    assert score(f"{PROBES}:raises", "zero", EXAMPLE).status == "error"
    assert "ZeroDivisionError: oh" in score(f"{PROBES}:raises", "zero", EXAMPLE).reason
    for kind, what in (("stack", "nesting"), ("memory", "memory")):
        verdict = score(f"{PROBES}:raises", kind, EXAMPLE)
        assert (verdict.value, verdict.status, verdict.reason) == (0.0, "scored", "limit")
        assert verdict.details == {"limit": what}


def test_shaping_may_be_any_finite_number():
    assert score("probe-bonus", "ab", EXAMPLE).value == -6.0
    assert score("probe-bonus", "ab", EXAMPLE, scale=float("inf")).status == "error"


def test_a_wrong_number_of_verdicts_is_an_error_for_all():
    verdicts = score_batch(bind("probe-lists", {"short": True}), ["a", "b", "c"], [EXAMPLE] * 3)
    assert [v.status for v in verdicts] == ["error"] * 3
    assert "2 values for 3 completions" in verdicts[0].reason
    assert len({id(v) for v in verdicts}) == 3
    assert [v.value for v in score_batch(bind("probe-lists"), ["a", "b"], [EXAMPLE] * 2)] == [1.0, 1.0]


def test_completions_and_rows_must_be_as_many():
    with pytest.raises(RequestError, match="2 completions for 1 examples"):
        score_batch(bind("probe-lists"), ["a", "b"], [EXAMPLE])


def test_the_catalogue_names_what_the_modules_register():
    own = {
        n: REWARDS[n].fn.__module__.removeprefix("posttrain.rewards.")
        for n in load_all()
        if REWARDS[n].fn.__module__.startswith("posttrain.")
    }
    assert own == MODULES


def test_a_reward_is_imported_when_it_is_asked_for():
    program = (
        "import sys, posttrain.rewards as r; r.bind('exact'); "
        "print([m for m in sys.modules if m.startswith('posttrain.rewards.')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "posttrain.rewards.simple.text" in done.stdout and "posttrain.rewards.math" not in done.stdout


def test_importing_all_rewards_needs_no_heavy_library():
    heavy = ("torch", "transformers", "sympy", "langdetect", "mpmath", "jsonschema", "reasoning_gym")
    program = (
        f"import sys, posttrain.rewards as r; r.load_all(); print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_probes_are_registered():
    assert probes.bonus and "probe-bonus" in REWARDS
