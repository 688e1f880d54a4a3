import math
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddp_compress import ops, reference

native = torch.ops.ddp_compress
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
either_side = pytest.mark.parametrize("heavier", [False, True], ids=["both", "heavier"])


@pytest.fixture(params=["avx2", "portable"])
def path(request, monkeypatch):
    """Run a test on both paths of the kernel; they are the same where there is no AVX2."""
    if request.param == "portable":
        monkeypatch.setenv("DDP_COMPRESS_PORTABLE", "1")


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


def one_group(numel: int, k: int, salts: Tensor = FIRST) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.tensor([0, numel]), torch.tensor([0]), torch.tensor([k]), salts


def check_twins(grads, residuals, momenta, momentum, bounds, groups, ks, salts, heavier):
    """Native and reference agree bit for bit; inputs stay as they are."""
    given = [*grads, *residuals, *momenta]
    before = [t.clone() for t in given]
    args = (grads, residuals, momenta, momentum, bounds, groups, ks, salts, heavier)
    expected, found = reference.topk(*args), native.topk(*args)
    assert all(torch.equal(old, new) for old, new in zip(before, given, strict=True))
    for name, ours, theirs in zip(("indices", "values", "finite"), found, expected, strict=True):
        assert ours.dtype == theirs.dtype, name
        assert torch.equal(ours, theirs), name
    return found


def check_one(grad: Tensor, k: int, heavier: bool, salts: Tensor = FIRST):
    """The same, for one gradient of one group without memory."""
    memory = memory_of([grad])[0].zero_()
    return check_twins([grad], [memory], [], 0.0, *one_group(grad.numel(), k, salts), heavier)


@pytest.mark.usefixtures("path")
@every_dtype
@either_side
@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("k", [1, 40, 4000, 40_000])
def test_twins_agree_on_random_gradients(dtype, heavier, momentum, k):
    """Large enough for the sample, the second scan and the pruning on the way."""
    grad = torch.randn(40_003, generator=torch.Generator().manual_seed(k)).to(dtype)
    residual = memory_of([grad], seed=1)[0]
    momenta = memory_of([grad], seed=2) if momentum else []
    args = one_group(grad.numel(), k)
    indices, _, finite = check_twins([grad], [residual], momenta, momentum or 0.0, *args, heavier)
    assert finite
    assert len(indices) <= k


@pytest.mark.usefixtures("path")
@either_side
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_twins_agree_on_chunks_groups_and_exact_parameters(dtype, heavier):
    """Groups that span chunks, parameters that span nothing, some left out."""
    sizes = [5000, 1, 0, 9000, 64, 3000, 20_000, 7, 10_000]
    groups = [0, -1, -1, 0, 1, -1, 1, 2, -1]
    chunks = [5001, 9064, 23_007, 10_000]
    generator = torch.Generator().manual_seed(5)
    grads = [torch.randn(n, generator=generator).to(dtype) for n in chunks]
    indices, _, _ = check_twins(
        grads,
        memory_of(grads, seed=1),
        memory_of(grads, seed=2),
        0.5,
        torch.tensor(list(accumulate(sizes, initial=0))),
        torch.tensor(groups),
        torch.tensor([140, 300, 2]),
        FIRST,
        heavier,
    )
    edges = list(accumulate(sizes, initial=0))
    exact = [(edges[i], edges[i + 1]) for i, group in enumerate(groups) if group < 0]
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


@given(messages())
def test_twins_agree_on_anything(message):
    check_twins(*message)


@pytest.mark.usefixtures("path")
@either_side
@pytest.mark.parametrize(
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
        assert not native.topk(*args)[2]
        assert not reference.topk(*args)[2]


def test_an_overflow_of_finite_numbers_is_seen():
    large = torch.full((9000,), 3e38)
    assert not ops.topk([large], [large], [], 0.0, *one_group(9000, 5), False)[2]


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


@pytest.mark.usefixtures("path")
@every_dtype
@either_side
@pytest.mark.parametrize("levels", [1, 2, 9])
@pytest.mark.parametrize("k", [1, 70, 3000, 30_000])
def test_twins_break_heavy_ties_alike(dtype, heavier, levels, k):
    """Over many blocks, chunks and parameters, pruned often on the way; many zeros."""
    numel, chunks, params = 60_000, [25_000, 1, 34_999], 41
    generator = torch.Generator().manual_seed(levels)
    flat = torch.randint(-levels, levels + 1, (numel,), generator=generator).to(dtype)
    grads = list(flat.split(chunks))
    edges = torch.randint(0, numel, (params - 1,), generator=generator).sort().values
    bounds = torch.cat([torch.tensor([0]), edges, torch.tensor([numel])])
    groups = torch.tensor([0, -1, *[0] * 20, -1, *[1] * (params - 24), -1])
    salts = reference.salts([str(i) for i in range(params)], seed=levels, step=k)
    memory, ks = [m.zero_() for m in memory_of(grads)], torch.tensor([k, k])
    indices, values, _ = check_twins(grads, memory, [], 0.0, bounds, groups, ks, salts, heavier)
    _, first_values, _ = check_twins(grads, memory, [], 0.0, bounds, groups, ks, FIRST, heavier)
    assert torch.equal(values.abs().sort().values, first_values.abs().sort().values)
    assert (indices.diff() > 0).all()


@pytest.mark.parametrize("numel", [500, 40_000])
def test_hash_ties_are_taken_evenly_from_everywhere(numel):
    grad, cells, rounds = torch.full((numel,), -1.5), 20, 200
    counts = torch.zeros(cells)
    for salt in range(rounds):
        indices, _, _ = native.topk(
            [grad], [torch.zeros(numel)], [], 0.0,
            *one_group(numel, numel // 50, torch.tensor([salt])), False,
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
    }
    with pytest.raises(RuntimeError, match=words):
        native.topk(**(good | change))


@every_dtype
@pytest.mark.parametrize("momentum", [False, True])
def test_opcheck(dtype, momentum):
    grad = torch.arange(-5, 6).to(dtype)
    memory = memory_of([grad])
    for salts in (FIRST, torch.tensor([5])):
        args = ([grad], memory, memory if momentum else [], 0.9, *one_group(11, 3, salts), True)
        torch.library.opcheck(native.topk.default, args)
