import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddp_compress import reference

native = torch.ops.ddp_compress

WORD = 2**64


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def same(ours, theirs):
    """Whether native and reference give equal tensors of one dtype."""
    pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def random_positions(numel: int, density: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(numel, generator=generator) < density).nonzero().flatten().int()


def hash_in_python(salt: int, offset: int, draw: int) -> int:
    """The hash as its definition has it, in unbounded integers."""
    z = (salt + 0x9E3779B97F4A7C15 * offset + 0xD1B54A32D192ED03 * draw) % WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB % WORD
    return (z ^ z >> 31) >> 32


# ------------------------------------------------------------------------------------------- tally


@given(st.lists(st.sets(st.integers(0, 2**31 - 1) | st.integers(0, 9)), min_size=1, max_size=9))
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


@pytest.mark.parametrize("random", [False, True])
def test_twins_agree_on_large_elections(random):
    positions, votes = native.tally([random_positions(200_000, 0.1, seed) for seed in range(4)])
    bounds = torch.arange(0, 200_001, 1000)
    salts = reference.salts([str(i) for i in range(200)], seed=1, step=2)
    args = (positions, votes, bounds, salts, 4, random)
    assert same(native.vote_keys(*args), reference.vote_keys(*args))


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
    numel, rounds = len(votes), 20_000
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


@given(
    st.lists(st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1), max_size=40),
    st.integers(0, 50),
)
def test_twins_find_the_largest_of_anything(keys, k):
    keys = torch.tensor(keys, dtype=torch.int64)
    assert same(native.largest(keys, k), reference.largest(keys, k))


@pytest.mark.parametrize("spread", [1, 2, 1000, 2**34, 2**63 - 1])
@pytest.mark.parametrize("k", [0, 1, 777, 10_000, 20_000, 30_000])
def test_twins_find_the_largest_of_many(spread, k):
    generator = torch.Generator().manual_seed(k)
    keys = torch.randint(-spread, spread, (20_000,), generator=generator)
    indices = native.largest(keys, k)
    assert same(indices, reference.largest(keys, k))
    assert torch.equal(keys[indices].sort().values, keys.sort().values[20_000 - len(indices) :])


def test_bad_keys_are_named():
    for twin in (native, reference):
        with pytest.raises(RuntimeError, match="k must be 0 or more, got -1"):
            twin.largest(torch.tensor([1]), -1)
    with pytest.raises(RuntimeError, match="keys has dtype Int, expected Long"):
        native.largest(ints(1), 1)


def test_opcheck():
    torch.library.opcheck(native.tally.default, ([ints(1, 5), ints(5, 9)],))
    election = (ints(1, 5), ints(1, 2), torch.tensor([0, 10]), torch.tensor([3]), 2)
    for random in (False, True):
        torch.library.opcheck(native.vote_keys.default, (*election, random))
    torch.library.opcheck(native.largest.default, (torch.tensor([4, 7, 4, 9]), 3))
    torch.library.opcheck(native.largest.default, (torch.tensor([4]), 3))
