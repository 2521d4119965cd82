"""Comparing plain values within a tolerance. Numbers only: everything else is `==` of equal shapes."""

RELATIVE = 1e-7
"""Beside the absolute tolerance, as EvalPlus compares (Liu et al. 2023, arXiv 2305.01210)."""
DEFAULT = 1e-6
"""Absolute, where floats are expected and the row names no tolerance."""


def close(got, expected, atol=0.0):
    """Whether `got` is what is expected: equal, or of the same shape with every number within tolerance."""
    if type(got) is type(expected) and got == expected:
        return True
    if not atol and floats(expected):
        atol = DEFAULT
    if not atol:
        return bool(got == expected)
    return near(got, expected, atol)


def near(got, expected, atol):
    if isinstance(expected, (list, tuple)):
        return (
            type(got) is type(expected)
            and len(got) == len(expected)
            and all(near(g, e, atol) for g, e in zip(got, expected, strict=True))
        )
    if isinstance(expected, float) or (isinstance(expected, int) and isinstance(got, float)):
        if not isinstance(got, (int, float)):  # numpy's doubles are floats, too
            return False
        if got != got or expected != expected:
            return got != got and expected != expected
        if abs(expected) == float("inf"):  # everything is within a part of it
            return got == expected
        try:
            return got == expected or abs(got - expected) <= atol + RELATIVE * abs(expected)
        except OverflowError:
            return False
    return type(got) is type(expected) and got == expected


def floats(value):
    """Whether a value is a float, or a non-empty list or tuple of floats."""
    if isinstance(value, float):
        return True
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(v, float) for v in value)
