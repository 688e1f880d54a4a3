"""Sharded models (FSDP2): the laws of docs/design.md, dense training's numbers, what is refused."""

import gc
import random
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed._composable.replicate_with_fsdp import replicate
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import ddp_compress as dc
from ddp_compress import CompressionState, PeerError, PerRank, recipes, redistribute
from ddp_compress.step import shard_gradients
from tests.distributed.shards import attach_sharded, local, mesh_of, on_shards, sharded
from tests.distributed.soak import with_delays
from tests.distributed.test_checkpoints import one_life_and_three
from tests.distributed.test_laws_on_ranks import (
    grads_of_every_step,
    same_everywhere,
    with_grad_scaler,
)
from tests.distributed.training import (
    backward,
    descend,
    digest,
    grads,
    loss,
    memory,
    plain_grads,
    send_top,
    small_model,
    train,
    weights,
    wrap,
)
from tests.table import RECIPES, ROWS, Row, each, every_recipe

DENSE = Row(recipes.topk(1.0))
SOME = ("topk", "dgc-golomb", "vote-sharded", "hgc", "rotated-feedback")
some_rows = each({name: RECIPES[name] for name in SOME})

# ------------------------------------------------------------------------------------ what it does


def simulate(density: float, steps: int) -> tuple[nn.Module, dict[int, list[Tensor]]]:
    """Top-k in every shard of every parameter, two replicas of two shards, in plain torch.

    Returns:
        The trained model, and every rank's residuals.
    """
    model = small_model()
    residuals = {
        rank: [torch.zeros_like(p.chunk(2)[rank % 2]).flatten() for p in model.parameters()]
        for rank in range(4)
    }
    for step in range(steps):
        given = [plain_grads(model, rank, [step]) for rank in range(4)]
        for number, parameter in enumerate(model.parameters()):
            mean = torch.zeros_like(parameter)
            for rank in range(4):
                first = rank - rank % 2
                of_replica = (given[first][number] + given[first + 1][number]) / 2
                residual = residuals[rank][number]
                residual += of_replica.chunk(2)[rank % 2].flatten()
                sent = send_top(residual, density)
                part = mean.chunk(2)[rank % 2]
                part += sent.view_as(part) / 2
            parameter.grad = mean
        descend(model)
    return model, residuals


def beside_simulation() -> None:
    sharded_model, state = attach_sharded(small_model(), Row(recipes.topk(0.1, "tensor")))
    train(sharded_model, range(4))
    model, residuals = simulate(0.1, 4)
    for ours, theirs in zip(sharded_model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.full_tensor(), theirs, rtol=1e-5, atol=1e-6)
    kept = state.memory()["residual"]
    names = [name for name, _ in model.named_parameters()]
    for name, expected in zip(names, residuals[dist.get_rank()], strict=True):
        torch.testing.assert_close(kept[name], expected, rtol=1e-4, atol=1e-5)
    assert state.state_dict()["part"] == ["shard", dist.get_rank() % 2, 2]
    assert state.state_dict()["saved_by"] == [dist.get_rank() // 2, 2]


def test_each_shard_is_a_parameter_whose_mean_over_a_replica_is_sent(ranks):
    ranks.run(4, beside_simulation)


class Net(nn.Module):
    """Parameters of every kind: shards that are empty or uneven, tied, frozen, often unused."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.block = nn.Sequential(nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 12))
        self.again = nn.Sequential(nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 12))
        self.again[0].weight = self.block[0].weight
        self.scale = nn.Parameter(torch.ones(1))
        self.frozen = nn.Linear(12, 12).requires_grad_(False)
        self.sometimes = nn.Linear(12, 12, bias=False)
        self.head = nn.Linear(12, 3)
        self.recompute: bool | None = None  # reentrant, or not; None for not at all
        self.takes_turns = False

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_(self.recompute is True)  # else that recomputes nothing
        for block in (self.block, self.again):
            if self.recompute is None:
                x = x + self.scale * block(x)
            else:
                x = x + self.scale * checkpoint(block, x, use_reentrant=self.recompute)
        x = self.frozen(x)
        if self.takes_turns and dist.get_rank() < 2:
            x = x + self.sometimes(x)
        return self.head(x)


Step = Callable[[Any, int], None]


def plain_step(model: nn.Module, number: int) -> None:
    loss(model, dist.get_rank(), number).backward()


def accumulating_step(model: Any, number: int) -> None:
    for part in range(3):
        sync = part == 2
        if isinstance(model, DistributedDataParallel):
            model.require_backward_grad_sync = sync
        else:
            model.set_requires_gradient_sync(sync)
        (loss(model, dist.get_rank(), 3 * number + part) / 3).backward()


def repeated_step(model: nn.Module, number: int) -> None:
    for part in range(2):
        (loss(model, dist.get_rank(), 2 * number + part) / 2).backward()


def run_dense(model: Any, step: Step, clip: float | None) -> list[Tensor]:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for number in range(3):
        step(model, number)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    return [
        p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in model.parameters()
    ]


@dataclass(frozen=True)
class Setting:
    """What a sharded model is trained with."""

    step: Step = plain_step
    clip: float | None = None
    recompute: bool | None = None
    takes_turns: bool = False
    wrapped: bool = False  # in a checkpoint's wrapper
    compiled: bool = False
    several_roots: bool = False
    param_dtype: torch.dtype | None = None
    reduce_dtype: torch.dtype | None = None
    offload: bool = False
    columns: bool = False  # shards of the second dimension
    tolerance: float = 1e-6

    def net(self) -> Net:
        net = Net()
        net.recompute, net.takes_turns = self.recompute, self.takes_turns
        return net

    def cut(self, net: Any, mesh: Any) -> Any:
        options: dict[str, Any] = {}
        if self.reduce_dtype is not None:
            options["mp_policy"] = MixedPrecisionPolicy(self.param_dtype, self.reduce_dtype)
        if self.offload:
            options["offload_policy"] = CPUOffloadPolicy(pin_memory=False)
        if self.columns:
            options["shard_placement_fn"] = lambda p: Shard(1) if p.shape[1:] == (12,) else None
        if self.wrapped:
            net.block, net.again = map(checkpoint_wrapper, (net.block, net.again))
        if self.compiled:
            net.head = torch.compile(net.head, backend="aot_eager")
            fully_shard(net.head, mesh=mesh, **options)
        fully_shard([net.block, net.again], mesh=mesh, **options)
        return fully_shard(net, mesh=mesh, **options)


SETTINGS = {
    "plain": Setting(),
    "accumulated": Setting(accumulating_step, clip=0.3),
    "clipped": Setting(clip=0.3),
    "repeated": Setting(repeated_step),
    "by some replicas": Setting(takes_turns=True),
    "checkpoint": Setting(recompute=False),
    "reentrant checkpoint": Setting(recompute=True),
    "checkpoint wrapper": Setting(wrapped=True),
    "compiled": Setting(compiled=True),
    "offloaded": Setting(offload=True),
    "columns": Setting(columns=True),
    "bf16": Setting(accumulating_step, 0.3, param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
    "bf16, reduced in bf16": Setting(
        param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16, tolerance=2e-3
    ),
}


def beside_dense(name: str) -> float:
    """Density 1 beside FSDP's own all-reduce between replicas, and beside DDP."""
    setting, mesh = SETTINGS[name], mesh_of(2)
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor", UserWarning)  # dynamo's
    attached = setting.cut(setting.net(), mesh["shard"])
    group = mesh["replicate"].get_group()
    state = dc.attach(attached, DENSE.recipe, process_group=group)
    ours = run_dense(attached, setting.step, setting.clip)
    assert state.stats.steps == (6 if setting.step is repeated_step else 3)
    references = [setting.cut(setting.net(), mesh)]
    if setting.reduce_dtype is None and setting.recompute is not True:  # which DDP does not take
        references.append(DistributedDataParallel(setting.net(), find_unused_parameters=True))
    if setting.takes_turns:
        references = references[1:]  # of FSDP's own, replicas drift apart
    worst = 0.0
    for reference in references:
        theirs = run_dense(reference, setting.step, setting.clip)
        worst = max(worst, *((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True)))
    return worst


@pytest.mark.parametrize("name", SETTINGS)
def test_density_1_equals_dense_training(ranks, name):
    assert max(ranks.run(4, beside_dense, name)) <= SETTINGS[name].tolerance


def presence_of_others() -> list[bool]:
    """Replica 0 alone uses a layer in step 1, none in step 2, replica 1 alone in step 3."""

    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(12, 3), nn.Linear(12, 3)
            self.used = False

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) + (self.second(x) if self.used else 0.0)

    torch.manual_seed(3)
    model, state = attach_sharded(Sometimes(), Row(recipes.topk(0.2, "tensor")))
    has_gradient = []
    for number, user in enumerate((0, None, 1)):
        before = state.memory()["residual"].get("second.weight")
        model.used = dist.get_rank() // 2 == user
        backward(model, number)
        grad = model.second.weight.grad
        has_gradient.append(grad is not None)
        assert grad is None or grad.to_local().any()
        if before is not None and not model.used:  # nothing of it was sent, nothing is lost
            assert torch.equal(state.memory()["residual"]["second.weight"], before)
    same_everywhere([digest(grads(model))])
    return has_gradient


def test_a_gradient_of_other_replicas_alone_arrives(ranks):
    assert ranks.run(4, presence_of_others) == [[True, False, True]] * 4


# -------------------------------------------------------------------------------------------- laws


def with_one_bucket(row: Row) -> list[str]:
    """Whose parameters DDP leaves in their order."""
    options = {"bucket_cap_mb": 25, "find_unused_parameters": True}
    model, state = wrap(small_model(), row, **options)
    digests = []
    for number in range(2):
        backward(model, number)
        digests.append(digest(grads(model)))
        descend(model)
    assert state.state_dict()["part"] is None
    return [*digests, *memory(state).values()]


def sharded_and_in_ddp(row: Row) -> None:
    assert on_shards(1, with_one_bucket, row) == with_one_bucket(row)


@every_recipe
def test_a_shard_mesh_of_one_rank_is_as_ddp(ranks, row):
    ranks.run(2, sharded_and_in_ddp, row)


def twice(function: Callable[..., Any], *args: Any) -> Any:
    first = on_shards(2, function, *args)
    assert first == on_shards(2, function, *args)
    return first


@some_rows
def test_law_2_ranks_agree_bit_for_bit_and_so_do_runs(ranks, row):
    digests = same_everywhere(ranks.run(4, twice, grads_of_every_step, row))
    assert len(set(digests)) == len(digests)


@some_rows
def test_law_4_a_resumed_run_equals_the_uninterrupted_one(ranks, row):
    assert len(set(ranks.run(4, on_shards, 2, one_life_and_three, row, {}))) == 1


def slow_and_fast(row: Row) -> None:
    slow, fast = (on_shards(2, with_delays, row, 3, seconds) for seconds in (0.003, 0.0))
    assert slow == fast


@some_rows
def test_law_7_delays_change_nothing(ranks, row):
    ranks.run(4, slow_and_fast, row)


def poisoned_shards(row: Row, trials: int = 4) -> str:
    """Between good steps, one rank's shard of a gradient is not finite."""
    poisoned, state = attach_sharded(small_model(), row, bucket_cap_mb=0.001, flush_bytes=1)
    clean, _ = attach_sharded(small_model(), row, bucket_cap_mb=0.001, flush_bytes=1)
    chance = random.Random(0)
    for number in range(trials):
        for model in (poisoned, clean):
            train(model, [number])
        name, poison = chance.choice(["0.weight", "3.bias"]), chance.choice([torch.nan, torch.inf])
        parameter = poisoned.get_parameter(name)
        before, handles = memory(state), []
        if dist.get_rank() == number % 4:
            hook = parameter.register_post_accumulate_grad_hook
            handles.append(hook(lambda p, poison=poison: local(p.grad).view(-1)[-1:].fill_(poison)))
        backward(poisoned, -1)
        for handle in handles:
            handle.remove()
        assert memory(state) == before
        assert all(local(grad).isnan().all() for grad in grads(poisoned))
    for model in (poisoned, clean):
        train(model, [trials])
    assert weights(poisoned) == weights(clean)
    assert (state.stats.aborted, state.stats.steps) == (trials, trials + 1)
    return weights(poisoned)


@some_rows
def test_law_8_a_poisoned_step_never_was(ranks, row):
    same_everywhere(ranks.run(4, poisoned_shards, row))


def test_law_8_grad_scaler_skips_the_step_on_every_rank(ranks):
    scales, _, aborted = same_everywhere(ranks.run(4, on_shards, 2, with_grad_scaler))
    assert (scales, aborted) == ([1024.0] * 3 + [512.0] * 3, 1)


def without_elements() -> list[int]:
    """Rank 1 of each replica has none at all."""
    model, state = attach_sharded(nn.Sequential(nn.Linear(12, 1, bias=False)), ROWS["topk"])
    for number in range(2):
        model.zero_grad()
        model(torch.full((2, 12), float(dist.get_rank() + number))).sum().backward()
    weight = model[0].weight
    assert weight.grad.full_tensor().any()
    return [state.stats.steps, len(state.memory()["residual"]["0.weight"])]


def test_a_rank_may_have_no_elements(ranks):
    assert ranks.run(4, without_elements) == [[2, 12], [2, 0]] * 2


def discarded() -> tuple[str, str]:
    model, state = attach_sharded(small_model(), ROWS["dgc"])
    clean, _ = attach_sharded(small_model(), ROWS["dgc"])
    for one in (model, clean):
        train(one, range(2))
    before = memory(state)
    backward(model, 7)
    state.discard()
    model.zero_grad()
    assert memory(state) == before
    for one in (model, clean):
        train(one, [3])
    return weights(model), weights(clean)


def test_a_pass_can_be_discarded(ranks):
    for ours, clean in ranks.run(4, discarded):
        assert ours == clean


def let_go() -> bool:
    """A state with a thread and process groups, which nobody holds but its model."""
    model, state = attach_sharded(small_model(), ROWS["topk-sharded"])
    backward(model, 0)
    there, parameter = weakref.ref(state), weakref.ref(model[0].weight)
    del state
    gc.collect()
    assert there() is not None
    backward(model, 1)
    del model
    gc.collect()
    return there() is None and parameter() is None


def test_a_state_lives_as_long_as_its_model(ranks):
    assert ranks.run(4, let_go) == [True] * 4


# ------------------------------------------------------------------------------------- checkpoints


def saved_and_loaded(row: Row, folder: Path) -> None:
    """By DCP, whose metadata every rank writes; then on as before."""
    model, state = attach_sharded(small_model(), row)
    train(model, range(2))
    dcp.save({"model": model, "compression": PerRank(state)}, checkpoint_id=folder)
    train(model, [2])
    again, fresh = attach_sharded(small_model(), row)
    dcp.load({"model": again, "compression": PerRank(fresh)}, checkpoint_id=folder)
    train(again, [2])
    assert weights(again) == weights(model)
    assert memory(fresh) == memory(state)


@pytest.mark.parametrize("row", [ROWS["topk"], ROWS["vote-sharded"]], ids=["topk", "vote"])
def test_dcp_keeps_what_every_rank_has(ranks, row, tmp_path):
    ranks.run(4, saved_and_loaded, row, tmp_path)


def trained_shards(row: Row) -> tuple[dict[str, Tensor], dict[str, Any]]:
    model, state = attach_sharded(small_model(), row)
    train(model, range(3))
    return {n: p.full_tensor() for n, p in model.named_parameters()}, state.state_dict()


def goes_on(row: Row, model: dict[str, Tensor], saved: list[dict[str, Any]]) -> str:
    bare = small_model()
    bare.load_state_dict(model)
    cut, state = attach_sharded(bare, row)
    state.load_state_dict(saved[dist.get_rank()])
    train(cut, range(3, 5))
    return weights(cut)


@pytest.mark.parametrize("row", [ROWS["sbc"], ROWS["topk-sharded"]], ids=["sbc", "sharded"])
def test_checkpoints_go_on_with_other_numbers_of_replicas(ranks, row):
    told = ranks.run(4, trained_shards, row)
    saved = [checkpoint for _, checkpoint in told]
    mean = {
        n: (saved[0]["tensors"]["residual"][n] + kept) / 2
        for n, kept in saved[2]["tensors"]["residual"].items()
    }
    alone = [redistribute(saved[shard::2], 0, 1) for shard in range(2)]
    for name, expected in mean.items():
        torch.testing.assert_close(alone[0]["tensors"]["residual"][name], expected)
    assert len(set(ranks.run(2, goes_on, row, told[0][0], alone))) == 1
    both = [redistribute([alone[rank % 2]], rank // 2, 2) for rank in range(4)]
    assert [each["part"] for each in both] == [["shard", rank % 2, 2] for rank in range(4)]
    assert len(set(ranks.run(4, goes_on, row, told[0][0], both))) == 1
    with pytest.raises(ValueError, match="of all old ranks of shard 0 of 2"):
        redistribute(saved[:2], 0, 1)


def on_another_shard() -> str:
    """Of equal sizes, so that the place alone tells."""
    model, state = attach_sharded(of_even_shards(), ROWS["topk"])
    backward_of_one(model)
    saved = state.state_dict()
    saved["part"] = ["shard", 1 - saved["part"][1], 2]
    again, fresh = attach_sharded(of_even_shards(), ROWS["topk"])
    fresh.load_state_dict(saved)
    with pytest.raises(PeerError) as caught:
        backward_of_one(again)
    return str(caught.value)


def of_even_shards() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 4))


def backward_of_one(model: nn.Module) -> None:
    model.zero_grad()
    model(torch.ones(2, 12)).sum().backward()


def test_a_checkpoint_of_another_shard_is_refused(ranks):
    for message in ranks.run(4, on_another_shard):
        assert "see ddp_compress.redistribute" in message


# --------------------------------------------------------------------------------- what is refused


def said(action: Callable[[], object]) -> str:
    """The error that an action raises on this rank."""
    with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
        action()
    return f"{caught.typename}: {caught.value}"


def refused_models() -> dict[str, str]:
    mesh = mesh_of(2)
    group = mesh["replicate"].get_group()

    def attach(model: nn.Module, recipe: dc.Recipe = DENSE.recipe, **options: Any) -> object:
        return dc.attach(model, recipe, **{"process_group": group, **options})

    def shards() -> Any:
        return sharded(small_model(), mesh["shard"])

    rootless, twice = small_model(), shards()
    fully_shard(rootless[0], mesh=mesh["shard"])
    attach(twice)
    state = CompressionState(shards(), DENSE.recipe, group)
    sgd = torch.optim.SGD(twice.parameters(), lr=0.1)
    return {
        "2-D": said(lambda: attach(sharded(small_model(), mesh))),
        "FSDP1": said(
            lambda: attach(FullyShardedDataParallel(small_model(), device_id=torch.device("cpu")))
        ),
        "replicate": said(lambda: attach(replicate(small_model(), mesh=mesh["replicate"]))),
        "world": said(lambda: attach(sharded(small_model(), mesh_of(4)["shard"]))),
        "no group": said(lambda: attach(shards(), process_group=None)),
        "rootless": said(lambda: attach(rootless)),
        "within": said(lambda: attach(shards(), within="node")),
        "clip": said(lambda: attach(shards(), recipes.dgc(0.1, clip=1.0))),
        "twice": said(lambda: attach(twice)),
        "local": said(lambda: dc.LocalUpdates(sgd, twice, state, period=2)),
        "hook": said(lambda: dc.LocalUpdates(sgd, twice, attach(shards()), period=2)),
    }


def test_what_cannot_be_attached_is_refused_with_the_line_that_does_it_right(ranks):
    expected = {
        "2-D": "fully_shard(model, mesh=mesh['shard'])",
        "FSDP1": "fully_shard(model, mesh=mesh['shard'])",
        "replicate": "attach(DistributedDataParallel(model), recipe)",
        "world": "process_group=mesh['replicate'].get_group()",
        "no group": "process_group=mesh['replicate'].get_group()",
        "rootless": "2.weight, 2.bias, 3.weight and 3 more is trained, and no fully_shard",
        "within": "leave it out",
        "clip": "call clip_grad_norm_ after backward",
        "twice": "are exchanged already",
        "local": "not of the model",
        "hook": "not of the model",
    }
    for told in ranks.run(4, refused_models):
        for name, words in expected.items():
            assert words in told[name], name


def refused_passes() -> dict[str, str]:
    """On one rank each; all ranks are told."""
    rank, told = dist.get_rank(), {}

    def seed() -> None:
        model = small_model()
        if rank >= 2:
            nn.init.ones_(model[4].bias)
        backward(attach_sharded(model, DENSE)[0], 0)

    def setting() -> None:
        row = Row(recipes.topk(0.2 if rank == 3 else 0.1))
        backward(attach_sharded(small_model(), row)[0], 0)

    def assigned() -> None:
        model, _ = attach_sharded(small_model(), DENSE)
        other = sharded(small_model(), mesh_of(2)["shard"])
        model.load_state_dict(other.state_dict(), assign=True)
        backward(model, 0)

    def unfrozen() -> None:
        model = small_model()
        model[3].requires_grad_(False)
        model, _ = attach_sharded(model, DENSE)
        model[3].requires_grad_(True)
        backward(model, 0)

    def within_backward() -> None:
        model, _ = attach_sharded(small_model(), DENSE)
        if rank == 1:
            optimizer = torch.optim.SGD([model[4].weight], lr=0.1)
            model[4].weight.register_post_accumulate_grad_hook(lambda _: optimizer.step())
        backward(model, 0)

    def summed() -> None:
        model, _ = attach_sharded(small_model(), ROWS["dgc"])
        backward(model, 0)
        loss(model, rank, 1).backward()

    def unable() -> None:
        model, state = attach_sharded(small_model(), DENSE)
        backward(model, 0)
        before = memory(state)
        with pytest.MonkeyPatch.context() as patch:
            if rank == 3:
                patch.setattr(shard_gradients.ShardBucket, "gather", midway)
            try:
                backward(model, 1)
            finally:
                assert all(p.grad is None for p in model.parameters())
                assert memory(state) == before

    for action in (seed, setting, assigned, unfrozen, within_backward, summed, unable):
        told[action.__name__] = said(action)
    return told


def test_what_goes_wrong_on_one_rank_is_told_to_all(ranks):
    expected = {
        "seed": "replicas must start equal",
        "setting": "density 0.2",
        "assigned": "load weights with assign=True, before attach",
        "unfrozen": "3.weight has a gradient, and is another or was frozen",
        "within_backward": "SGD.step() was called within backward",
        "summed": "last after model.set_requires_gradient_sync(False)",
        "unable": "rank 3 failed: ArithmeticError: midway",
    }
    for told in ranks.run(4, refused_passes):
        for name, words in expected.items():
            assert words in told[name], name
            assert told[name].startswith("PeerError"), name


def midway(*_: object) -> None:
    raise ArithmeticError("midway")


def given_up() -> str:
    """Backward raises when gradients of the last layer are there."""
    mesh, model = mesh_of(2), small_model()
    fully_shard(model[4], mesh=mesh["shard"])
    fully_shard(model, mesh=mesh["shard"])
    group = mesh["replicate"].get_group()
    state = dc.attach(model, DENSE.recipe, process_group=group)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model, 0)
    model[2].register_full_backward_hook(midway)
    with pytest.raises(ArithmeticError):
        backward(model, 1)
    assert state.step == 1
    return said(optimizer.step)


def test_gradients_of_a_pass_that_came_to_no_end_are_not_applied(ranks):
    for message in ranks.run(4, given_up):
        assert "their backward pass came to no end" in message


def in_one_replica() -> str:
    model, _ = attach_sharded(small_model(), DENSE)
    backward(model, 0)
    model.set_requires_gradient_sync(dist.get_rank() < 2)
    return said(lambda: backward(model, 1)) if dist.get_rank() < 2 else ""


def test_a_replica_waits_in_vain_for_one_that_reduces_nothing_no_longer_than_it_may(ranks):
    outcomes = ranks.outcomes(4, in_one_replica, collective_timeout=3.0)
    assert all("does not answer" in str(each.value) for each in outcomes[:2])


def warned() -> list[str]:
    model, _ = attach_sharded(small_model(), ROWS["topk"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model, 0)
    optimizer.step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(1, 4):
            backward(model, number)  # clears what the last pass has sent
    return [str(each.message) for each in caught]


def test_gradients_cleared_unused_are_told_of_once(ranks):
    for told in ranks.run(4, warned):
        assert len(told) == 1
        assert "call model.set_requires_gradient_sync(False) before the pass" in told[0]
