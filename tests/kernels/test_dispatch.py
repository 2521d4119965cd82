"""A wrong request fails before any work, and the message names the argument and the value."""

import ast
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import posttrain_kernels
from posttrain_kernels import OnHost, VocabShard, available_backends, backends, confidence_limited

T, V, H, S = 6, 5, 3, 2
INPUTS = {
    "hidden": torch.zeros(T, H),
    "weight": torch.zeros(V, H),
    "labels": torch.zeros(T, dtype=torch.int64),
    "segment_ids": torch.tensor([1, 1, 1, 2, 2, 0]),
}
HALF = torch.full((S,), 0.5)
DOUBLE = {"hidden": INPUTS["hidden"].double()}


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
        ({"member": "power"}, "exponent: member 'power' needs a > 0, got None"),
        ({"member": "power", "exponent": 0}, "exponent: .*got 0"),
        ({"member": "focal", "exponent": -1.0}, "exponent: .*g >= 0"),
        ({"member": "maxrl", "exponent": 2.5}, "exponent: .*integer T >= 1"),
        ({"exponent": 2}, "exponent: member 'confidence' takes none"),
        ({"temperature": 0.0}, r"temperature: 0\.0 is not a finite number > 0"),
        ({"temperature": -1.0}, r"temperature: -1\.0"),
        ({"temperature": math.inf}, "temperature: inf"),
        ({"temperature": math.nan}, "temperature: nan"),
        ({"softcap": 0.0}, r"softcap: 0\.0 is not a finite number > 0"),
        ({"softcap": -30.0}, r"softcap: -30\.0"),
        ({"softcap": math.inf}, "softcap: inf"),
        ({"softcap": torch.tensor(30.0)}, "softcap: tensor"),
        ({"logit_scale": 0.0}, r"logit_scale: 0\.0 is not a finite number other than 0"),
        ({"logit_scale": math.inf}, "logit_scale: inf"),
        ({"logit_scale": math.nan}, "logit_scale: nan"),
        ({"chunk_rows": 0}, "chunk_rows: 0"),
        ({"chunk_rows": 2.0}, r"chunk_rows: 2\.0 is not an integer >= 1"),
        ({"normalizer": -1.0}, r"normalizer: -1\.0"),
        ({"normalizer": math.inf}, "normalizer: inf"),
        ({"normalizer": torch.ones(2)}, r"normalizer: shape \(2,\)"),
        ({"normalizer": torch.tensor(-1.0)}, r"normalizer: -1\.0 is not >= 0"),
        ({"normalizer": torch.tensor(math.nan)}, "normalizer: nan"),
        ({"p_threshold": math.nan}, "p_threshold: nan is not a number"),
        ({"weight_threshold": math.nan}, "weight_threshold: nan"),
        ({"z_loss": -0.1}, r"z_loss: -0\.1 is not a finite number >= 0"),
        ({"z_loss": math.inf}, "z_loss: inf"),
        ({"z_loss": math.nan}, "z_loss: nan"),
        ({"entropy_bonus": -1}, "entropy_bonus: -1 is not a finite number >= 0"),
        ({"entropy_bonus": math.nan}, "entropy_bonus: nan"),
        (
            {"member": "cross_entropy", "label_smoothing": 1.0},
            r"label_smoothing: 1\.0 is not a number in \[0, 1\)",
        ),
        ({"member": "cross_entropy", "label_smoothing": -0.1}, r"label_smoothing: -0\.1 is not"),
        ({"member": "cross_entropy", "label_smoothing": math.nan}, "label_smoothing: nan"),
        (
            {"label_smoothing": 0.1},
            "label_smoothing: needs member=\"cross_entropy\", not member='confidence'",
        ),
        ({"skip_below": -1e-6}, "skip_below: -1e-06 is not a number >= 0"),
        ({"skip_below": math.nan}, "skip_below: nan"),
        ({"skip_below": 0.0, "z_loss": 0.1}, "skip_below: .*z_loss"),
        ({"skip_below": 0.0, "entropy_bonus": 0.1}, "skip_below: .*entropy_bonus"),
        ({"bias": torch.zeros(V + 1)}, r"bias: shape \(6,\), expected \[V\] = \(5,\)"),
        ({"bias": torch.zeros(V, 1)}, r"bias: shape \(5, 1\)"),
        ({"low_rank": torch.zeros(T, 2)}, "low_rank: expected a pair"),
        ({"low_rank": (torch.zeros(T, 2),)}, "low_rank: expected a pair"),
        ({"low_rank": (torch.zeros(T + 1, 2), torch.zeros(V, 2))}, r"low_rank: shapes \(7, 2\)"),
        ({"low_rank": (torch.zeros(T, 2), torch.zeros(V - 1, 2))}, r"low_rank: .*\(4, 2\).*5, r"),
        ({"low_rank": (torch.zeros(T, 2), torch.zeros(V, 3))}, r"low_rank: .*\(6, r\)"),
        ({"low_rank": (torch.zeros(T), torch.zeros(V, 1))}, r"low_rank: shapes \(6,\)"),
        ({"hidden": INPUTS["hidden"].long()}, "hidden: dtype torch.int64.*floating"),
        ({"weight": INPUTS["weight"].long()}, "weight: dtype torch.int64.*floating"),
        ({"weight": INPUTS["weight"].to("meta")}, "weight: on meta, but hidden is on cpu"),
        ({"labels": INPUTS["labels"].to("meta")}, "labels: on meta"),
        ({"segment_ids": INPUTS["segment_ids"].to("meta")}, "segment_ids: on meta"),
        ({"bias": torch.zeros(V, device="meta")}, "bias: on meta"),
        ({"low_rank": (torch.zeros(T, 2), torch.zeros(V, 2, device="meta"))}, "low_rank: on meta"),
        ({"vocab": VocabShard(-1, V)}, r"vocab: rows -1\.\.4 .* not within its size, 5"),
        ({"vocab": VocabShard(1, V)}, r"vocab: rows 1\.\.6"),
        ({"vocab": VocabShard(0, 9), "labels": INPUTS["labels"] + 9}, "labels: 9 is not below V = 9"),
        ({"vocab": VocabShard(0, 9), "backend": "reference"}, 'vocab: .*use "torch"'),
        ({"host": OnHost(INPUTS["labels"][:3], INPUTS["segment_ids"])}, r"host.labels: \(3,\)"),
        ({"host": OnHost(INPUTS["labels"], INPUTS["segment_ids"].int())}, "host.segment_ids: .*32"),
        ({"host": OnHost(INPUTS["labels"].to("meta"), INPUTS["segment_ids"])}, "host.labels: .*meta"),
        ({"backend": "triton", **DOUBLE}, 'backend: "triton" computes in fp32.*fp64.*"torch"'),
    ],
)
def test_wrong_requests(changes, message):
    with pytest.raises(ValueError, match=message):
        ask(**changes)


def test_number_of_segments():
    """Given by the caller, else the length of a table, else the largest id."""
    assert ask().coef.shape == (2,)
    assert ask(num_segments=7).coef.shape == (7,)
    assert ask(segment_weights=torch.ones(4)).coef.shape == (4,)
    assert ask(segment_ids=torch.zeros(T, dtype=torch.int64)).coef.shape == (0,)
    assert ask(n=torch.tensor(4.0)).loss == ask(n=4.0).loss


def test_back_ends(caplog):
    backends._announced.clear()
    with caplog.at_level(logging.INFO, logger="posttrain_kernels"):
        for backend in ("auto", "torch", "reference", "auto"):
            ask(backend=backend)
    assert [r.getMessage() for r in caplog.records] == [
        "the loss runs on the torch back-end (cpu)",
        "the loss runs on the reference back-end (cpu)",
    ]


def test_triton_refuses_with_the_reason(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert available_backends() == ("triton", "torch", "reference")
    monkeypatch.delenv("TRITON_INTERPRET")
    assert available_backends() == ("torch", "reference")
    with pytest.raises(ValueError, match='backend: "triton" needs a GPU, and hidden is on cpu'):
        ask(backend="triton")
    monkeypatch.setattr(backends, "_triton_installed", lambda: False)
    with pytest.raises(ValueError, match='backend: "triton" is not installed: pip install triton'):
        ask(backend="triton")
    ask()  # "auto" does not need Triton


def test_auto_stays_on_torch_for_cpu_tensors(monkeypatch):
    """Also where the interpreter is on: it is for tests, a thousand times slower."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.choose("auto", INPUTS["hidden"], INPUTS["weight"]) == "torch"


WITH_TRITON = {"triton_math.py", "tiled.py", "autotune.py"}  # and *_triton.py


def test_imports_only_torch_and_the_standard_library():
    package = Path(posttrain_kernels.__file__).parent
    assert not (package.parent / "__init__.py").exists()  # `kernels` must not become a package
    for file in package.rglob("*.py"):
        with_triton = file.name in WITH_TRITON or file.name.endswith("_triton.py")
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                if top == "triton":
                    assert with_triton, (file.name, name)
                else:
                    assert top == "torch" or top in sys.stdlib_module_names, (file.name, name)


@pytest.mark.slow
def test_triton_is_imported_when_asked_for():
    """A fresh process: importing the package and using the torch back-end leave Triton alone."""
    code = """
import sys, torch
before = "triton" in sys.modules
from posttrain_kernels import confidence_limited, token_log_probs
t, i = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
confidence_limited(t, t, i, i), token_log_probs(t, t, i)
assert not before and "triton" not in sys.modules, sorted(m for m in sys.modules if "triton" in m)
confidence_limited(t, t, i, i, backend="triton")
assert "triton" in sys.modules
"""
    kernels = str(Path(posttrain_kernels.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": kernels, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
