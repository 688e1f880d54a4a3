"""A state learns of the DDP model whose hook it is, however it was made."""

import gc
import io
import time
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_compress import CompressionState, PeerError, attach, compress_hook, recipes
from ddp_compress.checkpoints.checkpoint import checksum
from ddp_compress.step import ddp_model
from tests.distributed.test_ddp_modes import USED_BY_NONE, Branches, channels_last
from tests.distributed.training import (
    SEVERAL_BUCKETS,
    backward,
    grads,
    loss,
    memory,
    small_model,
    train,
    weights,
    wrap,
)
from tests.table import ROWS, Row, every_family

UNUSED = {"find_unused_parameters": True}
KEEPING = ("topk", "dgc-golomb", "sbc-golomb", "vote-sharded", "hgc", "stc")
every_keeping_family = pytest.mark.parametrize("row", [ROWS[n] for n in KEEPING], ids=KEEPING)


def wrap_bare(
    model: nn.Module, row: Row, **options: Any
) -> tuple[DistributedDataParallel, CompressionState]:
    """The plain PyTorch way, with a state that knows the bare model alone."""
    state = CompressionState(model, row.recipe, min_numel=row.min_numel)
    ddp = DistributedDataParallel(model, bucket_cap_mb=SEVERAL_BUCKETS, **options)
    ddp.register_comm_hook(state, compress_hook)
    return ddp, state


# --------------------------------------------------------------------- made of the bare model


def with_unused_parameters(row: Row) -> None:
    found = []
    for make in (wrap, wrap_bare):
        ddp, state = make(Branches(USED_BY_NONE), row, **UNUSED)
        train(ddp, range(len(USED_BY_NONE)))
        found.append((weights(ddp), memory(state)))
    assert found[0] == found[1]


@every_keeping_family
def test_parameters_that_no_rank_used_lose_nothing(ranks, row):
    ranks.run(2, with_unused_parameters, row)


def in_halves() -> float:
    group = [dist.new_group([0, 1]), dist.new_group([2, 3])][dist.get_rank() // 2]
    model = nn.Linear(1, 1, bias=False)
    ddp, _ = wrap_bare(model, Row(recipes.topk(1.0)), process_group=group)
    ddp(torch.full((1, 1), float(dist.get_rank()))).sum().backward()
    return float(model.weight.grad)


def test_ranks_of_a_subgroup_average_among_themselves(ranks):
    assert ranks.run(4, in_halves) == [0.5, 0.5, 2.5, 2.5]


def past_the_hook(options: dict[str, Any]) -> str:
    ddp, _ = wrap_bare(small_model(), ROWS["topk"], **options)
    with pytest.raises(PeerError) as caught:
        backward(ddp, 0)
    return str(caught.value)


def test_options_that_go_past_the_hook_are_refused_at_the_first_pass(ranks):
    (message,) = ranks.run(1, past_the_hook, {"skip_all_reduce_unused_params": True})
    assert "skip_all_reduce_unused_params=True may skip the last bucket" in message


def past_the_hook_of_some() -> str:
    """The ranks of a subgroup alone hear of it, and nobody waits for the others."""
    groups = [dist.new_group([0, 1])]
    if dist.get_rank() == 2:
        return ""
    start = time.monotonic()
    options = {"skip_all_reduce_unused_params": True} if dist.get_rank() else {}
    ddp, _ = wrap_bare(small_model(), ROWS["topk"], process_group=groups[0], **options)
    with pytest.raises(PeerError) as caught:
        backward(ddp, 0)
    assert time.monotonic() - start < 5
    return str(caught.value)


def test_a_subgroup_hears_of_what_one_of_it_refuses(ranks):
    one, two, _ = ranks.run(3, past_the_hook_of_some)
    assert "skip_all_reduce_unused_params=True may skip the last bucket" in one
    assert "skip_all_reduce_unused_params=True may skip the last bucket" in two


def come_and_go() -> None:
    """A closed state, or one that is gone, leaves nothing on its model."""
    ddp = DistributedDataParallel(small_model())
    for closes in (True, False):
        for _ in range(3):
            state = CompressionState(ddp, ROWS["topk"].recipe)
            state.reduce({"0.bias": torch.ones(24)})
            if closes:
                state.close()
        del state
        gc.collect()
        assert not ddp._forward_pre_hooks
        assert not ddp.module._load_state_dict_pre_hooks


def test_states_that_go_leave_no_hooks(ranks):
    ranks.run(1, come_and_go)


def registered_on_another() -> None:
    """A state that was made of one DDP model and given to another, both alive."""
    model = Branches(USED_BY_NONE)
    first = DistributedDataParallel(model)
    state = CompressionState(first, ROWS["topk"].recipe)
    first.register_comm_hook(state, compress_hook)
    second = DistributedDataParallel(model, bucket_cap_mb=SEVERAL_BUCKETS, **UNUSED)
    second.register_comm_hook(state, compress_hook)
    expected, _ = wrap(Branches(USED_BY_NONE), ROWS["topk"], **UNUSED)
    for ddp in (second, expected):
        train(ddp, range(len(USED_BY_NONE)))
    assert weights(second) == weights(expected)


def test_the_model_that_calls_the_hook_is_the_one_that_counts(ranks):
    ranks.run(2, registered_on_another)


def called_by_another_hook() -> None:
    """Which model it is is looked up once, though none lists the state."""
    state, scans = CompressionState(small_model(), ROWS["topk"].recipe), []

    def hook(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        return compress_hook(state, bucket)

    ddp = DistributedDataParallel(small_model(), bucket_cap_mb=SEVERAL_BUCKETS)
    ddp.register_comm_hook(None, hook)
    real = ddp_model.models_of

    def scan(parameter: Tensor) -> list[DistributedDataParallel]:
        scans.append(1)
        return real(parameter)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ddp_model, "models_of", scan)
        with ddp.join():
            train(ddp, range(3 + dist.get_rank()))
        train(ddp, range(3))
    assert len(scans) <= 2
    expected, _ = wrap(small_model(), ROWS["topk"])
    with expected.join():
        train(expected, range(3 + dist.get_rank()))
    train(expected, range(3))
    assert weights(ddp) == weights(expected)


def test_a_hook_may_be_called_by_another(ranks):
    ranks.run(2, called_by_another_hook)


# --------------------------------------------------------------------------------- other ranks


def other_ranks() -> list[str]:
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    half = halves[dist.get_rank() // 2]
    ddp = DistributedDataParallel(small_model())
    messages = []
    narrow = DistributedDataParallel(small_model(), process_group=half)
    for model in (ddp, narrow):
        theirs = half if model is ddp else dist.group.WORLD
        with pytest.raises(ValueError, match="process_group is of ranks") as caught:
            attach(model, "topk", process_group=theirs)
        messages.append(str(caught.value))
    again = dist.new_group([0, 1, 2, 3])
    state = attach(ddp, "topk", density=0.1, process_group=again)
    train(ddp, range(3))
    assert state.process_group is again
    return [*messages, weights(ddp)]


def test_another_groups_ranks_are_refused(ranks):
    found = ranks.run(4, other_ranks)
    for rank, (wider, narrower, _) in enumerate(found):
        half = [0, 1] if rank < 2 else [2, 3]
        assert f"is of ranks {half}, but the DDP model is of ranks [0, 1, 2, 3]" in wider
        assert f"is of ranks [0, 1, 2, 3], but the DDP model is of ranks {half}" in narrower
    assert len({digest for *_, digest in found}) == 1


# ------------------------------------------------------------------------- ignored parameters


class WithTable(nn.Module):
    """A table of a rank's own, which DDP is to leave alone."""

    def __init__(self, sparse: bool, ignore: bool = True) -> None:
        super().__init__()
        self.shared = small_model()
        self.table = nn.Embedding(5 + dist.get_rank(), 12, sparse=sparse)
        if ignore:
            names = ["table.weight"]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, names)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(x + self.table(torch.arange(len(x)) % 5))


def ignored(row: Row, sparse: bool) -> str:
    for make in (wrap, wrap_bare):
        ddp, state = make(WithTable(sparse), row)
        train(ddp, range(3))
        assert "table.weight" not in state.state_dict()["tensors"].get("residual", {})
    return weights(ddp.module.shared)


@pytest.mark.parametrize("sparse", [False, True])
def test_parameters_that_ddp_ignores_are_left_alone(ranks, sparse):
    one, two = ranks.run(2, ignored, ROWS["topk"], sparse)
    assert one == two


# ------------------------------------------------------------------ states that come from a file


def saved_whole(row: Row) -> None:
    """As PyTorch's tutorial does with hook states; a new model takes it on."""
    ddp, state = wrap(small_model(), row)
    clean, _ = wrap(small_model(), row)
    for model in (ddp, clean):
        train(model, range(3))
    file = io.BytesIO()
    torch.save({"model": ddp.module.state_dict(), "hook": state}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)

    module = small_model()
    module.load_state_dict(saved["model"])
    again = DistributedDataParallel(module, bucket_cap_mb=SEVERAL_BUCKETS)
    again.register_comm_hook(saved["hook"], compress_hook)
    for each in (again, clean):
        train(each, range(3, 6))
    assert weights(again) == weights(clean)


@every_family
def test_a_state_may_be_saved_whole(ranks, row):
    ranks.run(2, saved_whole, row)


# ------------------------------------------------------------------------------ refused by name


def refused() -> list[str]:
    """Each with the line that does it right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch's own, for `torch.jit`
        from torch.distributed._composable import replicate
        from torch.distributed.optim import _apply_optimizer_in_backward
    messages = []

    def refuse(error: type[Exception], model: Any) -> None:
        with pytest.raises(error) as caught:
            attach(model, "topk", density=0.1)
        messages.append(str(caught.value))

    ddp = DistributedDataParallel(small_model())
    again = DistributedDataParallel(ddp.module)
    refuse(TypeError, small_model())
    refuse(TypeError, nn.Sequential())
    refuse(TypeError, ddp.module[0])
    refuse(TypeError, ddp.module)
    refuse(TypeError, nn.ModuleList([ddp, again]))
    refuse(TypeError, replicate(small_model()))
    refuse(TypeError, "model")
    _apply_optimizer_in_backward(torch.optim.SGD, ddp.parameters(), {"lr": 0.1})
    refuse(ValueError, ddp)

    stateless = DistributedDataParallel(small_model())
    stateless.register_comm_hook(None, compress_hook)
    with pytest.raises(TypeError) as caught:
        backward(stateless, 0)
    return [*messages, str(caught.value)]


def test_what_is_no_ddp_model_is_refused_with_the_line_that_does_it_right(ranks):
    (found,) = ranks.run(1, refused)
    expected = (
        "wrap it first, as in attach(DistributedDataParallel(model), recipe)",
        "got Sequential: wrap it first",
        "it is a part of one that exists, so give that DistributedDataParallel",
        "got Sequential: 2 are around it, so give one of them itself",
        "got ModuleList: 2 are in it, so give one of them itself",
        "replicate() averages gradients by itself",
        "must be a DistributedDataParallel, got str",
        "makes optimizers step 0.weight, 0.bias, 2.weight during backward",
        "compress_hook needs a CompressionState, got NoneType",
    )
    for message, words in zip(found, expected, strict=True):
        assert words in message


def found_in_and_around() -> list[bool]:
    """What frameworks hand out of a DDP model leads to it."""

    def leads_there(ddp: DistributedDataParallel, model: nn.Module) -> bool:
        state = attach(model, "topk", density=0.1)
        listed = [theirs for _, theirs in ddp._comm_hooks] == [state]
        with pytest.raises(ValueError, match=r"communication hook compress_hook already"):
            attach(model, "topk", density=0.1)
        return listed

    ways: list[Any] = [
        lambda ddp: torch.compile(ddp, backend="eager"),
        lambda ddp: nn.Sequential(ddp),
        lambda ddp: ddp.module,
    ]
    found = []
    for way in ways:
        ddp = DistributedDataParallel(small_model())
        found.append(leads_there(ddp, way(ddp)))
    model = small_model()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["0.weight"])
    ddp = DistributedDataParallel(model)
    found += [leads_there(ddp, model)]
    ddp = DistributedDataParallel(torch.compile(small_model(), backend="eager"))
    found += [leads_there(ddp, ddp.module._orig_mod)]
    return found


def test_the_ddp_model_is_found_in_what_it_is_in_and_around_what_is_in_it(ranks):
    assert ranks.run(1, found_in_and_around) == [[True] * 5]


def compiled(model: nn.Module) -> nn.Module:
    compiled: Any = torch.compile(model, backend="eager")
    return compiled


def with_other_names(saved: dict[str, Any], rename: Any) -> dict[str, Any]:
    """A checkpoint of before names were cleaned."""
    tensors = {s: {rename(n): t for n, t in kept.items()} for s, kept in saved["tensors"].items()}
    buckets = [list(map(rename, bucket)) for bucket in saved["buckets"]]
    return saved | {
        "parameters": 1,
        "buckets": buckets,
        "tensors": tensors,
        "checksum": checksum(tensors),
    }


def across_compile() -> None:
    """Compiled or not, as a whole or in parts, a checkpoint goes on bit for bit."""
    plain, state = wrap(small_model(), ROWS["topk"])
    train(plain, range(3))
    kept, saved = memory(state), state.state_dict()
    in_parts = small_model()
    in_parts[0] = compiled(in_parts[0])
    old = with_other_names(saved, lambda name: f"_orig_mod.{name}")
    for other in (compiled(small_model()), in_parts, small_model()):
        for checkpoint in (saved, old):
            _ddp, resumed = wrap(other, ROWS["topk"])
            resumed.load_state_dict(checkpoint)
            assert memory(resumed) == kept
            assert resumed.state_dict()["parameters"] == saved["parameters"]
    flat = {f"_orig_mod.{n}": p.detach() for n, p in plain.module.named_parameters()}
    assert list(resumed.reduce(flat)) == list(flat)


def test_a_checkpoint_fits_the_model_compiled_or_not(ranks):
    ranks.run(2, across_compile)


# ------------------------------------------------------------------------ by hook and by `reduce`


def both_ways(row: Row) -> None:
    """A channels_last model: both ways in see one memory, as it lies in the parameter."""
    by_hook, ours = wrap(channels_last(), row, bucket_cap_mb=25)
    for number in range(4):
        local = channels_last()
        local.load_state_dict(by_hook.module.state_dict())
        loss(local, dist.get_rank(), number).backward()
        given = {name: p.grad for name, p in local.named_parameters()}
        before = ours.state_dict()
        means = ours.reduce(given)
        after = memory(ours)
        ours.load_state_dict(before)
        backward(by_hook, number)
        assert memory(ours) == after
        for name, p in by_hook.module.named_parameters():
            assert torch.equal(p.grad, means[name])
            flat = ours.reduce({name: torch.zeros(p.numel())})
            assert flat[name].shape == (p.numel(),)
            ours.discard()
        assert all(grad.isfinite().all() for grad in grads(by_hook))


@pytest.mark.parametrize("name", ["topk", "dgc-golomb", "stc", "smartidx"])
def test_hook_and_reduce_see_one_memory(ranks, name):
    ranks.run(2, both_ways, Row(ROWS[name].recipe))


def test_a_checkpoint_of_another_memory_format_is_refused():
    saved = CompressionState(channels_last(), recipes.topk(0.1))
    other = channels_last().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    state = CompressionState(other, recipes.topk(0.1))
    with pytest.raises(ValueError, match=r"by its dimensions \[0, 2, 3, 1\]; now it lies by in"):
        state.load_state_dict(saved.state_dict())
    with pytest.raises(ValueError, match=r"by its dimensions in order; now it lies by \[0, 2, 3"):
        saved.load_state_dict(state.state_dict())


def test_reduce_refuses_a_model_converted_since():
    model = channels_last()
    state = CompressionState(model, recipes.topk(0.1))
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with pytest.raises(PeerError, match="Convert the model, as to channels_last, before"):
        state.reduce({"1.weight": torch.ones_like(model.get_parameter("1.weight"))})
