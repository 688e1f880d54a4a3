import math
from itertools import accumulate, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddp_compress.codec import Golomb
from ddp_compress.ops import reference
from ddp_compress.ops.reference.elias_fano import elias_fano_size
from ddp_compress.ops.reference.wire_format import DecodeError

native = torch.ops.ddp_compress
UNUSED = 2**31 - 1

# `on_device` keeps nothing from one example to the next.
on_examples = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
on_a_gpu = pytest.mark.parametrize(
    "device", [pytest.param("cuda", marks=pytest.mark.needs_cuda)], indirect=True
)


def positions(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def from_hex(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)


def assert_device_agrees(on_device, indices, bounds, unused=0) -> None:
    slots = torch.nn.functional.pad(indices, (0, unused), value=UNUSED)
    expected = native.golomb_encode(indices, bounds)
    assert torch.equal(on_device("golomb_encode", slots, bounds=bounds), expected)


def random_bounds(numel: int, params: int) -> torch.Tensor:
    """Of tensors of all sizes, some of them empty."""
    generator = torch.Generator().manual_seed(params)
    inner = torch.randint(numel + 1, (params - 1,), generator=generator)
    ends = torch.cat([torch.tensor([0, numel]), inner, inner[::5]])
    return ends.sort().values


def random_positions(numel: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(numel + count)
    chosen = torch.randint(numel, (2 * count,), generator=generator).unique()
    order = torch.randperm(len(chosen), generator=generator)[:count]
    return chosen[order].sort().values.int()


def entropy(density: float) -> float:
    """Bits a position of a random mask."""
    rest = 1 - density
    return -math.log2(density) - rest / density * math.log2(rest)


def plan_of(bounds: torch.Tensor, k: int) -> Any:
    return SimpleNamespace(numel=int(bounds[-1]), k=k, bounds=bounds)


@st.composite
def messages(draw):
    """(indices, bounds)"""
    sizes = st.sampled_from([0, 1, 2, 7, 8, 64, 500, 2**20, 2**28])
    bounds = list(accumulate(draw(st.lists(sizes, max_size=6)), initial=0))
    if bounds[-1] == 0:
        return positions(), torch.tensor(bounds)
    dense = st.integers(0, min(bounds[-1], 90) - 1)
    spread = st.integers(0, bounds[-1] - 1)
    chosen = draw(st.sets(dense | spread, max_size=80))
    return positions(*sorted(chosen)), torch.tensor(bounds)


@st.composite
def altered(draw):
    """(data, bounds, limit) of a message that did not arrive as it was sent."""
    indices, bounds = draw(messages())
    data = bytearray(native.golomb_encode(indices, bounds).tolist())
    for bit in draw(st.lists(st.integers(0, max(0, 8 * len(data) - 1)), max_size=4)):
        if data:
            data[bit // 8] ^= 1 << bit % 8
    data = data[: draw(st.integers(0, len(data)) | st.just(len(data)))]
    data += draw(st.binary(max_size=9))
    limit = max(0, len(indices) + draw(st.integers(-2, 200)))
    return torch.tensor(list(data), dtype=torch.uint8), bounds, limit


@given(messages())
def test_positions_survive_and_both_twins_write_the_same_bytes(message):
    indices, bounds = message
    data = native.golomb_encode(indices, bounds)
    assert torch.equal(data, reference.golomb_encode(indices, bounds))
    for twin in (native, reference):
        decoded, status = twin.golomb_decode(data, bounds, len(indices))
        assert decoded.dtype == torch.int32
        assert decoded.tolist() == indices.tolist()
        assert status.tolist() == [len(data)]


@on_examples
@given(messages(), st.integers(0, 40))
def test_the_device_writes_the_same_bytes(on_device, message, unused):
    indices, bounds = message
    assert_device_agrees(on_device, indices, bounds, unused)


@given(altered())
def test_both_twins_find_the_same_error(message):
    found, status = native.golomb_decode(*message)
    expected, expected_status = reference.golomb_decode(*message)
    assert status.tolist() == expected_status.tolist()
    assert found.tolist() == expected.tolist()


@given(altered())
def test_what_the_decoder_lets_through_is_well_formed(message):
    data, bounds, limit = message
    plan = plan_of(bounds, limit)
    _, status = native.golomb_decode(data, bounds, limit)
    if status < 0:
        with pytest.raises(ValueError, match=r"^golomb: "):
            Golomb().decode(data, plan)
        return
    indices, used = Golomb().decode(data, plan)
    assert used <= len(data)
    assert len(indices) <= limit
    assert indices.tolist() == sorted({i for i in indices.tolist() if 0 <= i < bounds[-1]})


GOLDEN = [
    ((), (0,), ""),
    ((), (0, 0), ""),
    ((), (0, 9), "00"),
    ((0,), (0, 1), "01"),
    ((0, 5, 6), (0, 8), "033c"),
    (tuple(range(8)), (0, 8), "080000"),
    ((0, 5, 6), (0, 0, 5, 5, 8), "010400"),
    ((2**31 - 2,), (0, 2**31 - 1), "010000009fffffff0f"),
    ((3, 14, 159, 265, 358, 979), (0, 1000), "061c038a20d2b88f0d"),
    ((3, 14, 159, 265, 358, 979), (0, 100, 1000), "02e149c0b193c67d6c"),
]


@pytest.mark.parametrize("twin", [native, reference], ids=["native", "reference"])
@pytest.mark.parametrize(("indices", "bounds", "wire"), GOLDEN)
def test_golden_bytes(twin, indices, bounds, wire):
    offsets = torch.tensor(bounds)
    assert bytes(twin.golomb_encode(positions(*indices), offsets).tolist()).hex() == wire
    decoded, _ = twin.golomb_decode(from_hex(wire), offsets, len(indices))
    assert decoded.tolist() == list(indices)


@pytest.mark.parametrize(("indices", "bounds", "wire"), GOLDEN)
def test_golden_bytes_on_the_device(on_device, indices, bounds, wire):
    data = on_device("golomb_encode", positions(*indices), bounds=torch.tensor(bounds))
    assert bytes(data.tolist()).hex() == wire


# Two tensors of 4: 3 bits of count, 5 bits of b, then the codes.
MALFORMED = [
    ("", 8, DecodeError.TRUNCATED, "expected more than 0 bytes"),
    ("01", 8, DecodeError.TRUNCATED, "expected more than 1 bytes"),  # no codes
    ("01ff", 8, DecodeError.TRUNCATED, "expected more than 2 bytes"),  # unary part without an end
    ("f900", 8, DecodeError.TRUNCATED, "expected more than 2 bytes"),  # b = 31, 8 bits left
    ("05", 8, DecodeError.TOO_MANY, "at most 8"),  # 5 of 4
    ("020000", 1, DecodeError.TOO_MANY, "at most 1"),
    ("010f", 8, DecodeError.OUT_OF_RANGE, "below 8"),  # position 4 of 4
    ("0110", 8, DecodeError.DIRTY_PADDING, "an unused bit is set"),
]


@pytest.mark.parametrize(("wire", "limit", "error", "words"), MALFORMED)
def test_an_error_says_what_is_wrong(wire, limit, error, words):
    bounds = torch.tensor([0, 4, 8])
    for twin in (native, reference):
        indices, status = twin.golomb_decode(from_hex(wire), bounds, limit)
        assert status.tolist() == [error]
        assert len(indices) == 0
    with pytest.raises(ValueError, match=f"^golomb: .*{words}"):
        Golomb().decode(from_hex(wire), plan_of(bounds, limit))


def test_a_long_unary_part_crosses_words():
    # b = 2 is best for many small gaps; the last gap then takes hundreds of ones.
    indices = torch.cat([torch.arange(0, 2000, 4), torch.tensor([5000])]).int()
    bounds = torch.tensor([0, 5001])
    data = native.golomb_encode(indices, bounds)
    assert torch.equal(data, reference.golomb_encode(indices, bounds))
    assert torch.equal(native.golomb_decode(data, bounds, len(indices))[0], indices)


def test_the_device_writes_long_unary_parts(on_device):
    # Two gaps of many thousand ones each, neighbours in one warp.
    indices = torch.cat([torch.arange(20_000), torch.tensor([2**20, 2**21]), 2**21 + positions(9)])
    assert_device_agrees(on_device, indices.int(), torch.tensor([0, 2**22]))
    assert_device_agrees(on_device, indices.int(), torch.tensor([0, 19_000, 2**20, 2**22]), 600)


THREADS = 512


@pytest.mark.parametrize(
    "count", [THREADS - 1, THREADS, THREADS + 1, 5 * THREADS, 5 * THREADS + 1, 20_000]
)
@pytest.mark.parametrize("params", [1, 7, 100])
def test_the_device_agrees_at_the_edges_of_blocks(on_device, count, params):
    indices = random_positions(30 * count, count)
    assert_device_agrees(on_device, indices, random_bounds(30 * count, params), count % 3)


def test_the_device_agrees_where_tensors_outnumber_positions(on_device):
    indices = random_positions(10**5, 700)
    assert_device_agrees(on_device, indices, random_bounds(10**5, 2000), 5)
    assert_device_agrees(on_device, indices[:0], random_bounds(10**5, 2000), 5)


@pytest.mark.parametrize("low", [-(2**31), 0])
def test_the_device_takes_what_are_no_positions(on_device, low):
    generator = torch.Generator().manual_seed(4)
    indices = torch.randint(low, 2**31, (3000,), generator=generator).int()
    for numel in (0, 2**20, 2**31 - 1):
        bounds = random_bounds(numel, 5)
        data = on_device("golomb_encode", indices, bounds=bounds)
        assert len(data) <= 4 * len(indices) + 36 * len(bounds)


@on_a_gpu
@pytest.mark.parametrize("count", [10**5, 10**6, 10**7])
@pytest.mark.parametrize("params", [1, 160])
def test_the_gpu_agrees_on_large_messages(on_device, count, params):
    indices = random_positions(10 * count, count)
    assert_device_agrees(on_device, indices, random_bounds(10 * count, params), 1000)


@given(messages())
def test_the_parameters_are_the_best(message):
    indices, bounds = message
    bits = 0
    for start, end in pairwise(bounds.tolist()):
        inside = [i for i in indices.tolist() if start <= i < end]
        gaps = [b - a - 1 for a, b in pairwise([start - 1, *inside])]
        codes = (sum((gap >> b) + 1 + b for gap in gaps) for b in range(32))
        bits += (end - start).bit_length() + (5 + min(codes) if gaps else 0)
    assert len(native.golomb_encode(indices, bounds)) == -(-bits // 8)


@given(messages(), st.integers(0, 50))
def test_size_bounds_every_message(message, spare):
    indices, bounds = message
    plan = plan_of(bounds, min(int(bounds[-1]), len(indices) + spare))
    assert len(Golomb().encode(indices, plan)) <= Golomb().size(plan)


@pytest.mark.parametrize("density", [0.001, 0.01])
def test_bits_a_position(density):
    indices = random_positions(10**7, round(10**7 * density))
    bounds = torch.tensor([0, 10**7])
    data = native.golomb_encode(indices, bounds)
    assert 8 * len(data) / len(indices) <= 1.009 * entropy(density)
    assert torch.equal(native.golomb_decode(data, bounds, len(indices))[0], indices)


@pytest.mark.parametrize("density", [0.001, 0.01])
def test_bits_a_position_of_a_million(density):
    indices = random_positions(10**6, round(10**6 * density))
    data = native.golomb_encode(indices, torch.tensor([0, 10**6]))
    assert 8 * len(data) / len(indices) <= 1.015 * entropy(density)  # the sample is small
    assert len(data) < elias_fano_size(10**6, len(indices))


def test_tensors_of_different_density_cost_less_than_their_mixture():
    sparse = random_positions(10**6, 100)
    dense = random_positions(10**4, 5000) + 10**6
    indices, total = torch.cat([sparse, dense]), 10**6 + 10**4
    apart = native.golomb_encode(indices, torch.tensor([0, 10**6, total]))
    assert 8 * len(apart) < len(indices) * entropy(len(indices) / total)


def test_density_one():
    indices = torch.arange(100_003, dtype=torch.int32)
    bounds = torch.tensor([0, 3, 100_003])
    data = native.golomb_encode(indices, bounds)
    assert torch.equal(native.golomb_decode(data, bounds, 100_003)[0], indices)


@pytest.mark.parametrize("indices", [(1, 0), (2, 2), (-1,), (0, 8)])
def test_encoder_refuses_what_are_no_positions(indices):
    with pytest.raises(RuntimeError, match="must ascend strictly"):
        native.golomb_encode(positions(*indices), torch.tensor([0, 8]))


def test_what_it_writes_is_what_its_schema_says():
    bounds = torch.tensor([0, 8])
    torch.library.opcheck(
        native.golomb_encode.default, (positions(0, 5, 6), bounds), test_utils="test_schema"
    )
    torch.library.opcheck(
        native.golomb_decode.default, (from_hex("033c"), bounds, 3), test_utils="test_schema"
    )
