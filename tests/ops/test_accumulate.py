import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ddp_compress import reference

native = torch.ops.ddp_compress
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
on_a_gpu = pytest.mark.parametrize(
    "device", [pytest.param("cuda", marks=pytest.mark.needs_cuda)], indirect=True
)


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


def among_others(tensor: Tensor | None, offset: int) -> Any:
    return None if tensor is None else torch.nn.functional.pad(tensor, (offset, 9), value=7.0)


def assert_device_agrees(on_device, device, grad: Tensor, momentum: bool, offsets) -> None:
    """With tensors that begin some elements behind an aligned address, among others."""
    expected = arguments(grad, momentum)
    found = [among_others(t, offset) for t, offset in zip(expected, offsets, strict=True)]
    if device == "cuda":
        found = [t if t is None else t.cuda() for t in found]
    pieces = [
        t if t is None else t[offset : offset + len(grad)]
        for t, offset in zip(found, offsets, strict=True)
    ]
    on_device("accumulate", *pieces, 0.9)
    native.accumulate(*expected, 0.9)
    for whole, tensor, offset in zip(found, expected, offsets, strict=True):
        if tensor is not None:
            wanted = among_others(tensor, offset)
            torch.testing.assert_close(whole.cpu(), wanted, rtol=0, atol=0, equal_nan=True)
            numbers = ~wanted.isnan()
            assert torch.equal(whole.cpu().signbit() & numbers, wanted.signbit() & numbers)


def hard_numbers(numel: int, dtype: torch.dtype) -> Tensor:
    """Random ones, with some among them that are not finite, or hardly above zero."""
    grad = torch.randn(numel, generator=torch.Generator().manual_seed(numel)).to(dtype)
    for i, number in enumerate((math.inf, -math.inf, math.nan, -0.0, 1e-45, 6e-8, 6e4, 3e38)):
        grad[5 * i :: 97] = number
    return grad


@every_dtype
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("numel", [0, 1, 7, 1003, 2048, 20_001])
@pytest.mark.parametrize("offsets", [(0, 0, 0), (1, 1, 1), (0, 8, 1)])
def test_the_device_agrees(on_device, device, dtype, momentum, numel, offsets):
    assert_device_agrees(on_device, device, hard_numbers(numel, dtype), momentum, offsets)


@on_a_gpu
@every_dtype
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("offsets", [(0, 0, 0), (1, 1, 1)])
def test_the_gpu_agrees_on_large_tensors(on_device, device, dtype, momentum, offsets):
    assert_device_agrees(on_device, device, hard_numbers(10**7 + 1, dtype), momentum, offsets)


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
