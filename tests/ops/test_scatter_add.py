import pytest
import torch
from torch import Tensor

from ddp_compress.message.entries import Entries, add_entries
from ddp_compress.ops import reference

native = torch.ops.ddp_compress
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
on_a_gpu = pytest.mark.parametrize(
    "device", [pytest.param("cuda", marks=pytest.mark.needs_cuda)], indirect=True
)
UNUSED = 2**31 - 1


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
@pytest.mark.parametrize("afresh", [False, True])
@pytest.mark.parametrize("numel", [0, 1, 100, 16_384, 16_385, 50_000])
def test_twins_agree_over_tiles(dtype, numel, afresh):
    indices, values = entries(numel, dtype)
    ours = torch.linspace(-1, 1, numel).to(dtype)
    theirs = ours.clone()
    native.scatter_add(ours, 0, indices, values, 1 / 3, afresh)
    reference.scatter_add(theirs, 0, indices, values, 1 / 3, afresh)
    assert torch.equal(ours, theirs)


@every_dtype
@pytest.mark.parametrize("offset", [0, 1, 8])
@pytest.mark.parametrize("path", ["wide", "portable"])
def test_what_is_written_afresh_is_as_if_added_to_zeros(dtype, offset, path, monkeypatch):
    """Wherever it begins, and nothing beside it is touched."""
    if path == "portable":
        monkeypatch.setenv("DDP_COMPRESS_PORTABLE", "1")
    indices, values = entries(20_003, dtype)
    around = torch.full((20_003 + offset + 9,), torch.nan, dtype=dtype)
    added = torch.zeros(20_003, dtype=dtype)
    native.scatter_add(around[offset:-9], 0, indices, values, 1 / 3, True)
    native.scatter_add(added, 0, indices, values, 1 / 3)
    assert torch.equal(around[offset:-9], added)
    assert around[:offset].isnan().all()
    assert around[-9:].isnan().all()
    native.scatter_add(added, 0, [], [], 1.0, True)
    assert not added.any()


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


@every_dtype
def test_entries_of_all_positions_round_like_those_of_some(dtype):
    """By two roundings each; a fused multiply-add would have one."""
    numel, generator = 1003, torch.Generator().manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    values = [torch.randn(numel, generator=generator).to(wide) for _ in range(3)]
    some, all_ = torch.linspace(-1, 1, numel).to(dtype).repeat(2, 1)
    positions = torch.arange(numel, dtype=torch.int32)
    add_entries(some, 0, [Entries(positions, each) for each in values], 1 / 3)
    add_entries(all_, 0, [Entries(None, each) for each in values], 1 / 3)
    assert torch.equal(some, all_)


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


class Piece:
    """A piece of the message on the device, some elements behind an aligned address."""

    def __init__(self, on_device, device, start: int, out: Tensor, offset: int = 0) -> None:
        self.on_device, self.start, self.offset = on_device, start, offset
        self.around = torch.nn.functional.pad(out, (offset, 9), value=7.0)
        if device == "cuda":
            self.around = self.around.cuda()
        self.out = self.around[offset : offset + len(out)]

    def add(
        self, indices: list[Tensor], values: list[Tensor], scale: float, afresh: bool = False
    ) -> Tensor:
        """Returns what the piece then holds; around it nothing may change."""
        self.on_device("scatter_add", self.out, self.start, indices, values, scale, afresh)
        around = self.around.cpu()
        assert (around[: self.offset] == 7.0).all()
        assert (around[-9:] == 7.0).all()
        return self.out.cpu()


def with_unused(
    indices: list[Tensor], values: list[Tensor], unused: int = 300
) -> tuple[list[Tensor], list[Tensor]]:
    """Lists as kernels on the device keep them."""
    return (
        [torch.nn.functional.pad(each, (0, unused), value=UNUSED) for each in indices],
        [torch.nn.functional.pad(each, (0, unused)) for each in values],
    )


@every_dtype
@pytest.mark.parametrize("numel", [0, 1, 100, 8192, 8193, 16_384, 16_385, 50_000])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("afresh", [False, True])
def test_the_device_agrees_over_tiles(on_device, device, dtype, numel, offset, afresh):
    indices, values = entries(numel, dtype)
    for number, every in zip((float("inf"), float("nan"), -0.0, 6e4), (53, 57, 2, 3), strict=True):
        values[1][every::97] = number
    expected = torch.linspace(-1, 1, numel).to(dtype)
    expected[::5] = -0.0
    piece = Piece(on_device, device, 0, expected, offset)
    native.scatter_add(expected, 0, indices, values, 1 / 3, afresh)
    found = piece.add(*with_unused(indices, values), 1 / 3, afresh)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    numbers = ~expected.isnan()
    assert torch.equal(found.signbit() & numbers, expected.signbit() & numbers)


@every_dtype
@pytest.mark.parametrize("start", [0, 1, 20_000, 39_990, 60_000])
def test_the_device_agrees_on_a_piece_of_the_message(on_device, device, dtype, start):
    indices, values = entries(50_000, dtype)
    expected = torch.zeros(10_000, dtype=dtype)
    piece = Piece(on_device, device, start, expected)
    native.scatter_add(expected, start, indices, values, 0.25)
    assert torch.equal(piece.add(indices, values, 0.25), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("world_size", [0, 1, 64, 600])
def test_the_device_adds_many_ranks_in_order(on_device, device, dtype, world_size):
    """Values whose sum depends on their order, on all positions."""
    indices, values = entries(500, dtype, world_size, density=1.0)
    values = [each * 10.0 ** (i % 7) for i, each in enumerate(values)]
    expected = torch.zeros(500, dtype=dtype)
    piece = Piece(on_device, device, 0, expected)
    native.scatter_add(expected, 0, indices, values, 1.0)
    assert torch.equal(piece.add(*with_unused(indices, values, 3), 1.0), expected)
    assert torch.equal(piece.add(*with_unused(indices, values, 3), 1.0, afresh=True), expected)


def test_the_device_rounds_half_types_once(on_device, device):
    at = [torch.tensor([0], dtype=torch.int32)] * 5
    piece = Piece(on_device, device, 0, torch.full((1,), 256.0, dtype=torch.bfloat16))
    assert piece.add(at, [torch.tensor([0.5])] * 5, 1.0).item() == 258.0


@every_dtype
@pytest.mark.parametrize("low", [-(2**31), -40_000])
@pytest.mark.parametrize("start", [0, 5_000])
def test_the_device_stays_in_its_piece_whatever_the_positions(on_device, device, dtype, low, start):
    generator = torch.Generator().manual_seed(start)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    indices = [torch.randint(low, -low, (5000,), generator=generator).int() for _ in range(3)]
    piece = Piece(on_device, device, start, torch.zeros(20_000, dtype=dtype), offset=1)
    piece.add(indices, [torch.ones(5000, dtype=wide)] * 3, 1.0)
    indices[1] = indices[1].sort().values  # ascending, but with equals, and negative
    piece.add(indices, [torch.ones(5000, dtype=wide)] * 3, 1.0)


@on_a_gpu
@every_dtype
@pytest.mark.parametrize(
    ("numel", "world_size", "density"), [(10**7, 4, 0.01), (10**8, 1, 0.001), (10**6, 64, 0.1)]
)
def test_the_gpu_agrees_on_large_pieces(on_device, device, dtype, numel, world_size, density):
    indices, values = entries(numel, dtype, world_size, density)
    expected = torch.linspace(-1, 1, numel).to(dtype)
    piece = Piece(on_device, device, 0, expected)
    native.scatter_add(expected, 0, indices, values, 1 / 3)
    assert torch.equal(piece.add(*with_unused(indices, values), 1 / 3), expected)


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
def test_what_it_writes_is_what_its_schema_says(dtype):
    indices, values = entries(100, dtype)
    args = (torch.zeros(90, dtype=dtype), 10, indices, values, 0.5)
    torch.library.opcheck(native.scatter_add.default, args, test_utils="test_schema")
