"""The lists of optimizers in posttrain/training/README.md, made from posttrain/recipe/optimizers.py.

python -m tests.training.optimizers_page      # prints them
"""

from __future__ import annotations

from collections import defaultdict

from posttrain.recipe.optimizers import EXACT, LIMITED, REFUSED, Optimizer


def lists() -> str:
    """Three tables."""
    return "\n\n".join(
        (
            "Exact:\n\n" + _usable(EXACT),
            "Not measured, said by `posttrain check` and in the log:\n\n" + _usable(LIMITED),
            "Refused:\n\n" + _refused(),
        )
    )


def _usable(table: dict[str, Optimizer]) -> str:
    rows: dict[str, list[str]] = defaultdict(list)
    for name, used in table.items():
        packages = ", ".join(f"`{package}`" for package in used.packages)
        arguments = ", ".join(f"`{key}`" for key in used.arguments)
        engines = f"one process, DDP; not others: {used.whole}" if used.whole else "all"
        rows[f"{packages} | {arguments} | {engines}"].append(f"`{name}`")
    lines = [f"| {', '.join(names)} | {rest} |" for rest, names in rows.items()]
    return "\n".join(("| `train.optim` | packages | `optim_args` | engines |", "|---|---|---|---|", *lines))


def _refused() -> str:
    rows: dict[str, list[str]] = defaultdict(list)
    for name, (why, instead) in REFUSED.items():
        rows[why].append(f"`{name}` (use `{instead}`)")
    lines = [f"| {', '.join(names)} | {why} |" for why, names in rows.items()]
    return "\n".join(("| `train.optim` | why |", "|---|---|", *lines))


if __name__ == "__main__":
    print(lists())
