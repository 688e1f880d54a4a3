"""Whole kernels of convolutions, in whatever memory format, and the three lists."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ddp_compress import CompressionState, ops, recipes
from ddp_compress.body import KernelPatterns
from ddp_compress.body.entry_list import EntryList
from ddp_compress.exchange.bodies import Bodies
from ddp_compress.message.chunk import Chunk
from ddp_compress.message.conv_kernels import ConvKernel
from ddp_compress.message.entries import Entries
from ddp_compress.message.layout import Layout
from ddp_compress.message.message import Message
from ddp_compress.message.plan import Plan
from ddp_compress.message.random_key import RandomKey
from ddp_compress.message.universe import CountedUniverse
from ddp_compress.stats import Stats
from tests import pretend_cuda

SHAPES = {"stem.weight": (8, 2, 7, 7), "conv.weight": (16, 8, 3, 3), "point.weight": (6, 16, 1, 1)}


def network() -> nn.Module:
    """Kernels of three sizes, and biases."""
    model = nn.Module()
    for name, (out, into, *size) in SHAPES.items():
        model.add_module(name.removesuffix(".weight"), nn.Conv2d(into, out, size))
    return model


def random_grads(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Smooth kernels, as of a convolution over images, of very unequal sizes."""
    generator = torch.Generator().manual_seed(seed)
    grads = {}
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() == 4:
            each = torch.randn(*p.shape[:2], 1, 1, generator=generator)
            noise = (0.3 * noise + each) * each.abs() * (10.0 if p.shape[2:].numel() == 1 else 1.0)
        grads[name] = noise
    return grads


def pushed(recipe, memory_format: torch.memory_format, device: torch.device | str = "cpu"):
    """Three steps as DDP takes them, flat gradients in the order of memory: results, statistics."""
    model = network().to(memory_format=memory_format)  # type: ignore[call-overload]
    for module in model.children():
        for name, p in module.named_parameters():
            module.register_parameter(name, nn.Parameter(p.detach().to(device)))
    state, results = CompressionState(model, recipe), []
    parameters = list(model.parameters())
    for step in range(3):
        grads = [
            torch.empty_like(p).copy_(grad.to(device))
            for p, grad in zip(parameters, random_grads(model, step).values(), strict=True)
        ]
        in_memory = [
            grad.permute(0, 2, 3, 1).flatten()
            if grad.dim() == 4 and not grad.is_contiguous()
            else grad.flatten()
            for grad in grads
        ]
        layout = state.layout(parameters)
        flat = state.push(torch.cat(in_memory), layout, last=True).wait()
        for part, grad in zip(flat.split(list(layout.sizes)), grads, strict=True):
            if grad.dim() == 4 and not grad.is_contiguous():
                out, into, *size = grad.shape
                part = part.view(out, *size, into).permute(0, 3, 1, 2)
            results.append(pretend_cuda.host_of(part).cpu().reshape(grad.shape))
    return results, state.stats


@pytest.mark.parametrize("scope", ["tensor", "bucket", "model"])
def test_a_memory_format_changes_nothing(scope):
    recipe = recipes.smartidx(0.2, scope)
    plain, stats = pushed(recipe, torch.contiguous_format)
    last, of_last = pushed(recipe, torch.channels_last)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(plain, last, strict=True))
    for name in ("pattern", "kernel"):
        assert stats.packages[name] == of_last.packages[name]
    assert stats.packages["pattern"].entries > 0.5 * stats.nonzeros


def test_a_device_gives_what_the_cpu_gives():
    expected, counted = pushed(recipes.smartidx(0.2), torch.channels_last)
    with pretend_cuda.pretend():
        found, stats = pushed(recipes.smartidx(0.2), torch.channels_last, pretend_cuda.CUDA)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert stats == counted


@pytest.mark.parametrize("density", [0.003, 0.1, 0.7, 1.0])
def test_what_is_not_sent_is_kept(density):
    state = CompressionState(network(), recipes.smartidx(density))
    grads = random_grads(network())
    numel = sum(grad.numel() for grad in grads.values())
    owed = {name: torch.zeros_like(grad) for name, grad in grads.items()}
    for _ in range(4):
        sent = state.reduce(grads)
        kept = state.state_dict()["tensors"]["residual"]
        for name, grad in grads.items():
            owed[name] += grad
            torch.testing.assert_close(sent[name] + kept[name].view_as(grad), owed[name])
            owed[name] -= sent[name]
        count = sum(int(each.count_nonzero()) for each in sent.values())
        assert 0 < count <= max(1, math.floor(density * numel + 0.5))


def test_statistics_by_package_add_up():
    state = CompressionState(network(), recipes.smartidx(0.3))
    for step in range(3):
        state.reduce(random_grads(network(), step))
    stats = state.stats
    assert stats.nonzeros == sum(each.entries for each in stats.packages.values())
    assert stats.position_bits == sum(each.position_bits for each in stats.packages.values())
    assert stats.value_bits == sum(each.value_bits for each in stats.packages.values())
    assert Stats.of(stats.state_dict()) == stats
    patterns, alone = stats.packages["pattern"], stats.packages["individual"]
    assert patterns.position_bits / patterns.entries < alone.position_bits / alone.entries


# --------------------------------------------------------------------------------------- the lists

PLAN = Plan(
    (Layout(("a", "b"), (18 * 40, 30), (ConvKernel(9, 2), ConvKernel())),), "model", density=1.0
)
RECIPE = recipes.smartidx()
KEY = RandomKey(PLAN.group_names, step=0, rank=0)
CHUNK = Chunk(torch.zeros(PLAN.numel), PLAN.layouts[0])
BODIES = Bodies(Message([CHUNK], PLAN, 0, RECIPE.memory), RECIPE, Stats(), rank=0)


def lists_of(entries: Entries) -> list[EntryList]:
    return KernelPatterns().encode(entries, PLAN, PLAN, RECIPE, KEY)


def of_kernels(signs: Tensor) -> Entries:
    """Whole kernels, the first ones of parameter a, as entries of magnitude 2."""
    kernels, values = torch.arange(len(signs)).int(), torch.where(signs.flatten(), -2.0, 2.0)
    nothing = kernels[:0], values[:0]
    return Entries(*ops.join_kernels([kernels], [values], *nothing, *PLAN.kernels.tables))


def test_a_pattern_and_its_opposite_are_shared():
    minus = torch.rand(1, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    signs = torch.cat([minus ^ bool(i % 3) for i in range(40)])
    lists = lists_of(of_kernels(signs))
    assert [each.count for each in lists] == [9 * 40, 0, 0]
    # A mean, the pattern, a table, a state, and at most a bit for every kernel.
    assert len(lists[0].values) <= 4 + 1 + 2 + 4 + 4 + 5


def test_kernels_without_a_pattern_send_their_signs():
    signs = torch.rand(40, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    lists = lists_of(of_kernels(signs))
    assert [each.count for each in lists] == [0, 9 * 40, 0]
    assert len(lists[1].values) == 4 + 45


def test_a_kernel_that_lacks_an_element_is_no_kernel():
    whole = of_kernels(torch.zeros(2, 9, dtype=torch.bool))
    lists = lists_of(Entries(whole.positions[1:], whole.values[1:]))
    assert [each.count for each in lists] == [0, 9, 8]


def test_an_entry_in_two_lists_is_refused():
    kernel, nothing, single = (torch.tensor(at, dtype=torch.int32) for at in ([0], [], [4]))
    of_kernels = CountedUniverse(PLAN.kernels.starts, int(PLAN.kernels.starts[-1]))
    universes = (of_kernels, of_kernels, PLAN)
    positions = map(RECIPE.codec.encode, (nothing, kernel, single), universes)
    mean = torch.tensor([1.0]).view(torch.uint8)
    signs = torch.zeros(2, dtype=torch.uint8)
    body = torch.cat([*positions, mean, signs, mean, signs[:1]])
    with pytest.raises(ValueError, match="an entry comes twice"):
        KernelPatterns().decode(body, PLAN, PLAN, RECIPE, KEY)


@pytest.mark.parametrize("codec", ["elias_fano", "golomb", "raw"])
def test_few_kernels_beside_many_other_entries(codec):
    """A list of kernels never takes more positions than there are kernels."""
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.Linear(20, 30))
    state = CompressionState(model, recipes.smartidx(0.5, codec=codec))
    grads = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
    assert sum(int(mean.count_nonzero()) for mean in state.reduce(grads).values()) > 300


def test_a_model_without_convolutions_sends_entries_alone():
    state = CompressionState(nn.Linear(20, 30), recipes.smartidx(0.1))
    sent = state.reduce({"weight": torch.randn(30, 20), "bias": torch.randn(30)})
    assert sum(int(mean.count_nonzero()) for mean in sent.values()) == 63
    assert state.stats.packages["individual"].entries == 63


def a_body() -> Tensor:
    signs = torch.rand(70, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    signs[:50] = signs[0]
    chosen = of_kernels(signs)
    keep = torch.ones(len(chosen), dtype=torch.bool)
    keep[-3:] = False
    some = Entries(chosen.positions[keep], chosen.values[keep])
    body = BODIES.encode(some, PLAN)
    found = BODIES.decode(body, PLAN)
    assert torch.equal(found.positions, some.positions)
    assert torch.equal(found.values, some.values)
    return body


BODY = bytes(a_body().tolist())


@settings(max_examples=200)
@given(st.data())
def test_altered_bytes_give_entries_within_the_plan_or_are_refused(data):
    wire = bytearray(BODY)
    for bit in data.draw(st.lists(st.integers(0, 8 * len(wire) - 1), max_size=3)):
        wire[bit // 8] ^= 1 << bit % 8
    wire = wire[: data.draw(st.integers(0, len(wire)) | st.just(len(wire)))]
    wire += data.draw(st.binary(max_size=3))
    body = torch.tensor(list(wire), dtype=torch.uint8)
    try:
        found = BODIES.decode(body, PLAN)
    except ValueError:
        return
    assert found.values.isfinite().all()
    assert (found.positions.diff() > 0).all()
    assert not len(found) or 0 <= int(found.positions[0]) <= int(found.positions[-1]) < PLAN.numel
