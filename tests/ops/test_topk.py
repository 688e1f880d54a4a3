import math
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddp_compress import ops
from ddp_compress.ops import reference

native = torch.ops.ddp_compress
# grads, residuals, momenta, momentum, bounds, groups, ks, salts
Message = tuple[list[Tensor], list[Tensor], list[Tensor], float, Tensor, Tensor, Tensor, Tensor]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
either_side = pytest.mark.parametrize("heavier", [False, True], ids=["both", "heavier"])


@pytest.fixture(params=["avx512", "avx2", "portable"])
def path(request, monkeypatch):
    """Run a test on all paths of the kernel; they are the same where registers are narrower."""
    if request.param != "avx512":
        monkeypatch.setenv(f"DDP_COMPRESS_{request.param.upper()}", "1")


def memory_of(grads: list[Tensor], seed: int = 0) -> list[Tensor]:
    """Random memory beside gradients: fp32, or fp64 for fp64."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(g.numel(), generator=generator).to(
            torch.float64 if g.dtype == torch.float64 else torch.float32
        )
        for g in grads
    ]


FIRST = torch.empty(0, dtype=torch.int64)  # of equals the first are taken
UNUSED = 2**31 - 1  # the position of a slot that nothing was found for


def one_group(numel: int, k: int, salts: Tensor = FIRST) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.tensor([0, numel]), torch.tensor([0]), torch.tensor([k]), salts


def check_twins(grads, residuals, momenta, momentum, bounds, groups, ks, salts, heavier):
    """Native and reference agree bit for bit; inputs stay as they are."""
    given = [*grads, *residuals, *momenta]
    before = [t.clone() for t in given]
    args = (grads, residuals, momenta, momentum, bounds, groups, ks, salts, heavier)
    sums, left = [[torch.empty_like(r) for r in residuals] for _ in range(2)]
    moved, left_moved = [[torch.empty_like(m) for m in momenta] for _ in range(2)]
    expected = reference.topk(*args, sums, moved)
    found = native.topk(*args, left, left_moved)
    assert all(torch.equal(old, new) for old, new in zip(before, given, strict=True))
    names = ("indices", "values", "finite", "counts", "means")
    for name, ours, theirs in zip(names, found, expected, strict=True):
        assert ours.dtype == theirs.dtype, name
        assert torch.equal(ours, theirs), name
    assert all(torch.equal(*each) for each in zip(sums, left, strict=True))
    assert all(torch.equal(*each) for each in zip(moved, left_moved, strict=True))
    # A scan is another one where no sums are wanted, and where they cannot be streamed.
    shifted = [torch.empty(len(r) + 1, dtype=r.dtype)[1:] for r in residuals]
    for wanted, wanted_moved in (([], []), (shifted, left_moved)):
        for each in wanted_moved:
            each.fill_(torch.nan)
        again = native.topk(*args, wanted, wanted_moved)
        assert all(torch.equal(*each) for each in zip(again, expected, strict=True))
    assert all(torch.equal(*each) for each in zip(sums, shifted, strict=True))
    assert all(torch.equal(*each) for each in zip(moved, left_moved, strict=True))
    return found[:3]


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_an_empty_chunk_comes_first(check_device, momentum):
    """It has no memory to tell by what is kept, or wanted."""
    grads = [torch.empty(0), torch.tensor([1.0, 2.0, 9.0, 4.0, 3.0])]
    momenta = [torch.empty(0), torch.tensor([0.0, 0.0, 0.0, 0.0, 50.0])] if momentum else []
    tables = torch.tensor([0, 0, 2, 5]), torch.tensor([-1, -1, 0]), torch.tensor([1]), FIRST
    case = grads, [torch.zeros_like(g) for g in grads], momenta, momentum or 0.0, *tables
    indices, _, _ = check_twins(*case, heavier=False)
    assert indices.tolist() == [4 if momentum else 2]
    for _ in range(2):
        check_device(*case, heavier=False)


def check_one(grad: Tensor, k: int, heavier: bool, salts: Tensor = FIRST):
    """The same, for one gradient of one group without memory."""
    memory = memory_of([grad])[0].zero_()
    return check_twins([grad], [memory], [], 0.0, *one_group(grad.numel(), k, salts), heavier)


@pytest.fixture
def check_device(device, on_device):
    """The CUDA kernel agrees with the CPU's bit for bit; slots it does not need are unused.

    Every other call has it leave the sums, too.
    """

    def check(grads, residuals, momenta, momentum, bounds, groups, ks, salts, heavier):
        args, tables = (grads, residuals, momenta, momentum), (bounds, groups, ks, salts)
        wanted, moved = (
            [] if heavier else [*map(torch.empty_like, m)] for m in (residuals, momenta)
        )
        there = "cuda" if device == "cuda" else "cpu"
        left, left_moved = (
            [each.to(there, copy=True) for each in all_] for all_ in (wanted, moved)
        )
        expected = native.topk(*args, *tables, heavier, wanted, moved)
        named = dict(zip(("bounds", "groups", "ks", "salts"), tables, strict=True))
        found = on_device(
            "topk", *args, **named, heavier=heavier, sums=left, next_momenta=left_moved
        )
        unused = int(ks.sum()) - len(expected[0])
        assert torch.equal(found[0], torch.cat([expected[0], torch.full((unused,), UNUSED).int()]))
        assert torch.equal(found[1], torch.cat([expected[1], expected[1].new_zeros(unused)]))
        assert torch.equal(found[2], expected[2])
        assert torch.equal(found[3], expected[3])
        assert torch.equal(found[4], expected[4])
        if expected[2]:
            found = [each.cpu() for each in left + left_moved]
            torch.testing.assert_close(found, wanted + moved, rtol=0, atol=0, equal_nan=True)

    return check


def random_case(dtype, momentum, k, numel=40_003) -> Message:
    grad = torch.randn(numel, generator=torch.Generator().manual_seed(k)).to(dtype)
    momenta = memory_of([grad], seed=2) if momentum else []
    return [grad], memory_of([grad], seed=1), momenta, momentum or 0.0, *one_group(numel, k)


@pytest.mark.usefixtures("path")
@every_dtype
@either_side
@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("k", [1, 40, 4000, 40_000])
def test_twins_agree_on_random_gradients(dtype, heavier, momentum, k):
    """Large enough for the sample, the second scan and the pruning on the way."""
    indices, _, finite = check_twins(*random_case(dtype, momentum, k), heavier)
    assert finite
    assert len(indices) <= k


def grouped_case(dtype) -> tuple[Message, list[tuple[int, int]]]:
    """Groups that span chunks, parameters that span nothing, some left out."""
    sizes = [5000, 1, 0, 9000, 64, 3000, 20_000, 7, 10_000]
    groups = [0, -1, -1, 0, 1, -1, 1, 2, -1]
    chunks = [5001, 9064, 23_007, 10_000]
    generator = torch.Generator().manual_seed(5)
    grads = [torch.randn(n, generator=generator).to(dtype) for n in chunks]
    edges = list(accumulate(sizes, initial=0))
    exact = [(edges[i], edges[i + 1]) for i, group in enumerate(groups) if group < 0]
    tables = torch.tensor(edges), torch.tensor(groups), torch.tensor([140, 300, 2]), FIRST
    return (grads, memory_of(grads, seed=1), memory_of(grads, seed=2), 0.5, *tables), exact


@pytest.mark.usefixtures("path")
@either_side
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_twins_agree_on_chunks_groups_and_exact_parameters(dtype, heavier):
    message, exact = grouped_case(dtype)
    indices, _, _ = check_twins(*message, heavier)
    assert not any(begin <= i < end for i in indices.tolist() for begin, end in exact)
    assert (indices.diff() > 0).all()


@st.composite
def messages(draw):
    """Small messages, full of ties and zeros, cut into chunks and groups anyhow."""
    sizes = draw(st.lists(st.integers(0, 20), min_size=1, max_size=6))
    cuts = draw(st.sets(st.integers(0, sum(sizes)), max_size=3))
    edges = sorted({0, *cuts, sum(sizes)}) if sum(sizes) else [0, 0]
    values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, 1e-40, 3e4])
    dtype = draw(st.sampled_from(DTYPES))

    def tensors(kind):
        flat = draw(st.lists(values, min_size=sum(sizes), max_size=sum(sizes)))
        return [torch.tensor(flat[begin:end], dtype=kind) for begin, end in pairwise(edges)]

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    groups, count = [], 0
    for _ in sizes:
        kind = draw(st.sampled_from(["exact", "same", "next"]))
        count += kind == "next" or (kind == "same" and count == 0)
        groups.append(-1 if kind == "exact" else count - 1)
    return (
        tensors(dtype),
        tensors(wide),
        tensors(wide) if draw(st.booleans()) else [],
        draw(st.sampled_from([0.0, 0.5, 0.9])),
        torch.tensor(list(accumulate(sizes, initial=0))),
        torch.tensor(groups),
        torch.tensor([draw(st.integers(1, 9)) for _ in range(count)], dtype=torch.int64),
        reference.salts([str(i) for i in sizes], draw(st.integers(0, 9)), 0)
        if draw(st.booleans())
        else FIRST,
        draw(st.booleans()),
    )


def test_the_device_takes_the_first_of_equal_hashes(check_device):
    """Positions 23 and 47 have one magnitude and one hash, and the cut may fall between them."""
    grad, memory = torch.zeros(68), torch.zeros(68)
    grad[[38, 50]] = 1.0
    memory[[23, 42, 43, 47, 48, 51]] = 1.0
    memory[44] = 2.0
    bounds, groups = torch.tensor([0, 20, 28, 44, 52, 68]), torch.tensor([-1, 0, 0, 0, -1])
    salts = reference.salts(["0", "1", "2", "1", "4"], 9, 0)
    salts[1] = salts[3] = -3322381561920711361
    salts[2] = 2323721217421840962
    for k in range(1, 11):
        check_device([grad], [memory], [], 0.0, bounds, groups, torch.tensor([k]), salts, False)


@given(messages())
def test_twins_agree_on_anything(message):
    check_twins(*message)


special_gradients = pytest.mark.parametrize(
    "grad",
    [
        torch.zeros(0),
        torch.tensor([3.0]),
        torch.tensor([0.0]),
        torch.zeros(20_000),
        torch.full((20_000,), -2.5),
        torch.arange(20_000.0),
        -torch.arange(20_000.0).flip(0),
        torch.where(torch.arange(50_000) % 7001 == 0, 1.0, 0.0),
        torch.full((9000,), 1e-44),
        torch.cat([torch.full((10_000,), 3.0), torch.full((10_000,), -3.0)]),
    ],
    ids=[
        "empty", "one", "one zero", "zeros", "equal", "ascending", "descending", "sparse",
        "subnormal", "two sides equal",
    ],
)  # fmt: skip


@pytest.mark.usefixtures("path")
@either_side
@special_gradients
def test_twins_agree_on_special_gradients(grad, heavier):
    for k in (1, 100):
        for salts in (FIRST, torch.tensor([7])):
            check_one(grad, k, heavier, salts)


@pytest.mark.usefixtures("path")
@every_dtype
@either_side
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("numel", [1, 33, 20_000])
def test_one_bad_number_anywhere_is_seen(dtype, heavier, bad, numel):
    """It may lie between the samples, or in the tail behind the wide registers."""
    for at in {0, numel // 2, numel - 1}:
        grad = torch.randn(numel, generator=torch.Generator().manual_seed(3)).to(dtype)
        grad[at] = bad
        memory, none = memory_of([grad]), memory_of([])
        args = ([grad], memory, none, 0.0, *one_group(numel, max(1, numel // 100)), heavier)
        assert not native.topk(*args, [], [])[2]
        assert not reference.topk(*args, [], [])[2]


def test_an_overflow_of_finite_numbers_is_seen():
    large = torch.full((9000,), 3e38)
    assert not ops.topk([large], [large], [], 0.0, *one_group(9000, 5), False, [], [])[2]


@pytest.mark.parametrize("k", [1, 7, 500])
def test_it_is_the_top_k(k):
    """Without ties torch.topk finds the same."""
    grad = torch.randn(30_000, generator=torch.Generator().manual_seed(k))
    indices, values, _ = check_one(grad, k, False)
    expected = grad.abs().topk(k).indices.sort().values
    assert indices.tolist() == expected.tolist()
    assert torch.equal(values, grad[expected])


def test_the_first_of_equals_are_taken():
    indices, _, _ = check_one(torch.full((30_000,), -1.0), 5, False)
    assert indices.tolist() == [0, 1, 2, 3, 4]


def tied_case(dtype, levels, k, salted) -> Message:
    """Ties over many blocks, chunks and parameters, pruned often on the way; many zeros."""
    numel, chunks, params = 60_000, [25_000, 1, 34_999], 41
    generator = torch.Generator().manual_seed(levels)
    flat = torch.randint(-levels, levels + 1, (numel,), generator=generator).to(dtype)
    grads = list(flat.split(chunks))
    edges = torch.randint(0, numel, (params - 1,), generator=generator).sort().values
    bounds = torch.cat([torch.tensor([0]), edges, torch.tensor([numel])])
    groups = torch.tensor([0, -1, *[0] * 20, -1, *[1] * (params - 24), -1])
    salts = reference.salts([str(i) for i in range(params)], seed=levels, step=k)
    memory, ks = [m.zero_() for m in memory_of(grads)], torch.tensor([k, k])
    return grads, memory, [], 0.0, bounds, groups, ks, salts if salted else FIRST


@pytest.mark.usefixtures("path")
@every_dtype
@either_side
@pytest.mark.parametrize("levels", [1, 2, 9])
@pytest.mark.parametrize("k", [1, 70, 3000, 30_000])
def test_twins_break_heavy_ties_alike(dtype, heavier, levels, k):
    indices, values, _ = check_twins(*tied_case(dtype, levels, k, True), heavier)
    _, first_values, _ = check_twins(*tied_case(dtype, levels, k, False), heavier)
    assert torch.equal(values.abs().sort().values, first_values.abs().sort().values)
    assert (indices.diff() > 0).all()


@pytest.mark.parametrize("numel", [500, 40_000])
def test_hash_ties_are_taken_evenly_from_everywhere(numel):
    grad, cells, rounds = torch.full((numel,), -1.5), 20, 200
    counts = torch.zeros(cells)
    for salt in range(rounds):
        indices, *_ = native.topk(
            [grad], [torch.zeros(numel)], [], 0.0,
            *one_group(numel, numel // 50, torch.tensor([salt])), False, [], [],
        )  # fmt: skip
        counts += torch.bincount(indices // (numel // cells), minlength=cells)
    expected = counts.sum() / cells
    assert counts.sum() == rounds * (numel // 50)
    assert ((counts - expected) ** 2 / expected).sum() < 50  # chi-square, 19 degrees of freedom


def test_hash_ties_are_those_of_the_largest_hash():
    grad, salts = torch.full((30_000,), 2.0), torch.tensor([11])
    grad[12_345] = 3.0
    indices, _, _ = check_one(grad, 5, False, salts)
    hashes = reference.hashes(torch.arange(30_000), torch.tensor([0, 30_000]), salts)
    hashes[12_345] = 2**32
    assert indices.tolist() == hashes.topk(5).indices.sort().values.tolist()


def test_zeros_are_never_taken():
    indices, values, _ = check_one(torch.tensor([0.0, 2.0, -0.0, 0.0]), 3, False)
    assert indices.tolist() == [1]
    assert values.tolist() == [2.0]


def test_a_spike_after_a_quiet_start_is_found():
    """The threshold must rise and fall with what comes; nothing is sampled at the spike."""
    grad = torch.zeros(1_000_000)
    grad[777_777], grad[-1] = 5.0, -6.0
    indices, _, _ = check_one(grad, 3, False)
    assert indices.tolist() == [777_777, 999_999]


@either_side
@pytest.mark.usefixtures("path")
def test_a_sample_of_equals_may_mislead(heavier):
    """It has the large ones alone, of which there are fewer than k: another scan finds the rest."""
    numel, k = 40_000, 2000
    grad = torch.ones(numel)
    for start in range(0, numel, 625):  # where the sample lies
        grad[start : start + 16] = 2.0
    indices, values, finite = check_one(grad, k, heavier, torch.tensor([7]))
    assert len(indices) == k
    assert finite
    assert (values == 2.0).sum() == 1024


@pytest.mark.parametrize(
    ("values", "k", "taken"),
    [
        ([3.0, -1.0, 3.0, -4.0], 2, [0, 2]),  # means 3 and -2.5
        ([3.0, -1.0, 3.0, -5.5], 2, [1, 3]),  # means 3 and -3.25
        ([1.0, 1.0, -9.0], 3, [2]),  # fewer entries than k: their own mean counts
        ([2.0, -2.0], 1, [1]),
    ],
)
def test_the_side_of_larger_mean_is_taken(values, k, taken):
    assert check_one(torch.tensor(values), k, True)[0].tolist() == taken


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"residuals": []}, "residuals has 0 tensors, expected 1"),
        ({"residuals": [torch.zeros(3)]}, r"residuals\[0\] has 3 elements, expected 4"),
        ({"residuals": [torch.zeros(4).double()]}, "residuals has dtype Double, expected Float"),
        ({"momenta": [torch.zeros(5)]}, r"momenta\[0\] has 5 elements, expected 4"),
        ({"momenta": [torch.zeros(4)], "sums": [torch.zeros(4)]}, "next_momenta has 0 tensors"),
        ({"sums": [torch.zeros(4)], "next_momenta": [torch.zeros(4)]}, "tensors, expected 0"),
        ({"bounds": torch.tensor([0, 3])}, "bounds must run from 0 to 4"),
        ({"bounds": torch.tensor([0, 5, 4]), "groups": torch.tensor([0, 0])}, "must ascend"),
        ({"groups": torch.tensor([1])}, r"groups\[0\] is 1, expected -1 or an index into ks"),
        ({"ks": torch.tensor([0])}, "ks must be positive"),
        (
            {"salts": torch.tensor([1, 2])},
            "salts has 2 entries, expected none or one for each of 1",
        ),
        ({"salts": torch.tensor([1.0])}, "salts has dtype Float, expected Long"),
        ({"grads": [torch.zeros(4, dtype=torch.int32)]}, "has dtype Int, expected float32"),
        ({"grads": []}, "at least one tensor"),
    ],
)
def test_bad_arguments_are_named(change, words):
    good = {
        "grads": [torch.ones(4)],
        "residuals": [torch.zeros(4)],
        "momenta": [],
        "momentum": 0.0,
        "bounds": torch.tensor([0, 4]),
        "groups": torch.tensor([0]),
        "ks": torch.tensor([2]),
        "salts": FIRST,
        "heavier": False,
        "sums": [],
        "next_momenta": [],
    }
    with pytest.raises(RuntimeError, match=words):
        native.topk(**(good | change))


@every_dtype
@pytest.mark.parametrize("momentum", [False, True])
def test_what_it_writes_is_what_its_schema_says(dtype, momentum):
    grad = torch.arange(-5, 6).to(dtype)
    memory = memory_of([grad])
    for salts in (FIRST, torch.tensor([5])):
        args: Any = (
            [grad],
            memory,
            memory if momentum else [],
            0.9,
            *one_group(11, 3, salts),
            True,
            [],
            [],
        )
        torch.library.opcheck(native.topk.default, args, test_utils="test_schema")


@either_side
@pytest.mark.parametrize(
    ("dtype", "k", "momentum"),
    [
        (torch.float32, 1, None),
        (torch.float32, 40, 0.9),
        (torch.float32, 12_000, None),
        (torch.float32, 40_000, None),
        (torch.bfloat16, 400, 0.9),
        (torch.bfloat16, 4000, None),
        (torch.float16, 4000, None),
        (torch.float64, 40, 0.9),
        (torch.float64, 12_000, None),
    ],
)
def test_the_device_agrees_on_random_gradients(check_device, dtype, k, momentum, heavier):
    """So few candidates that one block finds the k-th, and so many that all look for it."""
    check_device(*random_case(dtype, momentum, k), heavier)


@either_side
@pytest.mark.parametrize("numel", [1, 3, 127, 4095, 4096, 4097, 8191, 8192, 20_481])
def test_the_device_agrees_at_the_edges_of_tiles(check_device, numel, heavier):
    check_device(*random_case(torch.float32, None, max(1, numel // 50), numel), heavier)


@either_side
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_device_agrees_on_chunks_groups_and_exact_parameters(check_device, dtype, heavier):
    check_device(*grouped_case(dtype)[0], heavier)


@either_side
def test_the_device_agrees_on_many_groups(check_device, heavier):
    """Some of which share a block, while others need many; one is of nothing."""
    generator = torch.Generator().manual_seed(8)
    sizes = [*torch.randint(1, 900, (40,), generator=generator).tolist(), 0, 50_000, 3000, 9000]
    grad = torch.randn(sum(sizes), generator=generator)
    tables = (
        torch.tensor(list(accumulate(sizes, initial=0))),
        torch.arange(len(sizes)),
        torch.tensor([max(1, n // 100) for n in sizes]),
        reference.salts([str(i) for i in range(len(sizes))], seed=0, step=0),
    )
    check_device([grad], memory_of([grad]), [], 0.0, *tables, heavier)


def test_the_device_rounds_means_alike(check_device):
    """Beside 1, what is small counts for nothing: so the sides are equal, but for their order."""
    grad = torch.zeros(8000)
    grad[::500] = 1e-10
    grad[2048], grad[7], grad[4097] = 1.0, -1.0, -1e-12
    check_device([grad], [torch.zeros(8000)], [], 0.0, *one_group(8000, 30), True)
    assert (
        native.topk([grad], [torch.zeros(8000)], [], 0.0, *one_group(8000, 2), True, [], [])[1][0]
        < 0
    )


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages())
def test_the_device_agrees_on_anything(check_device, message):
    check_device(*message)


@either_side
@special_gradients
def test_the_device_agrees_on_special_gradients(check_device, grad, heavier):
    for salts in (FIRST, torch.tensor([7])):
        memory = memory_of([grad])[0].zero_()
        tables = one_group(grad.numel(), 100, salts)
        check_device([grad], [memory], [], 0.0, *tables, heavier)


@either_side
@pytest.mark.parametrize(("k", "salted"), [(1, False), (3000, False), (3000, True), (30_000, True)])
def test_the_device_breaks_heavy_ties_alike(check_device, heavier, salted, k):
    check_device(*tied_case(torch.float32, 2, k, salted), heavier)


@either_side
@pytest.mark.parametrize(
    "factor", [100.0, 1.5, 0.01], ids=["too high", "but for the looser one", "too low"]
)
@pytest.mark.parametrize("k", [60, 3900])
def test_the_device_makes_good_for_a_wrong_guess(check_device, heavier, factor, k):
    """What is sampled, 512 runs of 8 neighbours, is not like the rest."""
    numel = 40_960
    grad = torch.randn(numel, generator=torch.Generator().manual_seed(k))
    grad[torch.arange(numel) % (numel // 512) < 8] *= factor
    memory = memory_of([grad])[0].zero_()
    check_device([grad], [memory], [], 0.0, *one_group(numel, k), heavier)


@either_side
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
@pytest.mark.parametrize("numel", [1, 33, 20_000])
def test_the_device_sees_one_bad_number_anywhere(check_device, heavier, bad, numel):
    for at in {numel // 2, numel - 1}:
        grad = torch.randn(numel, generator=torch.Generator().manual_seed(3))
        grad[at] = bad
        tables = one_group(numel, max(1, numel // 100))
        check_device([grad], memory_of([grad]), [], 0.0, *tables, heavier)


def test_the_device_passes_over_a_bad_number_that_is_left_out(check_device):
    grad = torch.tensor([1.0, math.nan, 2.0])
    tables = torch.tensor([0, 1, 2, 3]), torch.tensor([0, -1, 0]), torch.tensor([2]), FIRST
    check_device([grad], [torch.zeros(3)], [], 0.0, *tables, False)


@pytest.mark.needs_cuda
@every_dtype
@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize(("numel", "density"), [(6_500_000, 0.001), (10_000_001, 0.01)])
def test_a_gpu_agrees_on_large_gradients(dtype, shift, numel, density):
    """Whether or not the tensors are aligned, all alike or each in its own way."""
    generator = torch.Generator().manual_seed(numel)
    flat = torch.randn(numel + 8, generator=generator).to(dtype)
    grad, residual = flat[shift:][:numel], memory_of([flat], seed=1)[0][2 * shift :][:numel]
    on_gpu = flat.cuda()[shift:][:numel]
    residual_on_gpu = memory_of([flat], seed=1)[0].cuda()[2 * shift :][:numel]
    for salts in (FIRST, torch.tensor([7])):
        tables = one_group(numel, round(numel * density), salts)
        sums, left = torch.empty_like(residual), torch.empty_like(residual_on_gpu)
        expected = native.topk([grad], [residual], [], 0.0, *tables, False, [sums], [])
        found = native.topk([on_gpu], [residual_on_gpu], [], 0.0, *tables, False, [left], [])
        for ours, theirs in zip((*found, left), (*expected, sums), strict=True):
            assert torch.equal(ours.cpu(), theirs)


@pytest.mark.needs_cuda
@either_side
@pytest.mark.parametrize("levels", [0, 1, 1000])
@pytest.mark.parametrize("k", [100_000, 1_000_000])
def test_a_gpu_agrees_on_the_largest_gradients(heavier, levels, k):
    """All equal, in two levels on either side of zero, or in a thousand; in every run alike."""
    numel = 100_000_000
    grad = torch.randint(-levels, levels + 1, (numel,)).float() if levels else torch.ones(numel)
    memory = torch.zeros(numel)
    tables = one_group(numel, k, torch.tensor([7]))
    expected = native.topk([grad], [memory], [], 0.0, *tables, heavier, [], [])
    on_gpu: Any = ([grad.cuda()], [memory.cuda()], [], 0.0)
    for _ in range(3):
        found = native.topk(*on_gpu, *tables, heavier, [], [])
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours.cpu(), theirs)
