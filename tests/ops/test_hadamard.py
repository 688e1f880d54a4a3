import pytest
import torch

from ddp_compress import ops
from ddp_compress.ops import reference

native = torch.ops.ddp_compress
both_twins = pytest.mark.parametrize("twin", [native, reference], ids=["native", "reference"])
SIZES = [[], [0], [1], [2, 4, 0, 8, 16], [32, 1, 64], [128, 256], [512, 1024, 2048], [4096, 8192]]
every_size = pytest.mark.parametrize("sizes", SIZES, ids=repr)
either_way = pytest.mark.parametrize("inverse", [False, True])


def blocks(sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values with long tails, bounds and salts."""
    generator = torch.Generator().manual_seed(sum(sizes))
    values = torch.randn(sum(sizes), generator=generator) ** 3
    salts = torch.randint(-(2**62), 2**62, (len(sizes),), generator=generator)
    return values, torch.tensor([0, *sizes]).cumsum(0), salts


def transformed(twin, values, bounds, salts, inverse) -> torch.Tensor:
    values = values.clone()
    twin.hadamard(values, bounds, salts, inverse)
    return values


@pytest.mark.parametrize("path", ["wide", "portable"])
@every_size
@either_way
def test_twins_agree(sizes, inverse, path, monkeypatch):
    if path == "portable":
        monkeypatch.setenv("DDP_COMPRESS_PORTABLE", "1")
    values, bounds, salts = blocks(sizes)
    found = transformed(native, values, bounds, salts, inverse)
    assert torch.equal(found, transformed(reference, values, bounds, salts, inverse))


@every_size
@either_way
def test_the_device_agrees(device, sizes, inverse):
    values, bounds, salts = blocks(sizes)
    twin = native if device == "cuda" else torch.ops.ddp_compress_emulated
    found = values.clone().to("cpu" if device == "emulated" else device)
    twin.hadamard(found, bounds, salts, inverse)
    assert torch.equal(found.cpu(), transformed(native, values, bounds, salts, inverse))


@every_size
def test_lengths_stay_and_the_inverse_undoes_it(sizes):
    values, bounds, salts = blocks(sizes)
    turned = transformed(ops, values, bounds, salts, inverse=False)
    for before, after in zip(values.split(sizes), turned.split(sizes), strict=True):
        torch.testing.assert_close(after.norm(), before.norm())
    torch.testing.assert_close(
        transformed(ops, turned, bounds, salts, inverse=True), values, rtol=1e-5, atol=1e-4
    )


@both_twins
def test_it_is_the_matrix_of_hadamard_with_random_signs(twin):
    matrix = torch.ones(1, 1)
    for _ in range(7):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    bounds, salts = torch.tensor([0, 128]), torch.tensor([77])
    rows = [transformed(twin, row, bounds, salts, False) for row in torch.eye(128)]
    found = torch.stack(rows) * 128**0.5
    signs = found[:, 0].round()
    torch.testing.assert_close(found, signs[:, None] * matrix)
    assert 40 < int((signs > 0).sum()) < 88  # random ones, 8 standard deviations either way
    assert signs.unique().tolist() == [-1.0, 1.0]


@both_twins
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_what_is_not_finite_spoils_its_block_alone(twin, bad):
    values, bounds, salts = blocks([64, 64, 64])
    values[70] = bad
    finite = transformed(twin, values, bounds, salts, False).isfinite().view(3, 64)
    assert finite.any(1).tolist() == finite.all(1).tolist() == [True, False, True]


@both_twins
def test_sizes_that_do_not_fit_are_refused(twin):
    salts = torch.zeros(1, dtype=torch.int64)
    for size in (3, 12, 16384):
        with pytest.raises(RuntimeError, match=f"block 0 has {size} elements, expected none or a"):
            twin.hadamard(torch.ones(size), torch.tensor([0, size]), salts, False)
    with pytest.raises(RuntimeError, match="values has 3 elements, expected 4"):
        twin.hadamard(torch.ones(3), torch.tensor([0, 4]), salts, False)
    with pytest.raises(RuntimeError, match="salts has 2 elements, expected 1"):
        twin.hadamard(torch.ones(4), torch.tensor([0, 4]), salts.repeat(2), False)
    with pytest.raises(RuntimeError, match="bounds must ascend from 0"):
        twin.hadamard(torch.ones(4), torch.tensor([1, 4]), salts, False)


def test_other_types_are_refused():
    with pytest.raises(RuntimeError, match="values has dtype"):
        native.hadamard(torch.ones(4).double(), torch.tensor([0, 4]), torch.tensor([0]), False)


def test_what_it_writes_is_what_its_schema_says():
    values, bounds, salts = blocks([8, 4])
    torch.library.opcheck(
        native.hadamard.default, (values, bounds, salts, False), test_utils="test_schema"
    )
