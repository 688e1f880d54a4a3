import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ddp_compress.ops import reference

native = torch.ops.ddp_compress
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
on_a_gpu = pytest.mark.parametrize(
    "device", [pytest.param("cuda", marks=pytest.mark.needs_cuda)], indirect=True
)


def arguments(grad: Tensor, momentum: bool) -> Any:
    """(residual, grad, momentum, mu, next_residual, next_momentum) with random memory."""
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(1)
    memory = list(torch.randn(4, grad.numel(), generator=generator).to(wide).unbind())
    residual, next_residual, *momenta = (each.clone() for each in memory)
    before, after = momenta if momentum else (None, None)
    return [residual, grad.clone(), before, 0.9, next_residual, after]


def assert_same(found: Any, expected: Any) -> None:
    """Bit for bit, all that was given and all that was written."""
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, Tensor):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        else:
            assert ours == theirs


@every_dtype
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("numel", [0, 1, 7, 1003])
def test_twins_agree(dtype, momentum, numel):
    grad = torch.randn(numel, generator=torch.Generator().manual_seed(numel)).to(dtype)
    ours, theirs = arguments(grad, momentum), arguments(grad, momentum)
    before = arguments(grad, momentum)
    native.accumulate(*ours)
    reference.accumulate(*theirs)
    assert_same(ours, theirs)
    assert_same(ours[:3], before[:3])  # what was there stays


@pytest.mark.parametrize("momentum", [False, True])
def test_twins_agree_on_numbers_that_are_not_finite(momentum):
    grad = torch.tensor([math.inf, -math.inf, math.nan, 3e38, -0.0])
    ours, theirs = arguments(grad, momentum), arguments(grad, momentum)
    native.accumulate(*ours)
    reference.accumulate(*theirs)
    assert_same(ours, theirs)


def among_others(tensor: Tensor, offset: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (offset, 9), value=7.0)


def assert_device_agrees(on_device, device, grad: Tensor, momentum: bool, offsets) -> None:
    """With tensors that begin some elements behind an aligned address, among others."""
    expected = arguments(grad, momentum)
    offsets = (*offsets, None, *offsets[1:])
    found = [
        among_others(t, offset) if isinstance(t, Tensor) else t
        for t, offset in zip(expected, offsets, strict=True)
    ]
    if device == "cuda":
        found = [t.cuda() if isinstance(t, Tensor) else t for t in found]
    pieces = [
        t[offset : offset + len(grad)] if isinstance(t, Tensor) else t
        for t, offset in zip(found, offsets, strict=True)
    ]
    on_device("accumulate", *pieces)
    native.accumulate(*expected)
    for whole, tensor, offset in zip(found, expected, offsets, strict=True):
        if isinstance(tensor, Tensor):
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


def test_the_gradient_is_taken_in():
    residual, grad, momentum = torch.tensor([1.0]), torch.tensor([4.0]), torch.tensor([2.0])
    after = torch.empty(1), torch.empty(1)
    native.accumulate(residual, grad, momentum, 0.5, *after)
    assert [t.item() for t in (residual, grad, momentum, *after)] == [1.0, 4.0, 2.0, 6.0, 5.0]


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
    after = torch.zeros(4, dtype=residual.dtype)
    with pytest.raises(RuntimeError, match=words):
        native.accumulate(residual, grad, momentum, 0.9, after, momentum)


def test_a_momentum_has_a_next_one():
    given = torch.zeros(4), torch.zeros(4), torch.zeros(4), 0.9, torch.zeros(4), None
    with pytest.raises(RuntimeError, match="must both be given or neither"):
        native.accumulate(*given)


@every_dtype
@pytest.mark.parametrize("momentum", [False, True])
def test_what_it_writes_is_what_its_schema_says(dtype, momentum):
    args = tuple(arguments(torch.ones(5, dtype=dtype), momentum))
    torch.library.opcheck(native.accumulate.default, args, test_utils="test_schema")
