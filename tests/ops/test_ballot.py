import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddp_compress.ops import reference

native = torch.ops.ddp_compress

WORD = 2**64
UNUSED = 2**31 - 1

# Of any input, but not as many inputs: each thread takes its time.
emulable = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
on_gpu_alone = pytest.mark.parametrize(
    "device", [pytest.param("cuda", marks=pytest.mark.needs_cuda)], indirect=True
)


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def same(ours, theirs):
    """Whether native and reference give equal tensors of one dtype."""
    pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def random_positions(numel: int, density: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(numel, generator=generator) < density).nonzero().flatten().int()


def with_unused(positions: Tensor, count: int) -> Tensor:
    return torch.cat([positions, torch.full((count,), UNUSED, dtype=torch.int32)])


def hash_in_python(salt: int, offset: int, draw: int) -> int:
    """The hash as its definition has it, in unbounded integers."""
    z = (salt + 0x9E3779B97F4A7C15 * offset + 0xD1B54A32D192ED03 * draw) % WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB % WORD
    return (z ^ z >> 31) >> 32


# ------------------------------------------------------------------------------------------- tally


any_ballots = st.lists(
    st.sets(st.integers(0, UNUSED - 1) | st.integers(0, 9)), min_size=1, max_size=9
)


def check_tally(on_device, ballots: list[Tensor]) -> None:
    """The device finds what the CPU does; the slots left over come last."""
    expected = native.tally(ballots)
    ballots = [with_unused(ballot, i % 3) for i, ballot in enumerate(ballots)]
    positions, votes = on_device("tally", ballots)
    used = len(expected[0])
    assert same((positions[:used], votes[:used]), expected)
    assert len(positions) == len(votes) == sum(map(len, ballots))
    assert (positions[used:] == UNUSED).all()
    assert (votes[used:] == 0).all()


@given(any_ballots)
def test_twins_count_any_ballots(sets):
    ballots = [ints(*sorted(each)) for each in sets]
    positions, votes = native.tally(ballots)
    assert same((positions, votes), reference.tally(ballots))
    assert positions.tolist() == sorted(set().union(*sets))
    assert votes.tolist() == [sum(p in each for each in sets) for p in positions.tolist()]


@pytest.mark.parametrize("voters", [1, 2, 3, 5, 8])
def test_twins_count_large_ballots(voters):
    ballots = [random_positions(300_000, 0.1, seed) for seed in range(voters)]
    assert same(native.tally(ballots), reference.tally(ballots))


@pytest.mark.parametrize("voters", [1, 300])
def test_twins_count_sparse_ballots(voters):
    ballots = [random_positions(100_000, 0.001, seed) for seed in range(voters)]
    assert same(native.tally(ballots), reference.tally(ballots))


@pytest.mark.parametrize("start", [0, 5, 2**31 - 10_000])
def test_twins_count_next_to_the_edges_of_words_and_windows(start):
    edges = start + ints(0, 1, 62, 63, 64, 65, 127, 128, 4094, 4095, 4096, 4097, 8191, 8192)
    ballots = [edges, edges[:4], edges[3:]]
    assert same(native.tally(ballots), reference.tally(ballots))


@emulable
@given(any_ballots)
def test_a_device_counts_any_ballots(on_device, sets):
    check_tally(on_device, [ints(*sorted(each)) for each in sets])


@pytest.mark.parametrize(
    ("voters", "numel", "density"),
    [(1, 9000, 0.3), (3, 30_000, 0.1), (2, 10**6, 0.001), (64, 9000, 0.01), (300, 3000, 0.003)],
)
def test_a_device_counts_large_ballots(on_device, voters, numel, density):
    check_tally(on_device, [random_positions(numel, density, seed) for seed in range(voters)])


@pytest.mark.parametrize("start", [0, 5, 2**31 - 10_000])
def test_a_device_counts_next_to_the_edges_of_windows(on_device, start):
    edges = start + ints(0, 1, 31, 32, 33, 8190, 8191, 8192, 8193)
    check_tally(on_device, [edges, edges[:4], edges[3:]])


def test_a_device_counts_ballots_that_have_nothing_in_common(on_device):
    longest, other = torch.arange(9001).int() + 2**30, torch.arange(9000).int()
    check_tally(on_device, [longest, other, ints(), ints(UNUSED - 1)])


@on_gpu_alone
@pytest.mark.parametrize(
    ("voters", "numel", "density"), [(8, 10**7, 0.01), (64, 10**7, 0.1), (4, 10**8, 0.1)]
)
def test_a_gpu_counts_huge_ballots(on_device, voters, numel, density):
    check_tally(on_device, [random_positions(numel, density, seed) for seed in range(voters)])


def disorderly(kind: str, seed: int) -> list[Tensor]:
    """Ballots of 1200 votes."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "random":
        low, high = -(2**31), 2**31
        sizes = (0, 1, 699, 500)
        return [torch.randint(low, high, (n,), generator=generator).int() for n in sizes]
    if kind == "constant":
        return [torch.full((600,), 7, dtype=torch.int32)] * 2
    # Sections, which are cut where the longest ballot says, overlap.
    longest = torch.randint(0, 2, (640,), generator=generator).int() * 5000
    return [longest, torch.arange(20, 580).int()]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", ["random", "constant", "overlapping"])
def test_a_device_survives_ballots_that_do_not_ascend(on_device, kind, seed):
    positions, votes = on_device("tally", disorderly(kind, seed))
    assert len(positions) == len(votes) == 1200


@pytest.mark.parametrize("bad", [[2, 1], [1, 1], [-1, 2]])
def test_ballots_that_do_not_ascend_are_refused(bad):
    for twin in (native, reference):
        with pytest.raises(RuntimeError, match=r"ballots\[1\] must ascend strictly from 0 or more"):
            twin.tally([ints(3), ints(*bad)])


def test_an_election_needs_ballots():
    for twin in (native, reference):
        with pytest.raises(RuntimeError, match=r"no tensor arguments|at least one tensor"):
            twin.tally([])
    with pytest.raises(RuntimeError, match="ballots has dtype Long, expected Int"):
        native.tally([torch.tensor([1])])


# --------------------------------------------------------------------------------------- vote_keys


@st.composite
def elections(draw):
    """Positions and votes over a few parameters, some of them empty."""
    sizes = draw(st.lists(st.integers(0, 30), min_size=1, max_size=5))
    bounds = torch.tensor([0, *sizes]).cumsum(0)
    positions = sorted(draw(st.sets(st.integers(0, max(0, sum(sizes) - 1)))) if sum(sizes) else [])
    voters = draw(st.integers(1, 5) | st.just(2**31 - 1))
    votes = [draw(st.integers(1, min(voters, 7))) for _ in positions]
    word = st.integers(-(2**63), 2**63 - 1)
    salts = torch.tensor([draw(word) for _ in sizes], dtype=torch.int64)
    return ints(*positions), ints(*votes), bounds, salts, voters, draw(st.booleans())


@given(elections())
def test_twins_give_the_defined_keys(election):
    positions, votes, bounds, salts, voters, random = election
    keys = native.vote_keys(*election)
    assert same(keys, reference.vote_keys(*election))
    assert ((keys >= 0) & (keys < voters * 2**32)).all()
    for position, vote, key in zip(positions.tolist(), votes.tolist(), keys.tolist(), strict=True):
        owner = max(p for p in range(len(salts)) if bounds[p] <= position)
        salt, offset = int(salts[owner]), position - int(bounds[owner])
        draws = [hash_in_python(salt, offset, j) for j in range(vote)]
        assert key == (voters * max(draws) if random else (vote - 1 << 32) + draws[0])


def large_election(numel: int, random: bool):
    positions, votes = native.tally([random_positions(numel, 0.1, seed) for seed in range(4)])
    bounds = torch.linspace(0, numel, 201).long()
    salts = reference.salts([str(i) for i in range(200)], seed=1, step=2)
    return positions, votes, bounds, salts, 4, random


@pytest.mark.parametrize("random", [False, True])
def test_twins_agree_on_large_elections(random):
    election = large_election(200_000, random)
    assert same(native.vote_keys(*election), reference.vote_keys(*election))


def keys_on_device(on_device, positions, votes, bounds, salts, voters, random) -> Tensor:
    tables = {"bounds": bounds, "salts": salts, "voters": voters, "random": random}
    return on_device("vote_keys", positions, votes, **tables)


def check_keys(on_device, positions, votes, *rest) -> None:
    """The device gives the CPU's keys; those of unused slots are less than any."""
    unused = torch.zeros(3, dtype=torch.int32)
    keys = keys_on_device(on_device, with_unused(positions, 3), torch.cat([votes, unused]), *rest)
    assert same(keys[:-3], native.vote_keys(positions, votes, *rest))
    assert keys[-3:].tolist() == [-1] * 3


@emulable
@given(elections())
def test_a_device_gives_the_defined_keys(on_device, election):
    check_keys(on_device, *election)


@pytest.mark.parametrize("random", [False, True])
def test_a_device_agrees_on_large_elections(on_device, random):
    check_keys(on_device, *large_election(30_000, random))


@on_gpu_alone
@pytest.mark.parametrize("random", [False, True])
def test_a_gpu_agrees_on_huge_elections(on_device, random):
    check_keys(on_device, *large_election(10**7, random))


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("sizes", [[], [0], [4, 0, 5]])
def test_a_device_survives_bad_elections(on_device, sizes, random):
    bounds = torch.tensor([0, *sizes]).cumsum(0)
    positions = ints(-(2**31), -1, 0, 3, 4, 8, 9, 2**30)
    votes = ints(2, 0, -(2**31), UNUSED, 0, -1, 2, 1)
    rest = (bounds, torch.arange(len(sizes)), 3, random)
    keys = keys_on_device(on_device, positions, votes, *rest)
    outside = (positions < 0) | (positions >= bounds[-1])
    assert (keys[outside] == -1).all()
    if random:  # no more draws than there are voters
        bounded = native.vote_keys(positions[~outside], votes.clamp(1, 3)[~outside], *rest)
        assert same(keys[~outside], bounded)


def test_the_most_voted_come_first():
    positions, votes = torch.arange(5000).int(), (torch.arange(5000) % 4 + 1).int()
    args = (torch.tensor([0, 5000]), torch.tensor([9]), 4, False)
    keys = native.vote_keys(positions, votes, *args)
    winners = native.largest(keys, 2000)
    assert (votes[winners] >= 3).all()
    assert (votes[winners] == 4).sum() == 1250


def chi_square(counts: Tensor, expected: Tensor) -> float:
    """Pearson's statistic in standard deviations from its mean, about normal for many cells."""
    freedom = len(counts) - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return (statistic - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize("random", [False, True])
def test_keys_of_equal_votes_are_uniform_over_places_and_steps(random):
    """Neither early nor late positions win more often, nor the same ones at every step."""
    positions, bounds = torch.arange(1000).int(), torch.tensor([0, 300, 1000])
    votes = torch.ones(1000, dtype=torch.int32)
    wins = torch.zeros(1000)
    for step in range(500):
        salts = reference.salts(["a", "b"], seed=3, step=step)
        keys = native.vote_keys(positions, votes, bounds, salts, 1, random)
        wins[native.largest(keys, 100)] += 1
    # Each place wins about 50 times; a winner leaves fewer wins to others, so less than normal.
    assert abs(chi_square(wins, torch.full((1000,), 50.0))) < 6
    assert abs(chi_square(wins.view(20, 50).sum(1), torch.full((20,), 2500.0))) < 4


def test_a_random_winner_is_drawn_in_proportion_to_its_votes():
    votes = torch.tensor([1, 2, 3, 4, 1, 4, 2, 3], dtype=torch.int32)
    numel, rounds = len(votes), 5_000
    wins = torch.zeros(numel)
    for step in range(rounds):
        salts = reference.salts(["weight"], seed=0, step=step)
        bounds = torch.tensor([0, numel])
        keys = native.vote_keys(torch.arange(numel).int(), votes, bounds, salts, 4, True)
        wins[native.largest(keys, 1)] += 1
    assert abs(chi_square(wins, rounds * votes / votes.sum())) < 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"positions": ints(3, 1)}, "indices must ascend strictly within"),
        ({"positions": ints(1, 9)}, r"indices must ascend strictly within \[0, 9\)"),
        ({"votes": ints(1)}, "votes has 1 entries, expected 2"),
        ({"votes": ints(0, 1)}, r"votes\[0\] is 0, expected 1 to voters = 3"),
        ({"votes": ints(1, 4)}, r"votes\[1\] is 4, expected 1 to voters = 3"),
        ({"bounds": torch.tensor([1, 9])}, "bounds must ascend from 0"),
        ({"salts": torch.tensor([1, 2])}, "salts has 2 entries, expected one less than bounds, 1"),
        ({"salts": torch.zeros(1)}, "salts has dtype Float, expected Long"),
        ({"voters": 0}, r"voters must lie within \[1, 2\*\*31\), got 0"),
        ({"voters": 2**31}, "voters must lie within"),
    ],
)
def test_bad_elections_are_named(change, words):
    good = {
        "positions": ints(1, 3),
        "votes": ints(1, 3),
        "bounds": torch.tensor([0, 9]),
        "salts": torch.tensor([1]),
        "voters": 3,
        "random": False,
    }
    with pytest.raises(RuntimeError, match=words):
        native.vote_keys(*(good | change).values())


# --------------------------------------------------------------------------------- salts and hashes


def test_a_slice_hashes_like_the_whole():
    salts = reference.salts(["a", "b"], seed=5, step=6)
    bounds = torch.tensor([0, 100, 250])
    whole = reference.hashes(torch.arange(250), bounds, salts)
    shifted = reference.shift_salts(salts, torch.tensor([30, 50]))
    part = reference.hashes(torch.arange(120), torch.tensor([0, 70, 120]), shifted)
    assert torch.equal(part, torch.cat([whole[30:100], whole[150:200]]))


def test_salts_depend_on_name_seed_and_step_alone():
    names = [f"layer.{i}" for i in range(20)]
    every = torch.stack(
        [reference.salts(names, seed, step) for seed in range(5) for step in range(50)]
    )
    assert every.unique().numel() == every.numel()
    assert reference.salts(names[::-1], 4, 49).tolist() == every[-1].flip(0).tolist()
    assert reference.salts([], 0, 0).tolist() == []


# ----------------------------------------------------------------------------------------- largest


any_keys = st.lists(st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1), max_size=40)


@given(any_keys, st.integers(0, 50))
def test_twins_find_the_largest_of_anything(keys, k):
    keys = torch.tensor(keys, dtype=torch.int64)
    assert same(native.largest(keys, k), reference.largest(keys, k))


SPREADS = [1, 2, 1000, 2**34, 2**63 - 1]


def random_keys(count: int, spread: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-spread, spread, (count,), generator=generator)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("k", [0, 1, 777, 10_000, 20_000, 30_000])
def test_twins_find_the_largest_of_many(spread, k):
    keys = random_keys(20_000, spread, seed=k)
    indices = native.largest(keys, k)
    assert same(indices, reference.largest(keys, k))
    assert torch.equal(keys[indices].sort().values, keys.sort().values[20_000 - len(indices) :])


@emulable
@given(any_keys, st.integers(0, 50))
def test_a_device_finds_the_largest_of_anything(on_device, keys, k):
    keys = torch.tensor(keys, dtype=torch.int64)
    assert same(on_device("largest", keys, k), native.largest(keys, k))


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(("count", "k"), [(2048, 777), (2049, 2048), (20_000, 1), (20_000, 5000)])
def test_a_device_finds_the_largest_of_many(on_device, count, spread, k):
    keys = random_keys(count, spread, seed=k)
    assert same(on_device("largest", keys, k), native.largest(keys, k))


@on_gpu_alone
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("k", [1, 10**6, 10**7])
def test_a_gpu_finds_the_largest_of_very_many(on_device, spread, k):
    keys = random_keys(10**7, spread, seed=k)
    assert same(on_device("largest", keys, k), native.largest(keys, k))


@on_gpu_alone
def test_a_gpu_finds_the_largest_of_hundreds_of_millions(on_device):
    keys = random_keys(2 * 10**8, 2**34, seed=0)
    assert same(on_device("largest", keys, 10**7), native.largest(keys, 10**7))


@pytest.mark.parametrize("random", [False, True])
def test_a_device_elects_whom_the_cpu_does(on_device, random):
    """Unused slots come behind all that have a vote, and so do those that they win."""
    ballots = [random_positions(5000, 0.1, seed) for seed in range(4)]
    rest = (torch.tensor([0, 1000, 5000]), torch.tensor([7, 8]), 4, random)
    positions, votes = native.tally(ballots)
    slots, slot_votes = on_device("tally", ballots)
    keys = keys_on_device(on_device, slots, slot_votes, *rest)
    for k in (100, len(positions) + 5):
        winners = positions[native.largest(native.vote_keys(positions, votes, *rest), k)]
        elected = slots[on_device("largest", keys, k)]
        assert same(elected, with_unused(winners, k - len(winners)))


def test_bad_keys_are_named():
    for twin in (native, reference):
        with pytest.raises(RuntimeError, match="k must be 0 or more, got -1"):
            twin.largest(torch.tensor([1]), -1)
    with pytest.raises(RuntimeError, match="keys has dtype Int, expected Long"):
        native.largest(ints(1), 1)


def test_what_it_writes_is_what_its_schema_says():
    torch.library.opcheck(
        native.tally.default, ([ints(1, 5), ints(5, 9)],), test_utils="test_schema"
    )
    election = (ints(1, 5), ints(1, 2), torch.tensor([0, 10]), torch.tensor([3]), 2)
    for random in (False, True):
        torch.library.opcheck(
            native.vote_keys.default, (*election, random), test_utils="test_schema"
        )
    torch.library.opcheck(
        native.largest.default, (torch.tensor([4, 7, 4, 9]), 3), test_utils="test_schema"
    )
    torch.library.opcheck(native.largest.default, (torch.tensor([4]), 3), test_utils="test_schema")
