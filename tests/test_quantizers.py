"""What travels of values: every quantizer alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddp_compress import ops
from ddp_compress.message.context import Context
from ddp_compress.quantize import Fractional, Levels, Means, Signs, Values
from ddp_compress.recipe import DecodesAll

QUANTIZERS = [
    Values(),
    Values(torch.bfloat16),
    Means(),
    Signs(),
    Signs(8),
    Signs(64),
    *(Fractional(bits) for bits in (2, 4, 6)),
    *(Levels(bits) for bits in (1, 2, 4)),
]
LARGEST = torch.finfo(torch.float32).max

every_quantizer = pytest.mark.parametrize("quantizer", QUANTIZERS, ids=repr)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def random_values(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values as top-k leaves them: a gap around zero, and long tails."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=dtype)
    return (values.abs() + 0.5) ** 3 * values.sign()


def random_guess(values: Tensor, unseen: float = 0.3) -> Tensor:
    generator = torch.Generator().manual_seed(len(values))
    noise = torch.randn(len(values), generator=generator, dtype=values.dtype)
    seen = torch.rand(len(values), generator=generator) >= unseen
    return (0.5 * values + noise) * seen


def roundtrip(quantizer, values, counts, guess=None) -> Tensor:
    """What arrives, after the checks that hold for all."""
    context = Context(counts, guess=guess)
    data = quantizer.encode(values, context)
    assert data.dtype == torch.uint8
    assert len(data) <= quantizer.size(counts)
    found = quantizer.decode(data, context)
    assert found.dtype == torch.float32
    assert found.shape == values.shape
    assert found.isfinite().all()
    assert torch.equal(quantizer.decode(data, context), found)
    return found


@st.composite
def messages(draw):
    """(values, counts, guess): any finite numbers, often equal ones."""
    number = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, 1e-45, LARGEST, -LARGEST])
    number |= st.floats(width=32, allow_nan=False, allow_infinity=False)
    groups = draw(st.lists(st.lists(number, max_size=30), max_size=4))
    values = [x for group in groups for x in group]
    guess = draw(st.lists(number, min_size=len(values), max_size=len(values)))
    return (
        torch.tensor(values, dtype=torch.float32),
        torch.tensor([len(group) for group in groups], dtype=torch.int64),
        draw(st.sampled_from([None, torch.tensor(guess, dtype=torch.float32)])),
    )


@every_quantizer
@given(messages())
def test_any_numbers_arrive_finite_and_with_their_sign(quantizer, message):
    values, counts, guess = message
    found = roundtrip(quantizer, values, counts, guess)
    if not isinstance(quantizer, (Means, Signs)):
        assert (found[values == 0] == 0).all()
    if not isinstance(quantizer, Means):
        assert (found * values.sign() >= 0).all()


@every_quantizer
@every_dtype
@pytest.mark.parametrize("counts", [[], [0], [1], [2000], [0, 500, 1, 0, 9]])
def test_random_values(quantizer, dtype, counts):
    counts = torch.tensor(counts, dtype=torch.int64)
    values = random_values(int(counts.sum()), dtype)
    roundtrip(quantizer, values, counts)
    roundtrip(quantizer, values, counts, random_guess(values))


@pytest.mark.parametrize(
    "quantizer", [each for each in QUANTIZERS if each != Values(torch.bfloat16)], ids=repr
)
@pytest.mark.parametrize("value", [-1.5, 1e-38, LARGEST])
def test_equal_values_arrive_as_they_are(quantizer, value):
    values = torch.full((11,), value)
    assert torch.equal(roundtrip(quantizer, values, torch.tensor([4, 7])), values)


@every_quantizer
@given(st.data())
def test_altered_bytes_arrive_finite_or_are_refused(quantizer, data):
    values, counts, guess = data.draw(messages())
    context = Context(counts, guess=guess)
    wire = bytearray(quantizer.encode(values, context).tolist())
    for bit in data.draw(st.lists(st.integers(0, max(0, 8 * len(wire) - 1)), max_size=3)):
        if wire:
            wire[bit // 8] ^= 1 << bit % 8
    wire = wire[: data.draw(st.integers(0, len(wire)) | st.just(len(wire)))]
    wire += data.draw(st.binary(max_size=3))
    try:
        found = quantizer.decode(torch.tensor(list(wire), dtype=torch.uint8), context)
    except ValueError as error:
        assert str(error).startswith(type(quantizer).__name__.lower() + ": ")
    else:
        assert found.isfinite().all()
        assert len(found) == len(values)


@pytest.mark.parametrize(
    "quantizer", [each for each in QUANTIZERS if isinstance(each, DecodesAll)], ids=repr
)
@pytest.mark.parametrize("guessed", [False, True])
def test_several_ranks_are_decoded_like_each_alone(quantizer, guessed):
    counts = torch.tensor([700, 0, 300])
    guess = random_guess(random_values(1000)) if guessed else None
    context = Context(counts, guess=guess)
    ranks = [random_values(1000) * scale for scale in (1.0, -3.0, 0.0, 1e-3, 7.0)]
    bodies = [quantizer.encode(values, context) for values in ranks]
    found = quantizer.decode_all(bodies, context)
    for body, values in zip(bodies, found, strict=True):
        assert torch.equal(values, quantizer.decode(body, context))
    bodies[3] = bodies[3][:-1]
    with pytest.raises(ValueError, match="bytes"):
        quantizer.decode_all(bodies, context)


@every_quantizer
def test_a_byte_more_or_less_is_refused(quantizer):
    context = Context(torch.tensor([25, 15]))
    data = quantizer.encode(random_values(40), context)
    for wrong in (data[:-1], torch.cat([data, data.new_zeros(1)]), data[:0]):
        with pytest.raises(ValueError, match="bytes"):
            quantizer.decode(wrong, context)


@pytest.mark.parametrize("quantizer", [Means(), Signs(), Fractional(), Levels()], ids=repr)
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_mean_that_is_not_finite_is_refused(quantizer, bad):
    context = Context(torch.tensor([40]))
    data = quantizer.encode(random_values(40), context)
    data[:4] = torch.tensor([bad]).view(torch.uint8)
    with pytest.raises(ValueError, match="a mean is not finite"):
        quantizer.decode(data, context)


@every_quantizer
def test_values_are_summed_in_their_own_dtype_or_fp32(quantizer):
    expected = quantizer.dtype if isinstance(quantizer, Values) else torch.float32
    assert quantizer.sum_dtype == expected


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Signs(0), "block must be a positive multiple of 8 or None, got 0"),
        (lambda: Signs(-8), "block must be .* got -8"),
        (lambda: Signs(12), "block must be .* got 12"),
        (lambda: Fractional(1), "bits must lie within 2 and 6, got 1"),
        (lambda: Fractional(7), "bits must lie within 2 and 6, got 7"),
        (lambda: Levels(0), "bits must lie within 1 and 4, got 0"),
        (lambda: Levels(5), "bits must lie within 1 and 4, got 5"),
    ],
)
def test_arguments_outside_their_range(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# ------------------------------------------------------------------------------------------- signs


def test_signs_send_a_bit_a_value_and_a_mean_a_block():
    values, counts = random_values(1000), torch.tensor([900, 0, 100])
    context = Context(counts)
    assert len(Signs().encode(values, context)) == 2 * 4 + 113 + 13
    assert len(Signs(64).encode(values, context)) == (15 + 2) * 4 + 113 + 13
    found = Signs().decode(Signs().encode(values, context), context)
    assert torch.equal(found.sign(), values.sign())
    means = ops.segment_means(values.abs(), counts)
    assert torch.equal(found.abs(), means.repeat_interleave(counts))


def test_the_size_of_signs_is_exact():
    for counts in (torch.tensor([900, 1, 100]), torch.tensor([8]), torch.tensor([64, 65])):
        for quantizer in (Signs(), Signs(8), Signs(64)):
            data = quantizer.encode(random_values(int(counts.sum())), Context(counts))
            assert len(data) == quantizer.size(counts)


# -------------------------------------------------------------------------------------- fractional


def test_intervals_are_equally_wide_on_a_logarithmic_scale():
    values = torch.tensor([1.0, 1.9, -2.1, 3.9, 4.1, -7.9, 0.0, -8.1, 16.0])
    found = roundtrip(Fractional(3), values, torch.tensor([9]))
    expected = [1.45, 1.45, -3.0, 3.0, 6.0, -6.0, 0.0, -12.05, 12.05]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_every_group_has_intervals_of_its_own():
    values, counts = random_values(200), torch.tensor([150, 50])
    both = roundtrip(Fractional(), values, counts)
    alone = [
        roundtrip(Fractional(), part, torch.tensor([len(part)])) for part in values.split([150, 50])
    ]
    assert torch.equal(both, torch.cat(alone))


@every_dtype
def test_four_bits_cost_less_than_four(dtype):
    count = 111_740
    values = torch.randn(20 * count, generator=torch.Generator().manual_seed(0), dtype=dtype)
    values = values[values.abs() > 1.96][:count]
    data = Fractional(bits=4).encode(values, Context(torch.tensor([len(values)])))
    assert 8 * len(data) / len(values) < 4.0


def test_more_bits_lose_less():
    values, counts = random_values(5000), torch.tensor([5000])
    losses = [(roundtrip(Fractional(b), values, counts) - values).norm() for b in range(2, 7)]
    assert losses == sorted(losses, reverse=True)


# ------------------------------------------------------------------------------------------ levels


def test_levels_of_a_sign_hold_equally_many():
    values = torch.tensor([3.0, -1.0, 1.0, 2.0, -9.0, 7.0, 0.0, 5.0, -5.0])
    found = roundtrip(Levels(2), values, torch.tensor([9]))
    # Ranks 0, 1, 2 of five positives and 0, 1 of three negatives are the lower levels.
    assert found.tolist() == [2.0, -3.0, 2.0, 2.0, -9.0, 6.0, 0.0, 6.0, -3.0]


def test_equal_values_are_ranked_by_position():
    values = torch.tensor([-1.0, -1.0, -1.0, -4.0, 1.0, 1.0])
    found = roundtrip(Levels(2), values, torch.tensor([6]))
    assert found.tolist() == [-1.0, -1.0, -2.5, -2.5, 1.0, 1.0]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@every_dtype
def test_a_guess_changes_the_bytes_alone(bits, dtype):
    values, counts = random_values(3000, dtype), torch.tensor([1800, 0, 1200])
    expected = roundtrip(Levels(bits), values, counts)
    for guess in (None, torch.zeros_like(values), values, random_guess(values)):
        assert torch.equal(roundtrip(Levels(bits), values, counts, guess), expected)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_a_better_guess_costs_less(bits):
    values, counts = random_values(10_000), torch.tensor([10_000])
    guesses = (torch.zeros_like(values), random_guess(values), random_guess(values, 0.0), values)
    sizes = [len(Levels(bits).encode(values, Context(counts, guess=guess))) for guess in guesses]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 4 * 2**bits + 16  # all is known: the means and a table
