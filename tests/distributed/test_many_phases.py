"""Exchanges of many phases: what they agree on, what they send, and how they end."""

import gc
import os
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ddp_compress import CompressionState, PeerError, Recipe, exponential_warmup, ops, recipes
from ddp_compress.message.entries import Entries
from ddp_compress.message.layout import Layout
from ddp_compress.message.plan import Plan
from ddp_compress.message.shards import Shards
from ddp_compress.ops.reference import largest, salts, tally, vote_keys
from ddp_compress.transport.comm import Comm
from tests.distributed.training import (
    MANY_BUCKETS,
    digest,
    memory,
    small_model,
    train,
    weights,
    wrap,
)
from tests.table import ROWS, Row


def same_everywhere(results: list[Any]) -> Any:
    assert all(result == results[0] for result in results)
    return results[0]


def rows(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", [ROWS[name] for name in names], ids=names)


def state_of(row: Row, model: nn.Module | None = None, **options: Any) -> CompressionState:
    return CompressionState(model or small_model(), row.recipe, min_numel=row.min_numel, **options)


def random_grads(number: int) -> dict[str, Tensor]:
    """This rank's gradient of `small_model`."""
    generator = torch.Generator().manual_seed(100 * number + dist.get_rank())
    return {
        n: torch.randn(p.shape, generator=generator) for n, p in small_model().named_parameters()
    }


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def push(state: CompressionState, tensors: dict[str, Tensor]) -> list[Tensor]:
    """One step, a chunk for every tensor."""
    last = [*tensors][-1]
    futures = [
        state.push(t.flatten().clone(), Layout((name,), (t.numel(),)), last=name == last)
        for name, t in tensors.items()
    ]
    return [future.wait() for future in futures]


# -------------------------------------------------------------------------------- what is voted for


def both_counts(variant: str, min_numel: int) -> None:
    """Gathered or sharded, the mask is that of an election in plain torch."""
    states = {
        count: CompressionState(
            small_model(),
            recipes.majority_vote(0.1, variant, ballot_box=count, seed=3),
            min_numel=min_numel,
        )
        for count in ("gather", "sharded")
    }
    sizes = {name: p.numel() for name, p in small_model().named_parameters()}
    held = torch.cat([torch.full((n,), n >= min_numel) for n in sizes.values()])
    bounds = torch.tensor([0, *sizes.values()]).cumsum(0)
    k = round(0.1 * int(held.sum()))
    for step in range(4):
        grads = random_grads(step)
        before = states["gather"].state_dict()["tensors"]
        means = {count: flat(state.reduce(grads)) for count, state in states.items()}
        assert torch.equal(means["gather"], means["sharded"])
        assert memory(states["gather"]) == memory(states["sharded"])
        winners = (means["gather"] * held).nonzero().flatten().int()
        assert len(winners) == k
        if variant == "add_drop":
            vote = flat({n: states["gather"].state_dict()["tensors"]["vote"][n] for n in sizes})
            mine = vote.bool()
        else:
            residual = before["residual"]
            kept = flat({n: residual.get(n, torch.zeros(size)) for n, size in sizes.items()})
            scores = (kept + flat(grads)).abs() * held
            mine = scores >= scores.topk(k).values[-1]
        assert int(mine.sum()) == k
        every = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(every, mine)
        positions, votes = tally([each.nonzero().flatten().int() for each in every])
        keys = vote_keys(
            positions, votes, bounds, salts([*sizes], 3, step), len(every), variant == "random"
        )
        assert torch.equal(winners, positions[largest(keys, k)])


@pytest.mark.parametrize("min_numel", [0, 20])
@pytest.mark.parametrize("variant", ["top", "random", "add_drop"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_both_ways_to_count_find_the_mask(ranks, world_size, variant, min_numel):
    ranks.run(world_size, both_counts, variant, min_numel)


def winners_of_ties(seed: int, step: int, apart: bool, variant: str) -> list[int]:
    """Every magnitude is 1, everywhere or where no other rank has anything."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    recipe = recipes.majority_vote(0.01, variant, ballot_box="sharded", seed=seed)
    model = nn.Linear(1000, 100, bias=False)
    state = CompressionState(model, recipe, start_step=step)
    grad = (torch.arange(100_000) % world_size == rank).float() if apart else torch.ones(100_000)
    return state.reduce({"weight": grad})["weight"].nonzero().flatten().tolist()


@pytest.mark.parametrize("variant", ["top", "random"])
@pytest.mark.parametrize("apart", [False, True])
def test_ties_are_spread_evenly(ranks, apart, variant):
    """χ² over 20 bins: with 19 degrees of freedom, 43.8 is exceeded once in 1000."""
    first, other_seed, other_step = (
        same_everywhere(ranks.run(2, winners_of_ties, *each, apart, variant))
        for each in ((0, 0), (1, 0), (0, 1))
    )
    for winners in (first, other_seed, other_step):
        assert len(winners) == 1000
        bins = torch.tensor(winners).div(5000, rounding_mode="floor").bincount(minlength=20)
        assert ((bins - 50).square() / 50).sum() < 43.8
    assert len({*first} & {*other_seed}) < 100
    assert len({*first} & {*other_step}) < 100


def favourites_drawn(draws: int) -> float:
    """200 places have four votes, 800 one; 400 are drawn: how many of the 200, on average."""
    grad = torch.zeros(40_000)
    grad[:200] = 1.0
    grad[1000 * (dist.get_rank() + 1) :][:200] = 1.0
    total = 0
    for seed in range(draws):
        recipe = recipes.majority_vote(0.01, "random", ballot_box="gather", seed=seed)
        state = CompressionState(nn.Linear(400, 100, bias=False), recipe)
        total += int(state.reduce({"weight": grad})["weight"][:200].count_nonzero())
        state.close()
    return total / draws


def test_a_draw_favours_the_most_voted_as_it_should(ranks):
    drawn = same_everywhere(ranks.run(4, favourites_drawn, 12))
    generator = torch.Generator().manual_seed(0)
    votes = torch.cat([torch.full((200,), 4.0), torch.ones(800)])
    keys = torch.rand(500, 1000, generator=generator).pow(1 / votes)
    expected = (keys.topk(400).indices < 200).sum(1).double()
    assert abs(drawn - expected.mean()) < 4 * expected.std() / 12**0.5


def changes_of_ballots() -> None:
    """A tenth of the ballot may change; only that travels."""
    model = nn.Linear(200, 100)
    states = [
        CompressionState(model, recipes.majority_vote(0.05, variant, ballot_box="gather"))
        for variant in ("add_drop", "top")
    ]
    generator = torch.Generator().manual_seed(dist.get_rank())
    votes, bits = [], []
    for _ in range(6):
        before = [state.stats.position_bits for state in states]
        grads = {n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}
        for state in states:
            state.reduce(grads)
        bits.append(
            [state.stats.position_bits - b for state, b in zip(states, before, strict=True)]
        )
        votes.append(flat(states[0].state_dict()["tensors"]["vote"]).int())
    assert all(int(vote.sum()) == 1005 for vote in votes)
    for last, vote in pairwise(votes):
        assert 0 < int((vote > last).sum()) == int((last > vote).sum()) <= 101
    assert bits[0][0] == bits[0][1]
    assert all(changes < 0.35 * whole for changes, whole in bits[1:])


def test_an_add_drop_ballot_costs_its_changes(ranks):
    ranks.run(2, changes_of_ballots)


def loaded_on_one_rank(row: Row) -> str:
    """At the same step, with the same numbers: only what peers remember is gone."""
    state, clean = state_of(row), state_of(row)
    for number in range(3):
        state.reduce(random_grads(number))
        clean.reduce(random_grads(number))
    saved = state.state_dict()
    if dist.get_rank() == 1:
        state.load_state_dict(saved)
    before = memory(state)
    with pytest.raises((PeerError, ValueError)) as caught:
        state.reduce(random_grads(3))
    assert memory(state) == before
    state.load_state_dict(saved)
    for number in range(3, 5):
        clean.reduce(random_grads(number))
        state.reduce(random_grads(number))
    assert memory(state) == memory(clean)
    return str(caught.value)


@rows("vote-add-drop", "vote-add-drop-sharded")
@pytest.mark.parametrize("world_size", [2, 3])
def test_a_checkpoint_loaded_on_one_rank_is_an_error_on_every_rank(ranks, row, world_size):
    message = same_everywhere(ranks.run(world_size, loaded_on_one_rank, row))
    assert message.startswith("rank 1 failed: ValueError: rank 0: ballot: changes to a ballot that")


# ---------------------------------------------------------------------------------------------- hgc


def owners_of_masks() -> list[bool]:
    state = state_of(ROWS["hgc"])
    spoke = []
    for number in range(6):
        before = state.stats.position_bits
        state.reduce(random_grads(number))
        average = flat(state.state_dict()["tensors"]["average"])
        every = [torch.empty_like(average) for _ in range(dist.get_world_size())]
        dist.all_gather(every, average)
        assert all(torch.equal(each, average) for each in every)
        assert average.any()
        spoke.append(state.stats.position_bits > before)
    return spoke


def test_the_owner_of_the_mask_rotates_and_alone_sends_positions(ranks):
    spoke = ranks.run(3, owners_of_masks)
    assert [[*step] for step in zip(*spoke, strict=True)] == [
        [rank == step % 3 for rank in range(3)] for step in range(6)
    ]


def in_another_step(row: Row) -> str:
    """One rank alone goes back in time; its peers' frames are not of the size that it expects."""
    state = state_of(row)
    for number in range(5):
        if number == 1:
            saved = state.state_dict()
        state.reduce(random_grads(number))
    present = state.state_dict()
    if dist.get_rank() == 1:
        state.load_state_dict(saved)
    with pytest.raises(PeerError) as caught:
        state.reduce(random_grads(5))
    state.load_state_dict(present)
    state.reduce(random_grads(5))
    return str(caught.value)


@rows("hgc", "hgc-2-bits", "vote-add-drop-sharded", "stc")
def test_a_rank_in_another_step_is_named_on_every_rank(ranks, row):
    message = same_everywhere(ranks.run(3, in_another_step, row))
    assert "rank 0 has density 0." in message
    assert "rank 1 has density 0." in message
    assert "step 1 (mod 256)" in message


# ------------------------------------------------------------------------------------------ sharded


def beside_all_gather() -> None:
    union, plain = (
        CompressionState(small_model(), recipes.topk(0.1, exchange=exchange))
        for exchange in ("union", "all_gather")
    )
    for number in range(5):
        ours, theirs = (flat(state.reduce(random_grads(number))) for state in (union, plain))
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
        assert memory(union) == memory(plain)


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_union_equals_an_all_gather(ranks, world_size):
    ranks.run(world_size, beside_all_gather)


def second_residuals(row: Row) -> None:
    state = state_of(row)
    for number in range(3):
        state.reduce(random_grads(number))
    kept = state.state_dict()["tensors"]["owner_residual"]
    layout = Layout(tuple(kept), tuple(len(t) for t in kept.values()))
    cut = Shards(Plan((layout,), "tensor", 1.0, row.min_numel), dist.get_world_size())
    rank = dist.get_rank()
    everything = torch.arange(cut.plans[rank].numel, dtype=torch.int32)
    owned = torch.zeros(layout.numel, dtype=torch.bool)
    owned[cut.widen(Entries(everything, everything), rank).positions.long()] = True
    assert flat(kept)[owned].any()
    assert not flat(kept)[~owned].any()


@rows("topk-sharded", "stc", "sbc-sharded", "sign-sharded")
def test_a_second_residual_lies_in_the_owners_ranges_alone(ranks, row):
    ranks.run(3, second_residuals, row)


# --------------------------------------------------------------------------------------- statistics


def bits_of_signs(exchange: str) -> float:
    state = CompressionState(nn.Linear(1024, 100, bias=False), recipes.sign(exchange=exchange))
    state.reduce({"weight": torch.randn(100, 1024)})
    assert state.stats.position_bits <= 64 * 8
    return state.stats.payload_bits / state.stats.elements


def test_a_sign_is_a_bit(ranks):
    """A header apart, 1 + 32 / 1024 bits; an owner sends its shard again."""
    for bits in ranks.run(2, bits_of_signs, "all_gather"):
        assert 1 + 32 / 1024 <= bits < 1.04
    for bits in ranks.run(2, bits_of_signs, "sharded"):
        assert 1.5 * (1 + 32 / 1024) <= bits < 1.56


def collectives_of_steps(row: Row) -> list[int]:
    state = state_of(row)
    counts = [0]
    for number in range(12):
        state.reduce(random_grads(number))
        counts.append(state.stats.collectives)
        assert state.stats.position_bits + state.stats.value_bits < state.stats.payload_bits
    return [after - before for before, after in pairwise(counts)]


@pytest.mark.parametrize(
    ("recipe", "phases"),
    [
        (recipes.majority_vote(0.1, ballot_box="gather"), 2),
        (recipes.majority_vote(0.1, ballot_box="sharded"), 6),
        (recipes.hgc(0.1), 2),
        (recipes.stc(0.1), 3),
        (recipes.topk(0.1, exchange="union"), 3),
    ],
    ids=["vote", "vote-sharded", "hgc", "stc", "union"],
)
def test_a_phase_is_a_collective(ranks, recipe, phases):
    """But where a message has outgrown its frame, which a second and larger one follows."""
    counts = same_everywhere(ranks.run(2, collectives_of_steps, Row(recipe)))
    assert min(counts) == phases
    assert max(counts) <= 2 * phases
    assert sum(counts[4:]) <= 8 * (phases + 1)


# ------------------------------------------------------------------------------------------- errors


def places(recipe: Recipe) -> Iterator[tuple[Any, str]]:
    """What the phases of a message are made of."""
    yield from ((ops, name) for name in ("tally", "vote_keys", "largest"))
    yield from ((type(recipe.codec), name) for name in ("encode", "decode"))
    yield from ((type(recipe.quantize), name) for name in ("encode", "decode"))


def fails_in_every_place(row: Row) -> tuple[int, int]:
    """Every call in turn raises on one rank; how often that was told at once, and how often late.

    What raises when all has been exchanged cannot be told any more: the next step tells.
    """
    state, clean = (state_of(row, flush_bytes=1) for _ in range(2))

    def grads(number: int) -> dict[str, Tensor]:
        return {n: t for n, t in random_grads(number).items() if n in ("0.weight", "3.weight")}

    for number in range(2):
        for each in (state, clean):
            push(each, grads(number))
    at_once = late = 0
    for place, name in places(row.recipe):
        real: Any = getattr(place, name)
        for call in range(1, 100):
            calls: list[int] = []

            def failing(*args: Any, real: Any = real, calls: Any = calls, call: int = call) -> Any:
                calls.append(1)
                if len(calls) == call and dist.get_rank() == 1:
                    raise MemoryError("no room")
                return real(*args)

            saved, before, error = state.state_dict(), memory(state), None
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(place, name, failing)
                try:
                    push(state, grads(call))
                except (PeerError, MemoryError) as caught:
                    error = caught
            assert error is None or memory(state) == before
            failed: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(failed, error is not None)
            if not failed[1]:  # there are no more calls
                push(clean, grads(call))
                break
            if all(failed):
                at_once += 1
            else:
                late += 1
                assert not any(failed[:1] + failed[2:])
                with pytest.raises(PeerError, match="ranks must compress alike"):
                    push(state, grads(call))
                state.load_state_dict(saved)
                clean.load_state_dict(clean.state_dict())  # it must forget its ballots, too
            for ours, theirs in zip(*(push(s, grads(call)) for s in (state, clean)), strict=True):
                assert torch.equal(ours, theirs)
        assert memory(state) == memory(clean)
    return at_once, late


@rows("vote", "vote-add-drop-sharded", "hgc-2-bits", "stc")
def test_whatever_raises_on_one_rank_raises_on_all(ranks, row):
    at_once, late = same_everywhere(ranks.run(3, fails_in_every_place, row))
    assert at_once >= 2
    assert late <= 6, "only what decodes the last phase's three bodies"


def bad_density(row: str, flush_bytes: int) -> str:
    """Known before the first phase, in which another rank may be due to speak."""

    def density(step: int) -> float:
        return 2.0 if step == 5 and dist.get_rank() == 1 else 0.1

    recipe = recipes.by_name(row, density=density)
    state = CompressionState(small_model(), recipe, flush_bytes=flush_bytes)
    for number in range(5):
        push(state, random_grads(number))
    before = memory(state)
    with pytest.raises(PeerError) as caught:
        push(state, random_grads(5))
    assert memory(state) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "flush_bytes"), [("hgc", 1), ("majority_vote", 1), ("stc", 1), ("stc", 99)]
)
def test_a_bad_density_is_an_error_on_every_rank(ranks, row, flush_bytes):
    for message in ranks.run(3, bad_density, row, flush_bytes):
        assert message.startswith("rank 1 failed: ValueError: density schedule")


def dies_in_phase(row: Row, phase: int) -> None:
    state = state_of(row)
    for number in range(3):
        state.reduce(random_grads(number))
    real, calls = Comm.all_to_all, []

    def deadly(self: Comm, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == phase and dist.get_rank() == 1:
            os._exit(3)
        return real(self, *args)

    Comm.all_to_all = deadly  # type: ignore
    for number in range(3, 6):
        state.reduce(random_grads(number))


@rows("vote-sharded", "hgc")
def test_the_death_of_a_rank_in_a_later_phase_ends_the_others(ranks, row):
    start = time.monotonic()
    outcomes = ranks.outcomes(3, dies_in_phase, row, 2, collective_timeout=5.0, limit=40)
    assert [type(o.error) for o in outcomes] == [PeerError, ChildProcessError, PeerError]
    assert time.monotonic() - start < 40


def dawdling_worker(flush_bytes: int) -> str:
    """One rank takes so long that its first message is through before the second is begun."""
    recipe = recipes.stc(exponential_warmup(0.01, steps=6, start=0.25))
    state = CompressionState(small_model(), recipe, flush_bytes=flush_bytes)
    for number in range(6):
        grads = [*random_grads(number).items()]
        for i, (name, grad) in enumerate(grads):
            state.push(grad.flatten(), Layout((name,), (grad.numel(),)), last=i == len(grads) - 1)
            if dist.get_rank() == 1:
                time.sleep(0.005)
    return str(memory(state)["step"])


@pytest.mark.parametrize("flush_bytes", [20, 40, 60, 80])
def test_messages_end_alike_whatever_the_worker_has_done(ranks, flush_bytes):
    assert ranks.run(2, dawdling_worker, flush_bytes) == ["6"] * 2


def half_a_step(row: Row) -> None:
    """User code raises on every rank when some messages are out, and is given up at once."""
    state, clean = (state_of(row, flush_bytes=1) for _ in range(2))
    for number in range(2):
        for name, grad in [*random_grads(9).items()][:4]:
            state.push(grad.flatten(), Layout((name,), (grad.numel(),)), last=False)
        if dist.get_rank() == 1:
            time.sleep(0.01)
        state.abandon_step()
        for ours, theirs in zip(
            *(push(s, random_grads(number)) for s in (state, clean)), strict=True
        ):
            assert torch.equal(ours, theirs)
    assert memory(state) == memory(clean)


@rows("stc", "vote-add-drop-sharded", "sign-sharded")
def test_half_a_step_is_given_up_alike(ranks, row):
    ranks.run(3, half_a_step, row)


def gives_up_alone(row: Row) -> list[str]:
    """One rank sends a message, gives up the step, and begins another: what becomes of both."""
    state = state_of(row, flush_bytes=1)
    for number in range(3):
        push(state, random_grads(number))
    if dist.get_rank() == 1:
        name, grad = next(iter(random_grads(9).items()))
        state.push(grad.flatten(), Layout((name,), (grad.numel(),)), last=False)
        state.abandon_step()
    outcomes = []
    for number in range(3, 5):
        try:
            push(state, random_grads(number))
            outcomes.append("done")
        except PeerError:
            outcomes.append("PeerError")
    return outcomes


@rows("stc", "vote", "hgc")
def test_a_step_that_one_rank_gives_up_fails_alike_at_worst(ranks, row):
    outcomes = same_everywhere(ranks.run(2, gives_up_alone, row))
    assert outcomes == ["PeerError" if row.scope == "tensor" else "done", "done"]


# --------------------------------------------------------------------------- threads, groups, ends


def our_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("ddp_compress")]


def come_and_go() -> None:
    """Ranks close states at their own time, and begin new ones."""
    groups = len(dist.distributed_c10d._world.pg_map)
    unused = state_of(ROWS["vote-sharded"])
    for _ in range(2):
        unused.close()
    for number in range(4):
        names = ("stc", "vote-add-drop-sharded")  # whose messages go out beside backward
        states = [state_of(ROWS[name], flush_bytes=1) for name in names]
        for state in states:
            push(state, random_grads(number))
        assert len(our_threads()) == 2
        if dist.get_rank() == number % 2:
            time.sleep(0.05)
        for state in [*states, *states]:
            state.close()
        assert not our_threads()
        assert len(dist.distributed_c10d._world.pg_map) == groups
    forgotten = state_of(ROWS["stc"], flush_bytes=1)
    push(forgotten, random_grads(0))
    assert our_threads()
    del forgotten
    gc.collect()
    for _ in range(100):
        if not our_threads():
            break
        time.sleep(0.01)
    assert not our_threads()


def test_states_come_and_go(ranks):
    ranks.run(2, come_and_go)


def after_one_rank_has_closed() -> str:
    first, second = state_of(ROWS["vote-sharded"]), state_of(ROWS["hgc"])
    first.reduce(random_grads(0))
    if dist.get_rank() == 0:
        first.close()
    return digest([flat(second.reduce(random_grads(1)))])


def test_a_state_may_begin_when_some_ranks_have_closed_another(ranks):
    same_everywhere(ranks.run(2, after_one_rank_has_closed))


def with_groups_of_some() -> str:
    dist.new_group([0, 1])  # rank 2 is in none but the default
    return digest([flat(state_of(ROWS["vote-sharded"]).reduce(random_grads(0)))])


def test_ranks_may_be_in_different_groups_besides(ranks):
    same_everywhere(ranks.run(3, with_groups_of_some))


def what_outlives_a_step() -> list[bool]:
    state = state_of(ROWS["vote-sharded"])
    state.reduce(random_grads(0))
    assert state._peers.comm
    return [view._base is None for view in state._peers.comm._kept_alive._views]


def test_gloo_is_not_the_last_to_let_go(ranks):
    """A view holds its base in C++; with Python's own hold alone, Gloo's thread needs the GIL."""
    for orphans in ranks.run(2, what_outlives_a_step):
        assert orphans
        assert not any(orphans)


def one_model(row: Row) -> str:
    ddp, _ = wrap(small_model(), row, flush_bytes=1, bucket_cap_mb=MANY_BUCKETS)
    train(ddp, range(5))
    return weights(ddp)


def two_models(one: Row, two: Row) -> list[str]:
    models = [
        wrap(small_model(), row, flush_bytes=1, bucket_cap_mb=MANY_BUCKETS)[0] for row in (one, two)
    ]
    for number in range(5):
        for model in models:
            train(model, [number])
    return [weights(model) for model in models]


def test_two_states_in_one_process_do_not_meet(ranks):
    pair = ROWS["vote-sharded"], ROWS["hgc"]
    together = same_everywhere(ranks.run(2, two_models, *pair))
    assert together == [ranks.run(2, one_model, row)[0] for row in pair]


# ------------------------------------------------------------------------- what must not be lost


def momentum_of_an_unused_layer() -> None:
    """Rank 1 has no gradient for one layer, whose positions the others' mask may hold."""
    state = state_of(Row(recipes.majority_vote(0.5, momentum=0.9)))
    state._binding.find_unused = True
    state.reduce(random_grads(0))
    before = state.state_dict()["tensors"]
    grads = random_grads(1)
    if dist.get_rank() == 1:
        grads["0.weight"].zero_()
    state.reduce(grads)
    after = state.state_dict()["tensors"]
    if dist.get_rank() == 1:
        momentum = 0.9 * before["momentum"]["0.weight"]
        assert torch.equal(after["momentum"]["0.weight"], momentum)
        torch.testing.assert_close(
            after["residual"]["0.weight"], before["residual"]["0.weight"] + momentum
        )


def test_where_nothing_was_sent_momentum_stays(ranks):
    ranks.run(2, momentum_of_an_unused_layer)


def loaded_elsewhere(saved_by: list[int]) -> str:
    """As if two of three ranks went on with their checkpoints."""
    state = state_of(ROWS["stc"])
    state.reduce(random_grads(0))
    saved = state.state_dict()
    assert saved["saved_by"] == [dist.get_rank(), 2]
    other = state_of(ROWS["stc"])
    other.load_state_dict({**saved, "saved_by": saved_by})
    before = memory(other)
    with pytest.raises(PeerError) as caught:
        other.reduce(random_grads(1))
    assert memory(other) == before
    return str(caught.value)


def test_a_second_residual_goes_back_to_its_owner(ranks):
    for message in ranks.run(2, loaded_elsewhere, [0, 3]):
        assert "checkpoint was saved by rank 0 of 3" in message


def fails_at_once(unlucky: int) -> str:
    """Before any frame's size is known."""
    state = state_of(ROWS["hgc"])
    with pytest.raises(PeerError) as caught:
        state.reduce({"nope": torch.ones(3)} if dist.get_rank() == unlucky else random_grads(0))
    return str(caught.value)


@pytest.mark.parametrize("unlucky", [0, 1, 2])
def test_a_rank_may_fail_in_its_very_first_step(ranks, unlucky):
    for message in ranks.run(3, fails_at_once, unlucky):
        assert f"rank {unlucky} failed: KeyError" in message


def bits_of_changing_votes() -> float:
    """Of a vote, in the last of some steps whose densities differ a little."""
    recipe = recipes.majority_vote(lambda step: 0.3 - 1e-9 * step, "add_drop")
    state = CompressionState(nn.Linear(100, 100, bias=False), recipe)
    for number in range(6):
        before = state.stats.position_bits
        generator = torch.Generator().manual_seed(number)
        state.reduce({"weight": torch.randn(10_000, generator=generator)})
    return (state.stats.position_bits - before) / 3000


def test_a_schedule_does_not_forget_the_last_ballot(ranks):
    assert all(bits < 1.5 for bits in ranks.run(2, bits_of_changing_votes))
