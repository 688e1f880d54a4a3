import pytest
import torch
from torch import Tensor

from ddp_compress import reference

native = torch.ops.ddp_compress
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def entries(
    numel: int, dtype: torch.dtype, world_size: int = 3, density: float = 0.1
) -> tuple[list[Tensor], list[Tensor]]:
    """Positions and values of W ranks."""
    generator = torch.Generator().manual_seed(numel)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    masks = torch.rand(world_size, numel, generator=generator) < density
    indices = [mask.nonzero().flatten().int() for mask in masks]
    return indices, [torch.randn(len(i), generator=generator).to(wide) for i in indices]


@every_dtype
@pytest.mark.parametrize("numel", [0, 1, 100, 16_384, 16_385, 50_000])
def test_twins_agree_over_tiles(dtype, numel):
    indices, values = entries(numel, dtype)
    ours = torch.linspace(-1, 1, numel).to(dtype)
    theirs = ours.clone()
    native.scatter_add(ours, 0, indices, values, 1 / 3)
    reference.scatter_add(theirs, 0, indices, values, 1 / 3)
    assert torch.equal(ours, theirs)


@every_dtype
@pytest.mark.parametrize("start", [0, 1, 20_000, 39_990])
def test_twins_agree_on_a_piece_of_the_message(dtype, start):
    """What lies before or behind the piece is passed over."""
    indices, values = entries(50_000, dtype)
    ours = torch.zeros(10_000, dtype=dtype)
    theirs = ours.clone()
    native.scatter_add(ours, start, indices, values, 0.25)
    reference.scatter_add(theirs, start, indices, values, 0.25)
    assert torch.equal(ours, theirs)
    assert ours.any()


def test_pieces_make_the_whole():
    indices, values = entries(50_000, torch.float32)
    whole, pieces = torch.zeros(50_000), torch.zeros(50_000)
    native.scatter_add(whole, 0, indices, values, 0.5)
    for start, piece in zip((0, 17, 30_000), pieces.split([17, 29_983, 20_000]), strict=True):
        native.scatter_add(piece, start, indices, values, 0.5)
    assert torch.equal(whole, pieces)


def test_ranks_are_added_in_order():
    """(2**24 + 1) + 1 loses both ones in fp32; (1 + 1) + 2**24 keeps them."""
    at = [torch.tensor([0], dtype=torch.int32)] * 3
    large, one = torch.tensor([2.0**24]), torch.tensor([1.0])
    lost, kept = torch.zeros(1), torch.zeros(1)
    native.scatter_add(lost, 0, at, [large, one, one], 1.0)
    native.scatter_add(kept, 0, at, [one, one, large], 1.0)
    assert (lost.item(), kept.item()) == (2.0**24, 2.0**24 + 2)


def test_half_types_are_rounded_once():
    """256 + 1/2 + 1/2 is 257 in bf16 only if the halves meet before rounding: 258 or 256."""
    at = [torch.tensor([0], dtype=torch.int32)] * 5
    out = torch.full((1,), 256.0, dtype=torch.bfloat16)
    native.scatter_add(out, 0, at, [torch.tensor([0.5])] * 5, 1.0)
    assert out.item() == 258.0  # one by one every half would be lost


def test_no_ranks_change_nothing():
    out = torch.ones(3)
    native.scatter_add(out, 0, [], [], 1.0)
    assert out.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("positions", [[2, 1], [1, 1], [-1, 2]])
def test_positions_that_do_not_ascend_are_refused(positions):
    indices, values = torch.tensor(positions, dtype=torch.int32), torch.ones(len(positions))
    for twin in (native, reference):
        out = torch.zeros(4)
        with pytest.raises(RuntimeError, match="must ascend strictly from 0 or more"):
            twin.scatter_add(out, 0, [indices], [values], 1.0)
        assert not out.any()


@pytest.mark.parametrize(
    ("indices", "values", "words"),
    [
        ([torch.zeros(1).int()], [], "values has 0 tensors, expected 1"),
        ([torch.zeros(1).int()], [torch.ones(2)], r"values\[0\] has 2 entries, expected 1"),
        ([torch.zeros(1).long()], [torch.ones(1)], "indices has dtype Long, expected Int"),
        ([torch.zeros(1).int()], [torch.ones(1).half()], "values has dtype Half, expected Float"),
    ],
)
def test_bad_arguments_are_named(indices, values, words):
    with pytest.raises(RuntimeError, match=words):
        native.scatter_add(torch.zeros(4), 0, indices, values, 1.0)


@every_dtype
def test_opcheck(dtype):
    indices, values = entries(100, dtype)
    args = (torch.zeros(90, dtype=dtype), 10, indices, values, 0.5)
    torch.library.opcheck(native.scatter_add.default, args)
