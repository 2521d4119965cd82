"""Compares plain values within a tolerance. It applies to numbers; everything else must be equal."""

RELATIVE = 1e-7
"""Added to the absolute tolerance, as EvalPlus does (Liu et al. 2023, arXiv 2305.01210)."""
DEFAULT = 1e-6
"""Absolute, where floats are expected and the row gives no tolerance."""


def close(got, expected, atol=0.0):
    """Whether `got` equals `expected`, or has the same shape and every number within the tolerance."""
    if type(got) is type(expected) and got == expected:
        return True
    if not atol and floats(expected):
        atol = DEFAULT
    if not atol:
        return bool(got == expected)
    return near(got, expected, atol)


def near(got, expected, atol):
    """Whether the shapes are equal and every number is within `atol`, plus the relative tolerance."""
    if isinstance(expected, (list, tuple)):
        return (
            type(got) is type(expected)
            and len(got) == len(expected)
            and all(near(g, e, atol) for g, e in zip(got, expected, strict=True))
        )
    if isinstance(expected, float) or (isinstance(expected, int) and isinstance(got, float)):
        if not isinstance(got, (int, float)):  # numpy's doubles are floats too
            return False
        if got != got or expected != expected:
            return got != got and expected != expected
        if abs(expected) == float("inf"):  # everything is within a fraction of infinity
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
