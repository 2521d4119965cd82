r"""Whether an answer means the same as the reference. The reference decides the shape.

One value never matches a list; all members of an equality chain must agree; a name may be left out but not be
another one; brackets of intervals and the order of tuples count, the order of lists and sets does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from posttrain.rewards.math.equality import EXACT, Tolerance, equal, proportional
from posttrain.rewards.math.nodes import Chain, Items, Matrix, Named, Node, Region, Relation, Scalar, Words
from posttrain.rewards.math.notation import as_scalar, same_notation
from posttrain.rewards.math.regions import as_region, same_region
from posttrain.rewards.math.tree import Tree, add, mul, negative, num, symbols

HUNDREDTH = num(Fraction(1, 100))
ROUGHLY = Tolerance(relative=0.01)
"""How far a member after `≈` may be off if another member is exact."""


@dataclass(frozen=True)
class Policy:
    """`percent`: either, exact or ignore; `units`: convert, strict or ignore. See the reward's docstring."""

    percent: str = "either"
    units: str = "convert"
    within: Tolerance = EXACT


def same(gold: Node, answer: Node, policy: Policy) -> bool:
    """Whether `answer` means the same as `gold`.

    Raises:
        TooCostly: a comparison is refused.
    """
    if gold == answer:
        return True
    if isinstance(gold, Chain):
        return any(same(member, answer, policy) for member in gold.members)
    if isinstance(answer, Chain):
        return _chain(gold, answer, policy)
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        return _relations(gold, answer)
    if isinstance(gold, Named) or isinstance(answer, Named):
        return _named(gold, answer, policy)
    if isinstance(gold, Region) or isinstance(answer, Region):
        first, second = as_region(gold), as_region(answer)
        return first is not None and second is not None and same_region(first, second)
    if isinstance(gold, Scalar) and isinstance(answer, Scalar):
        return _scalars(gold, answer, policy)
    if isinstance(gold, Matrix) or isinstance(answer, Matrix):
        return _matrices(gold, answer, policy)
    if isinstance(gold, Items) or isinstance(answer, Items):
        return _items(gold, answer, policy)
    return _notations(gold, answer, policy)


def _chain(gold: Node, answer: Chain, policy: Policy) -> bool:
    rough = Policy(policy.percent, policy.units, ROUGHLY)
    exact = False
    for member, rounded in zip(answer.members, answer.rounded, strict=True):
        if same(gold, member, policy):
            exact = True
        elif not (rounded or answer.rounded[1]) or not same(gold, member, rough):
            return False
    return exact


def _named(gold: Node, answer: Node, policy: Policy) -> bool:
    if isinstance(gold, Named) and isinstance(answer, Named):
        if gold.name == answer.name:
            return same(gold.inner, answer.inner, policy)
        first, second = _equation(gold), _equation(answer)
        return (
            first is not None
            and second is not None
            and len(symbols(first)) > 1
            and proportional(first, second)
        )
    named = gold if isinstance(gold, Named) else answer
    if isinstance(named.inner, Scalar) and named.name in symbols(named.inner.tree):
        return False
    return same(
        gold.inner if isinstance(gold, Named) else gold,
        answer.inner if isinstance(answer, Named) else answer,
        policy,
    )


def _equation(node: Node) -> Tree | None:
    """Left side minus right side; None for anything but an equation or inequality."""
    if isinstance(node, Relation):
        return add([node.left, negative(node.right)])
    if (
        isinstance(node, Named)
        and isinstance(node.inner, Scalar)
        and node.name.isalpha()
        and len(node.name) == 1
    ):
        return add([("sym", node.name), negative(node.inner.tree)])
    return None


def _relations(gold: Node, answer: Node) -> bool:
    """Whether equations agree up to a factor, inequalities up to a positive one."""
    kinds = [node.op if isinstance(node, Relation) else "=" for node in (gold, answer)]
    first, second = _equation(gold), _equation(answer)
    if first is None or second is None or kinds[0] != kinds[1]:
        return False
    if isinstance(gold, Named) and len(symbols(first)) < 2:
        return False  # x = 2 is solved, 2x = 4 is not
    return proportional(first, second, positive=kinds[0] in "<≤")


def _scalars(gold: Scalar, answer: Scalar, policy: Policy) -> bool:
    factor = _unit_factor(gold, answer, policy)
    if factor is None:
        return False
    tree = answer.tree if factor == 1 else mul([answer.tree, num(factor)])
    if (gold.percent and answer.unit) or (answer.percent and gold.unit):
        return False
    if gold.percent == answer.percent or policy.percent == "ignore":
        return equal(gold.tree, tree, policy.within)
    if policy.percent == "either" and equal(gold.tree, tree, policy.within):
        return True
    if gold.percent:
        return equal(mul([gold.tree, HUNDREDTH]), tree, policy.within)
    return equal(gold.tree, mul([tree, HUNDREDTH]), policy.within)


def _unit_factor(gold: Scalar, answer: Scalar, policy: Policy) -> Fraction | None:
    """The factor from the answer's unit to the reference's; None if they measure different things."""
    if policy.units == "ignore" or gold.unit == answer.unit:
        return Fraction(1)
    if gold.unit is None or answer.unit is None:
        loose = policy.units == "convert" or gold.unit is None
        return Fraction(1) if loose else None
    if gold.unit.dimensions != answer.unit.dimensions:
        return None
    return answer.unit.scale / gold.unit.scale


def _matrices(gold: Node, answer: Node, policy: Policy) -> bool:
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        return len(gold.rows) == len(answer.rows) and all(
            _in_order(a, b, policy) for a, b in zip(gold.rows, answer.rows, strict=True)
        )
    matrix, other = (gold, answer) if isinstance(gold, Matrix) else (answer, gold)
    if not (isinstance(other, Items) and other.kind == "tuple" and other.brackets in ("()", "[]")):
        return False
    if len(matrix.rows) == 1:
        vector = matrix.rows[0]
    elif len(matrix.rows[0]) == 1:
        vector = tuple(row[0] for row in matrix.rows)
    else:
        return False
    pair = (vector, other.items) if matrix is gold else (other.items, vector)
    return _in_order(*pair, policy)


def _in_order(gold: tuple[Node, ...], answer: tuple[Node, ...], policy: Policy) -> bool:
    return len(gold) == len(answer) and all(same(a, b, policy) for a, b in zip(gold, answer, strict=True))


def _items(gold: Node, answer: Node, policy: Policy) -> bool:
    if not (isinstance(gold, Items) and isinstance(answer, Items)):
        return _single(gold, answer, policy)
    kinds = (gold.kind, answer.kind)
    if kinds == ("tuple", "tuple"):
        alike = gold.brackets == answer.brackets or (
            len(gold.items) > 2 and {gold.brackets, answer.brackets} == {"()", "[]"}
        )
        return alike and _in_order(gold.items, answer.items, policy)
    if "tuple" in kinds:
        return _bare_tuple(gold, answer, policy)
    if _names_matter(gold) and not any(isinstance(n, Named) for n in answer.items):
        return _in_order(gold.items, answer.items, policy)
    if not any(isinstance(n, Named) for n in gold.items) and _names_matter(answer):
        return _in_order(gold.items, answer.items, policy)
    if len(gold.items) > 2 and all(isinstance(n, Words) for n in gold.items):
        return _in_order(gold.items, answer.items, policy)
    first, second = gold.items, answer.items
    if "set" in kinds:
        first, second = _distinct(first, policy), _distinct(second, policy)
    return _matched(first, second, policy)


def _single(gold: Node, answer: Node, policy: Policy) -> bool:
    """Whether a collection of one member equals that member."""
    items = gold if isinstance(gold, Items) else answer
    if not isinstance(items, Items) or len(items.items) != 1 or items.kind == "list":
        return False
    if isinstance(gold, Items):
        return same(items.items[0], answer, policy)
    return same(gold, items.items[0], policy)


def _bare_tuple(gold: Items, answer: Items, policy: Policy) -> bool:
    """`x = 1, y = 2` for (1, 2), and three or more members in order without their brackets."""
    ordered, bare = (gold, answer) if gold.kind == "tuple" else (answer, gold)
    if bare.kind != "list" or ordered.brackets not in ("()", "[]"):
        return False
    names = [n.name for n in bare.items if isinstance(n, Named)]
    named = len(names) == len(bare.items) and len(set(names)) == len(names) and names == sorted(names)
    if not named and (len(bare.items) < 3 or names or gold.kind != "tuple"):
        return False
    return _in_order(gold.items, answer.items, policy)


def _names_matter(items: Items) -> bool:
    """Whether names distinguish members: they do in `x = 1, y = 2`, not in `x_1 = 1, x_2 = 2`."""
    names = {n.name.partition("_")[0] for n in items.items if isinstance(n, Named)}
    return len(names) > 1


def _distinct(items: tuple[Node, ...], policy: Policy) -> tuple[Node, ...]:
    kept: list[Node] = []
    for item in items:
        if not any(same(item, other, policy) for other in kept):
            kept.append(item)
    return tuple(kept)


def _matched(gold: tuple[Node, ...], answer: tuple[Node, ...], policy: Policy) -> bool:
    """Whether members match one to one in any order."""
    if len(gold) != len(answer):
        return False
    left = list(answer)
    for item in gold:
        for index, other in enumerate(left):
            if same(item, other, policy):
                del left[index]
                break
        else:
            return False
    return True


def _notations(gold: Node, answer: Node, policy: Policy) -> bool:
    """Bases, ratios and times: among themselves, and with plain numbers where that is safe."""
    if isinstance(answer, Scalar):
        plain = as_scalar(gold, is_gold=True)
        return plain is not None and _scalars(plain, answer, policy)
    if isinstance(gold, Scalar):
        plain = as_scalar(answer, is_gold=False)
        return plain is not None and _scalars(gold, plain, policy)
    return same_notation(gold, answer)
