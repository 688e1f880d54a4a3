"""Law 4: residuals stay with their parameters, whatever DDP does."""

import copy
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel.distributed import _MixedPrecision
from torch.optim.swa_utils import AveragedModel

from ddp_compress import CompressionState, PeerError, attach, compress_hook, recipes
from tests.distributed.training import (
    LEARNING_RATE,
    MANY_BUCKETS,
    backward,
    descend,
    digest,
    grads,
    loss,
    memory,
    plain_grads,
    simulate_topk,
    small_model,
    train,
    weights,
    wrap,
)
from tests.table import ROWS, Row, every_family

DENSITY = 0.1
TOPK = Row(recipes.topk(DENSITY, "tensor"))


STEPS = 6


def one_batch(step: int, rank: int) -> list[int]:
    return [step]


@dataclass(frozen=True)
class Mode:
    """A way of training with DDP.

    Args:
        options: of `wrap`.
        build: makes the model.
        batches: of a step and a rank. All but the last are for `no_sync`; who has none has joined.
        compiled: whether the DDP model goes through `torch.compile`.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    build: Callable[[], nn.Module] = small_model
    batches: Callable[[int, int], list[int]] = one_batch
    compiled: bool = False


def two_batches(step: int, rank: int) -> list[int]:
    return [step, step + 50]


def uneven(step: int, rank: int) -> list[int]:
    return [step] if step < STEPS - rank else []


def with_a_frozen_layer() -> nn.Module:
    model = small_model()
    model[0].requires_grad_(False)
    return model


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.one, self.two, self.out = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.two(self.one(x).tanh()))


def convolutions() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(6)
        one, two, out = nn.Conv2d(3, 8, 2, padding=1), nn.Conv2d(8, 4, 2), nn.Linear(16, 3)
    return nn.Sequential(nn.Unflatten(1, (3, 2, 2)), one, nn.Tanh(), two, nn.Flatten(), out)


def channels_last() -> nn.Module:
    model = convolutions()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


class Branches(nn.Module):
    """Two layers; in every step, some ranks leave out one."""

    def __init__(self, used: Sequence[Sequence[tuple[bool, bool]]]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.one, self.two = nn.Linear(12, 3), nn.Linear(12, 3)
        self.used = used  # by step, and alternating between ranks
        self.step = 0

    def forward(self, x: Tensor) -> Tensor:
        use = self.used[self.step][dist.get_rank() % 2]
        self.step += 1
        parts = [layer(x) for layer, on in zip((self.one, self.two), use, strict=True) if on]
        return sum(parts, torch.zeros(()))


BOTH, ONE, TWO = (True, True), (True, False), (False, True)
USED_BY_SOME = [[BOTH, BOTH], [ONE, BOTH], [TWO, ONE], [BOTH, TWO], [ONE, TWO], [BOTH, BOTH]]
USED_BY_NONE = [[BOTH, BOTH], [ONE, ONE], [ONE, ONE], [BOTH, BOTH], [TWO, TWO], [TWO, TWO]]


class Wide(nn.Module):
    """`torch.compile` cuts the graph where DDP's first bucket, of 1 MiB, is full."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(8)
            self.one, self.two, self.out = (
                nn.Linear(12, 600),
                nn.Linear(600, 600),
                nn.Linear(600, 3),
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.two(self.one(x).tanh()).tanh())


VIEW = {"gradient_as_bucket_view": True}
UNUSED, STATIC = {"find_unused_parameters": True}, {"static_graph": True}
MODES = {
    "plain": Mode(),
    "one-bucket": Mode({"bucket_cap_mb": 25}),
    "many-buckets": Mode({"bucket_cap_mb": MANY_BUCKETS}),
    "many-messages": Mode({"flush_bytes": 1}),
    "view": Mode(VIEW),
    "unused": Mode(UNUSED),
    "static": Mode(STATIC),
    "static-view": Mode(STATIC | VIEW),
    "no-sync": Mode(batches=two_batches),
    "no-sync-view": Mode(VIEW, batches=two_batches),
    "join": Mode(batches=uneven),
    "join-view": Mode(VIEW, batches=uneven),
    "frozen": Mode(build=with_a_frozen_layer),
    "tied": Mode({"bucket_cap_mb": MANY_BUCKETS}, build=Tied),
    "tied-static": Mode({"bucket_cap_mb": MANY_BUCKETS} | STATIC, build=Tied),
    "channels-last": Mode(build=channels_last),
    "channels-last-view": Mode(VIEW, build=channels_last),
    "compiled": Mode({"bucket_cap_mb": 1}, build=Wide, compiled=True),
}
# Who has no gradient for a parameter sends nothing of it: DDP throws away what comes for one that
# no rank has used. `simulate_topk` knows nothing of that.
IDLE_MODES = {
    "used-by-some": Mode(UNUSED, build=partial(Branches, USED_BY_SOME)),
    "used-by-none": Mode(UNUSED, build=partial(Branches, USED_BY_NONE)),
    "join-unused": Mode(UNUSED, batches=uneven),
}


def counting_compiler() -> Any:
    from torch._dynamo.testing import CompileCounterWithBackend  # takes seconds on every rank

    return CompileCounterWithBackend("aot_eager")


def train_in(
    mode: Mode,
    row: Row,
    see: Callable[[DistributedDataParallel, list[int]], None] = lambda ddp, numbers: None,
    **options: Any,
) -> tuple[DistributedDataParallel, CompressionState, list[str]]:
    """The trained model, its state, and a digest of the gradients of every step.

    Args:
        mode: see `Mode`.
        row: the recipe.
        see: called before each step with the model and the step's batches.
        options: of `wrap`, beside the mode's.
    """
    ddp, state = wrap(mode.build(), row, **options | dict(mode.options))
    compiler = counting_compiler() if mode.compiled else None
    model = torch.compile(ddp, backend=compiler) if compiler else ddp
    rank, digests = dist.get_rank(), []
    with ddp.join() if mode.batches is uneven else nullcontext():
        for numbers in filter(None, (mode.batches(step, rank) for step in range(STEPS))):
            see(ddp, numbers)
            ddp.zero_grad()
            for number in numbers[:-1]:
                with ddp.no_sync():
                    loss(model, rank, number).backward()
            loss(model, rank, numbers[-1]).backward()
            digests.append(digest(grads(ddp)))
            descend(ddp)
    assert compiler is None or compiler.frame_count > 1  # parts of a graph cut at buckets
    return ddp, state, digests


def kept_for(
    state: CompressionState, slot: str, model: nn.Module
) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Every trained parameter, and what is kept for it: that lies as the parameter in memory."""
    kept = state.state_dict()["tensors"][slot]
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(kept) == set(trained)
    for name, parameter in trained.items():
        yield parameter, kept[name].as_strided(parameter.shape, parameter.stride())


def as_simulated(mode: Mode) -> tuple[int, list[str]]:
    """Parameters and this rank's residuals equal those of `simulate_topk`, bit for bit."""
    sizes = set()

    def hook(
        state: CompressionState, bucket: dist.GradBucket
    ) -> torch.futures.Future[torch.Tensor]:
        sizes.add(bucket.buffer().numel())
        return compress_hook(state, bucket)

    ddp, state, digests = train_in(mode, TOPK, hook=hook)
    world_size, rank = dist.get_world_size(), dist.get_rank()
    batches = [[mode.batches(step, r) for r in range(world_size)] for step in range(STEPS)]
    model, residuals = simulate_topk(world_size, DENSITY, batches, mode.build)
    assert weights(ddp) == weights(model)
    expected = dict(zip(ddp.parameters(), residuals[rank], strict=True))
    for parameter, residual in kept_for(state, "residual", ddp.module):
        assert torch.equal(residual, expected[parameter])
    return len(sizes), digests


def equal_on_all(ranks_digests: Iterable[list[str]]) -> None:
    """Step by step; a rank that joined early has seen fewer."""
    for step in zip_longest(*ranks_digests):
        assert len(set(step) - {None}) == 1


# Compiling takes seconds a rank, and two show as much as four.
@pytest.mark.parametrize(
    ("name", "world_size"),
    [(name, n) for name in MODES for n in (2, 4) if n == 2 or not MODES[name].compiled],
)
def test_law_4_residuals_stay_with_their_parameters(ranks, name, world_size):
    """A simulation that knows neither DDP nor buckets finds the same."""
    mode = MODES[name]
    several, digests = zip(*ranks.run(world_size, as_simulated, mode), strict=True)
    assert all((count > 1) == (mode != MODES["one-bucket"]) for count in several)
    equal_on_all(digests)


def all_that_came(mode: Mode, row: Row) -> list[str]:
    """What was applied to the weights and what is still kept is all that ever came."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    start = mode.build()
    came = [torch.zeros_like(p) for p in start.parameters()]

    def see(ddp: DistributedDataParallel, numbers: list[int]) -> None:
        own = plain_grads(copy.deepcopy(ddp.module), rank, numbers)
        for total, grad in zip(came, own, strict=True):
            total += grad

    options = {"flush_bytes": 1, "bucket_cap_mb": MANY_BUCKETS}
    ddp, state, digests = train_in(mode, row, see, **options)
    owed = dict(zip(ddp.parameters(), came, strict=True))
    for parameter, residual in kept_for(state, "residual", ddp.module):
        owed[parameter] = (owed[parameter] - residual) / world_size
    if "owner_residual" in row.recipe.tensors:
        for parameter, residual in kept_for(state, "owner_residual", ddp.module):
            owed[parameter] -= residual
    for then, (now, expected) in zip(start.parameters(), owed.items(), strict=True):
        dist.all_reduce(expected)
        torch.testing.assert_close((then - now) / LEARNING_RATE, expected, rtol=1e-3, atol=1e-4)
    return digests


HARD_MODES = IDLE_MODES | {
    name: MODES[name]
    for name in ("join", "join-view", "no-sync", "unused", "static-view", "frozen", "tied")
}
WITHOUT_MOMENTUM = ("vote-add-drop-sharded", "hgc", "stc")


@pytest.mark.parametrize("row", [ROWS[n] for n in WITHOUT_MOMENTUM], ids=WITHOUT_MOMENTUM)
@pytest.mark.parametrize("mode", HARD_MODES.values(), ids=HARD_MODES)
def test_law_1_nothing_is_lost_in_the_hard_modes(ranks, mode, row):
    """Nor with recipes that run on a thread of their own and that no simulation follows."""
    equal_on_all(ranks.run(3, all_that_came, mode, row))


def in_two_groups(row: Row) -> list[str]:
    """A model of all ranks and, step by step in turn, one of this rank's half."""
    rank, steps = dist.get_rank(), range(5)
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    whole, _ = wrap(small_model(), row)
    half, _ = wrap(small_model(), row, process_group=halves[rank // 2])
    for step in steps:
        train(whole, [step])
        train(half, [step])
    return [weights(half), weights(whole)]


@every_family
def test_a_rank_may_be_in_two_groups_at_a_time(ranks, row):
    (one, whole), (two, _), (three, _), (four, _) = found = ranks.run(4, in_two_groups, row)
    assert {everyone for _, everyone in found} == {whole}
    assert one == two != three == four
    assert found[0] == [ranks.run(2, in_one_group, row)[0], ranks.run(4, in_one_group, row)[0]]


def in_one_group(row: Row) -> str:
    ddp, _ = wrap(small_model(), row)
    train(ddp, range(5))
    return weights(ddp)


def in_a_group_of_some() -> str | None:
    """Ranks 2 and 3 have no part in it."""
    group = dist.new_group([0, 1])
    if dist.get_rank() > 1:
        return None
    ddp, _ = wrap(small_model(), ROWS["vote-sharded"], process_group=group)
    train(ddp, range(5))
    return weights(ddp)


def test_a_model_may_be_of_some_ranks_alone(ranks):
    one, two, *others = ranks.run(4, in_a_group_of_some)
    assert others == [None, None]
    assert one == two == ranks.run(2, in_one_group, ROWS["vote-sharded"])[0]


def frozen_late(options: dict[str, Any]) -> tuple[str, str]:
    """The error, if any, and the weights. The layer's memory stays as it was."""
    ddp, state = wrap(small_model(), TOPK, **options)
    train(ddp, range(2))
    before = {n: t for n, t in memory(state).items() if " of 0." in n}
    assert before
    ddp.module[0].requires_grad_(False)
    ddp.zero_grad()
    error = ""
    try:
        train(ddp, range(2, 5))
    except RuntimeError as caught:
        error = str(caught)
    assert {n: t for n, t in memory(state).items() if " of 0." in n} == before
    return error, weights(ddp)


def test_a_layer_frozen_after_wrapping_is_an_error_of_ddp_or_left_alone(ranks):
    for error, _ in ranks.run(2, frozen_late, {}):
        assert "Expected to have finished reduction in the prior iteration" in error
    outcomes = ranks.run(2, frozen_late, UNUSED)
    assert outcomes[0] == outcomes[1]
    assert not outcomes[0][0]


def duplicate(ddp: DistributedDataParallel, how: str) -> DistributedDataParallel:
    return copy.deepcopy(ddp) if how == "deepcopy" else pickle.loads(pickle.dumps(ddp))


def copied(how: str) -> None:
    """A DDP model loses its hook on the way; with memory, and registered again, it goes on."""
    ddp, state = wrap(small_model(), TOPK)
    train(ddp, range(3))
    twin = duplicate(ddp, how)
    kept: Any = twin._comm_hooks[0][1]
    if how == "deepcopy":  # mostly for evaluation: it brings no memory
        assert set(memory(kept)) == {"step"}
        kept.load_state_dict(state.state_dict())
    assert memory(kept) == memory(state)
    twin.register_comm_hook(kept, compress_hook)
    train(ddp, range(3, 6))
    train(twin, range(3, 6))
    assert weights(twin) == weights(ddp)
    assert kept.stats.steps == state.stats.steps == 6


def copied_without_memory() -> None:
    ddp, _ = wrap(small_model(), TOPK)
    train(ddp, range(2))
    twin = copy.deepcopy(ddp)
    kept: Any = twin._comm_hooks[0][1]
    twin.register_comm_hook(kept, compress_hook)
    with pytest.warns(UserWarning, match="without the memory of the original"):
        backward(twin, 2)
    backward(twin, 3)


def test_a_copied_hook_tells_that_it_has_no_memory(ranks):
    ranks.run(2, copied_without_memory)


def trained_as_a_copy(how: str) -> None:
    """Silent as long as it is copied and evaluated; told of, once, when it trains."""
    ddp, _ = wrap(small_model(), TOPK)
    train(ddp, range(2))
    twin = duplicate(ddp, how)
    averaged = AveragedModel(ddp)
    averaged.update_parameters(ddp)
    for each in (twin, averaged):
        each.eval()(torch.ones(1, 12))
        with torch.no_grad():
            each.train()(torch.ones(1, 12))
    with pytest.warns(UserWarning, match="this copy of a DDP model trains by plain all-reduce"):
        backward(twin, 2)
    backward(twin, 3)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("case", [copied, trained_as_a_copy])
def test_a_copied_model_has_lost_its_hook(ranks, case, how):
    ranks.run(2, case, how)


# --------------------------------------------------------------------------------- ways to attach


def ways_to_attach() -> list[str]:
    """Through `attach` by recipe and by name, and a state built before there is a group."""
    group = dist.group.WORLD
    model = small_model()
    dist.group.WORLD = None
    assert not dist.is_initialized()
    early = CompressionState(model, recipes.sbc(0.1))
    dist.group.WORLD = group
    by_hand = DistributedDataParallel(model)
    by_hand.register_comm_hook(early, compress_hook)
    by_recipe, by_name = (DistributedDataParallel(small_model()) for _ in range(2))
    attach(by_recipe, recipes.sbc(0.1))
    attach(by_name, "sbc", density=0.1)
    results = []
    for ddp in (by_hand, by_recipe, by_name):
        train(ddp, range(4))
        results.append(weights(ddp))
    return results


def test_all_ways_to_attach_are_one(ranks):
    results = ranks.run(2, ways_to_attach)
    assert len({digest for result in results for digest in result}) == 1


SKIPPING = {"skip_all_reduce_unused_params": True}


def with_a_delayed_weight() -> DistributedDataParallel:
    model = small_model()
    return DistributedDataParallel(
        model,
        delay_all_reduce_named_params=[("0.weight", model[0].weight)],
        param_to_hook_all_reduce=model[0].weight,
    )


def for_the_python_reducer() -> DistributedDataParallel:
    with torch._dynamo.config.patch(optimize_ddp="python_reducer"):
        return DistributedDataParallel(small_model())


def in_mixed_precision() -> DistributedDataParallel:
    half = _MixedPrecision(param_dtype=torch.bfloat16)
    return DistributedDataParallel(small_model(), mixed_precision=half)


def attach_refuses() -> list[str]:
    model, messages = small_model(), []
    ddp, hooked = DistributedDataParallel(model), DistributedDataParallel(model)
    attach(hooked, "topk")
    for call in (
        lambda: attach(model, "sbc", density=0.1),
        lambda: attach(ddp, recipes.sbc(0.1), density=0.1),
        lambda: attach(ddp, "sbc", value_dtype=torch.float16),
        lambda: attach(ddp, "huffman"),
        lambda: attach(DistributedDataParallel(model, **UNUSED, **SKIPPING), "topk"),
        lambda: attach(with_a_delayed_weight(), "topk"),
        lambda: attach(for_the_python_reducer(), "topk"),
        lambda: attach(in_mixed_precision(), "topk"),
        lambda: attach(hooked, "topk"),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        messages.append(str(caught.value))
    assert len(hooked._comm_hooks) == 1
    return messages


def test_attach_refuses_what_does_not_fit(ranks):
    for (
        model, options, option, name, skip, delay, reducer, half, twice,
    ) in ranks.run(1, attach_refuses):  # fmt: skip
        assert "must be a DistributedDataParallel, got Sequential: 2 are around it" in model
        assert "options ['density'] belong to a recipe given by name" in options
        assert "unexpected keyword argument 'value_dtype'" in option
        assert "must be one of dgc, hgc, majority_vote, rotated, sbc, sign, smartidx, stc" in name
        assert "skip_all_reduce_unused_params=True may skip the last bucket" in skip
        assert "delay_all_reduce_named_params keeps 0.weight from the hook" in delay
        assert 'optimize_ddp="python_reducer" calls no hook' in reducer
        assert "make the DDP model without it and use torch.autocast" in half
        assert "has the communication hook compress_hook already" in twice


def converted_late(steps: int) -> str:
    ddp, state = wrap(convolutions(), TOPK)
    train(ddp, range(steps))
    before = memory(state)
    ddp.module.to(memory_format=torch.channels_last)
    with pytest.raises(PeerError, match="Convert the model") as caught:
        backward(ddp, steps)
    assert memory(state) == before
    return str(caught.value)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_model_converted_after_wrapping_is_refused(ranks, steps):
    """DDP itself would permute its gradients."""
    for message in ranks.run(2, converted_late, steps):
        assert "weight has strides (" in message
        assert "Convert the model, as to channels_last, before wrapping it" in message


def another_models_parameters() -> str:
    ddp = DistributedDataParallel(small_model())
    state = CompressionState(nn.Linear(12, 24), recipes.sbc(0.1))
    ddp.register_comm_hook(state, compress_hook)
    with pytest.raises(PeerError, match="are not of the model") as caught:
        backward(ddp, 0)
    return str(caught.value)


def test_a_state_refuses_the_parameters_of_another_model(ranks):
    for message in ranks.run(2, another_models_parameters):
        assert "are not of the model that this state was made for" in message
