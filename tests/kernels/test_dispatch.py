"""A wrong request fails before any work, and the message names the argument and the value."""

import ast
import logging
import math
import sys
from pathlib import Path

import pytest
import torch

import posttrain_kernels
from posttrain_kernels import available_backends, confidence_limited, dispatch

T, V, H, S = 6, 5, 3, 2
INPUTS = {
    "hidden": torch.zeros(T, H),
    "weight": torch.zeros(V, H),
    "labels": torch.zeros(T, dtype=torch.int64),
    "segment_ids": torch.tensor([1, 1, 1, 2, 2, 0]),
}
HALF = torch.full((S,), 0.5)


def ask(**changes):
    return confidence_limited(**{**INPUTS, **changes})


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"n": 0.5}, r"n: 0\.5"),
        ({"n": math.nan}, "n: nan"),
        ({"n": math.inf}, "n: inf"),
        ({"n": torch.tensor([2.0, 0.5])}, r"n: 0\.5"),
        ({"n": torch.tensor([2.0, math.nan])}, "n: nan"),
        ({"n": torch.ones(3), "num_segments": 2}, r"n: shape \(3,\), expected \[S\] = \(2,\)"),
        ({"hidden": torch.zeros(2, T, H)}, r"hidden: shape .*\[T, H\]"),
        ({"weight": torch.zeros(V, H + 1)}, r"weight: shape \(5, 4\).*H = 3"),
        ({"labels": INPUTS["labels"][:4]}, r"labels: shape \(4,\)"),
        ({"labels": INPUTS["labels"].int()}, "labels: dtype torch.int32"),
        ({"labels": INPUTS["labels"] + V}, "labels: 5 is not below V = 5"),
        ({"labels": INPUTS["labels"] - 1}, "labels: a negative label"),
        ({"segment_ids": INPUTS["segment_ids"].float()}, "segment_ids: dtype"),
        ({"segment_ids": INPUTS["segment_ids"] - 1}, "segment_ids: -1 is negative"),
        ({"num_segments": 1}, "segment_ids: 2 is above the number of segments, 1"),
        ({"p": HALF}, 'p: .*value="surrogate"'),
        ({"p": HALF + 1, "value": "surrogate"}, r"p: 1\.5 is outside"),
        ({"p": HALF * math.nan, "value": "surrogate"}, "p: nan is outside"),
        ({"p": 0.5, "value": "surrogate"}, "p: expected a tensor"),
        ({"segment_weights": HALF * math.inf}, "segment_weights: inf"),
        ({"segment_weights": torch.ones(3), "num_segments": 2}, r"segment_weights: shape \(3,\)"),
        ({"member": "confidense"}, "member: 'confidense'.*did you mean 'confidence'"),
        ({"value": "exakt"}, "value: 'exakt'.*did you mean 'exact'"),
        ({"reduction": "token-mean"}, "reduction: .*did you mean 'token_mean'"),
        ({"backend": "torhc"}, "backend: 'torhc'.*did you mean 'torch'"),
        ({"backend": "triton"}, "backend: .*not built yet; available: torch, reference"),
        ({"member": "power"}, "exponent: member 'power' needs a > 0, got None"),
        ({"member": "power", "exponent": 0}, "exponent: .*got 0"),
        ({"member": "focal", "exponent": -1.0}, "exponent: .*g >= 0"),
        ({"member": "maxrl", "exponent": 2.5}, "exponent: .*integer T >= 1"),
        ({"exponent": 2}, "exponent: member 'confidence' takes none"),
        ({"temperature": 0.0}, r"temperature: 0\.0"),
        ({"chunk_rows": 0}, "chunk_rows: 0"),
        ({"normalizer": -1.0}, r"normalizer: -1\.0"),
        ({"normalizer": torch.ones(2)}, r"normalizer: shape \(2,\)"),
        ({"p_threshold": math.nan}, "p_threshold: NaN"),
        ({"bias": torch.zeros(V)}, "bias: not supported"),
        ({"softcap": 30.0}, "softcap: not supported"),
        ({"logit_scale": 2.0}, "logit_scale: not supported"),
    ],
)
def test_wrong_requests(changes, message):
    with pytest.raises(ValueError, match=message):
        ask(**changes)


def test_number_of_segments():
    """Said by the caller, else the length of a table, else the largest id."""
    assert ask().coef.shape == (2,)
    assert ask(num_segments=7).coef.shape == (7,)
    assert ask(segment_weights=torch.ones(4)).coef.shape == (4,)
    assert ask(segment_ids=torch.zeros(T, dtype=torch.int64)).coef.shape == (0,)
    assert ask(n=torch.tensor(4.0)).loss == ask(n=4.0).loss


def test_back_ends(caplog):
    assert available_backends() == ("torch", "reference")
    dispatch._announced.clear()
    with caplog.at_level(logging.INFO, logger="posttrain_kernels"):
        for backend in ("auto", "torch", "reference", "auto"):
            ask(backend=backend)
    assert [r.getMessage() for r in caplog.records] == [
        "confidence_limited runs on the torch back-end (cpu)",
        "confidence_limited runs on the reference back-end (cpu)",
    ]


def test_imports_only_torch_and_the_standard_library():
    package = Path(posttrain_kernels.__file__).parent
    assert not (package.parent / "__init__.py").exists()  # `kernels` must not become a package
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                assert top == "torch" or top in sys.stdlib_module_names, (file.name, name)
