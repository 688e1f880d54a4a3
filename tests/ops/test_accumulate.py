import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ddp_compress import reference

native = torch.ops.ddp_compress
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def arguments(grad: Tensor, momentum: bool) -> Any:
    """(residual, grad, momentum) with random memory."""
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(1)
    memory = torch.randn(2, grad.numel(), generator=generator).to(wide)
    return [memory[0].clone(), grad.clone(), memory[1].clone() if momentum else None]


@every_dtype
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("numel", [0, 1, 7, 1003])
def test_twins_agree(dtype, momentum, numel):
    grad = torch.randn(numel, generator=torch.Generator().manual_seed(numel)).to(dtype)
    ours, theirs = arguments(grad, momentum), arguments(grad, momentum)
    native.accumulate(*ours, 0.9)
    reference.accumulate(theirs[0], theirs[1], theirs[2], 0.9)
    for found, expected in zip(ours, theirs, strict=True):
        assert found is expected is None or torch.equal(found, expected)


@pytest.mark.parametrize("momentum", [False, True])
def test_twins_agree_on_numbers_that_are_not_finite(momentum):
    grad = torch.tensor([math.inf, -math.inf, math.nan, 3e38, -0.0])
    ours, theirs = arguments(grad, momentum), arguments(grad, momentum)
    native.accumulate(*ours, 0.9)
    reference.accumulate(theirs[0], theirs[1], theirs[2], 0.9)
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_the_gradient_is_moved():
    residual, grad, momentum = torch.tensor([1.0]), torch.tensor([4.0]), torch.tensor([2.0])
    native.accumulate(residual, grad, momentum, 0.5)
    assert [t.item() for t in (residual, grad, momentum)] == [6.0, 0.0, 5.0]


@pytest.mark.parametrize(
    ("residual", "grad", "momentum", "words"),
    [
        (torch.zeros(3), torch.zeros(4), None, "residual has 3 elements, expected 4"),
        (torch.zeros(4), torch.zeros(4), torch.zeros(1), "momentum has 1 elements, expected 4"),
        (torch.zeros(4), torch.zeros(4).double(), None, "residual has dtype Float, expected Doub"),
        (torch.zeros(4).half(), torch.zeros(4).half(), None, "residual has dtype Half, expected"),
        (torch.zeros(8)[::2], torch.zeros(4), None, "residual must be contiguous"),
    ],
)
def test_bad_arguments_are_named(residual, grad, momentum, words):
    with pytest.raises(RuntimeError, match=words):
        native.accumulate(residual, grad, momentum, 0.9)


@every_dtype
@pytest.mark.parametrize("momentum", [False, True])
def test_opcheck(dtype, momentum):
    args = (*arguments(torch.ones(5, dtype=dtype), momentum), 0.9)
    torch.library.opcheck(native.accumulate.default, args)
