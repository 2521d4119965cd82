"""Fixtures of the kernel tests: one thread, back-ends and where they run, and `problems`."""

import os

import pytest
import torch

# Triton decides when a kernel is defined whether to interpret it: before the first import.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.kernels import problems


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def remembered_builtins():
    """Triton's interpreter searches its language module for functions to replace at every call of a
    device function: half of the time of these tests. What it finds is always the same."""
    if not torch.cuda.is_available():
        problems.remember_builtins()


class Place:
    """A back-end and the device it runs on: the same test judges all of them."""

    def __init__(self, backend: str, device: str) -> None:
        self.backend, self.device = backend, device

    def solve(self, problem, n=1.0, **options) -> problems.Result:
        """`problems.solve` here, from CPU tensors."""
        options = {"n": n, "backend": self.backend, **options}
        here = {k: v.to(self.device) if torch.is_tensor(v) else v for k, v in options.items()}
        return problems.solve(problem.to(self.device), **here)


PLACES = [pytest.param(("torch", "cpu"), id="torch")]
if torch.cuda.is_available():
    for name in ("torch", "triton"):
        PLACES.append(pytest.param((name, "cuda"), id=f"{name}-cuda", marks=pytest.mark.gpu))
else:
    PLACES.append(pytest.param(("triton", "cpu"), id="triton"))


@pytest.fixture(scope="session", params=PLACES)
def place(request) -> Place:
    """The torch back-end, and Triton's where it runs here: on a GPU, else in its interpreter."""
    return Place(*request.param)


@pytest.fixture(scope="session", params=PLACES[-1:])
def triton_place(request) -> Place:
    return Place(*request.param)


@pytest.fixture
def make():
    return problems.random_problem


@pytest.fixture
def solve():
    return problems.solve


@pytest.fixture
def same():
    return problems.assert_same
