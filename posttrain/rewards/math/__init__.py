r"""The reward `math`: whether the final answer of a completion equals the reference.

The parts are extraction, one spelling, and tiers from exact text to symbolic comparison; read them in the
order `extract`, `clean`, `reading`, `compare`, `equality`. Nothing is evaluated by Python, SymPy or LaTeX:
text is tokenised and parsed here, and what would be costly is refused before it is computed (reason `limit`).
Left out: a simplifier, solving, integrals, sums and limits; an answer that contains one is only right if it
is the same text as the reference. Imports `posttrain.types`, `posttrain.errors` and from `rewards` only
`registry` and `simple.visible`.
"""

from __future__ import annotations

from typing import Any, Literal

from posttrain.errors import RequestError
from posttrain.rewards.math.arithmetic import context
from posttrain.rewards.math.choice import find_letter, letter_of
from posttrain.rewards.math.compare import Policy
from posttrain.rewards.math.equality import Tolerance
from posttrain.rewards.math.extract import Found, find_answer
from posttrain.rewards.math.limits import TooCostly
from posttrain.rewards.math.nodes import Words
from posttrain.rewards.math.verdict import Reading, decide, plain_number, understand_gold
from posttrain.rewards.registry import reward
from posttrain.types import Verdict

__all__ = ["check_gold", "math", "plain_number"]

Mode = Literal["math", "gsm8k", "strict", "choice", "numeric"]
DEFAULT_TOLERANCE = 1e-6
SHOWN = 200
"""Characters of the answer that are kept in the details."""


def check_gold(example: Any, mode: Mode = "math", **options: Any) -> None:
    """Refuses a row whose reference cannot be compared with.

    Raises:
        ValueError: the answer is missing, empty, unbalanced, too long, too costly or of the wrong kind.
        RequestError: options that cannot be combined.
    """
    _policy(mode, **options)
    answer = example.answer
    if not isinstance(answer, str):
        wrong = "the row has no answer" if answer is None else f"the answer must be a string, not {answer!r}"
        raise ValueError(wrong)
    gold = understand_gold(answer)
    if mode == "choice" and letter_of(gold.text) is None:
        raise ValueError(f"the answer {answer[:60]!r} is not a letter from A to J, as mode 'choice' requires")
    if mode == "numeric" and (not gold.nodes or isinstance(gold.nodes[0], Words)):
        raise ValueError(f"the answer {answer[:60]!r} is not a number, as mode {mode!r} requires")
    if mode == "gsm8k" and plain_number(gold.text) is None:
        raise ValueError(f"the answer {answer[:60]!r} is not a number, as mode 'gsm8k' requires")


def _warm() -> None:
    """Imports what the first comparison would otherwise have to import within its time limit."""
    context()


@reward("math", columns=("answer",), check_row=check_gold, runs="worker", limit_s=2.0, prepare=_warm)
def math(
    completion: str,
    example: Any,
    mode: Mode = "math",
    extract: Literal["any", "boxed", "last_number"] = "any",
    percent: Literal["either", "exact", "ignore"] = "either",
    units: Literal["convert", "strict", "ignore"] = "convert",
    tolerance: float | None = None,
    absolute_tolerance: float | None = None,
) -> Verdict:
    r"""Whether the final answer of the completion equals the reference, in any notation.

    `mode` (default `math`): `gsm8k` also takes the last number of the text; `strict` reads only "Final
    Answer: The final answer is X. I hope it is correct." (Minerva); `choice` compares letters A to J;
    `numeric` allows a `tolerance` (relative to the reference, default 1e-6) and an `absolute_tolerance`
    (default 0). Elsewhere equality is exact: 0.142857 is not 1/7.

    `extract` (default `any`): the places listed in extract.py; `boxed` reads boxes only, `last_number` the
    last number only.

    `percent` (default `either`): x% is x/100, and the sign may be missing on one side (50% and 50); without
    any sign nothing is scaled. `exact`: x% is x/100 only. `ignore`: the sign means nothing.

    `units` (default `convert`): a unit may be missing on either side; where both have one they must measure
    the same thing and are converted (5 cm is 0.05 m, not 5 m). `strict`: a unit of the reference must be
    given. `ignore`: units mean nothing.

    Details: `answer` as found, `found` (where), `tier` (what decided). Status `unparseable`: no final
    answer.

    Raises:
        RequestError: a tolerance outside mode `numeric`, or below 0.
        ValueError: the reference cannot be judged.
    """
    policy = _policy(mode, extract, percent, units, tolerance, absolute_tolerance)
    gold = understand_gold(example.answer)
    try:
        if mode == "choice":
            return _letters(gold.text, find_letter(completion, extract == "boxed"))
        return _answer(gold, example.answer, find_answer(completion, mode, extract), policy)
    except TooCostly as error:
        return Verdict(0.0, "scored", "limit", details={"limit": str(error)})
    except RecursionError:
        return Verdict(0.0, "scored", "limit", details={"limit": "nesting"})


def _answer(gold: Reading, raw_gold: str, found: Found | None, policy: Policy) -> Verdict:
    """The verdict on the answer that was found. Raises `TooCostly`."""
    if found is None or not found.text.strip():
        return Verdict(0.0, "unparseable", "no final answer")
    details = {"answer": found.text[:SHOWN], "found": found.place}
    tier, why = decide(gold, raw_gold, found.text, policy)
    if why and len(found.boxes) > 1:  # one value in several boxes: all must be right
        whys = [decide(gold, raw_gold, box, policy)[1] for box in found.boxes]
        why = next((w for w in whys if w), "")
    if tier in ("unreadable", "words") and found.place == "whole":
        return Verdict(0.0, "unparseable", "no final answer", details=details)
    return Verdict(float(not why), "scored", why, details=details | {"tier": tier})


def _letters(gold: str, found: str | None) -> Verdict:
    wanted = letter_of(gold)
    if wanted is None:
        raise ValueError(f"the answer {gold[:60]!r} is not a letter from A to J")
    if found is None:
        return Verdict(0.0, "unparseable", "no final letter")
    right = found == wanted
    return Verdict(
        float(right), "scored", "" if right else "another letter", details={"answer": found, "tier": "exact"}
    )


def _policy(
    mode: str = "math",
    extract: str = "any",
    percent: str = "either",
    units: str = "convert",
    tolerance: float | None = None,
    absolute_tolerance: float | None = None,
) -> Policy:
    for name, value in (("tolerance", tolerance), ("absolute_tolerance", absolute_tolerance)):
        if value is not None and mode != "numeric":
            raise RequestError(
                f"reward 'math': {name} can only be set with mode 'numeric'; the mode is {mode!r}"
            )
        if value is not None and not 0 <= value < float("inf"):
            raise RequestError(f"reward 'math': {name} = {value} must be at least 0 and finite")
    if mode != "numeric":
        return Policy(percent, units)
    relative = DEFAULT_TOLERANCE if tolerance is None else tolerance
    return Policy(percent, units, Tolerance(relative, absolute_tolerance or 0.0))
