"""What a state holds on to, what its copies share, and what it tells other ranks of itself."""

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_compress import CompressionState, Layout, Recipe, recipes
from ddp_compress.memory import MomentumCorrection
from ddp_compress.message.delivery import Deliveries
from ddp_compress.message.message import Message
from ddp_compress.recipe import Tensors
from ddp_compress.select import TopK
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.phases import Phases


def grads(step: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(step)
    return {"weight": torch.randn(8, generator=draw), "bias": torch.randn(2, generator=draw)}


def state_of(recipe: Recipe) -> CompressionState:
    return CompressionState(nn.Linear(4, 2), recipe)


def test_a_shallow_copy_is_closed_by_itself():
    state = state_of(recipes.topk(0.5))
    state.reduce(grads(0))
    copy.copy(state).close()
    state.reduce(grads(1))
    assert state.step == 2


def test_an_abandoned_step_lets_go_of_its_gradients():
    """After a restart gradients are held back until the last bucket."""
    state = state_of(recipes.topk(0.5, "bucket"))
    resumed = state_of(recipes.topk(0.5, "bucket"))
    for name in ("weight", "bias"):
        flat = grads()[name]
        state.push(flat, Layout((name,), (len(flat),)), last=name == "bias")
    resumed.load_state_dict(state.state_dict())
    flat = torch.ones(8)
    held = weakref.ref(flat)
    resumed.push(flat, Layout(("weight",), (8,)), last=False)
    del flat
    assert held() is not None
    resumed.abandon_step()
    assert held() is None


@dataclass(frozen=True)
class Other(TopK):
    """A selection with an option that is a function, and no schedule."""

    norm: Callable[[Tensor], Tensor] = torch.abs


class Plain(MomentumCorrection):
    """A memory whose options `repr` does not tell."""

    __repr__ = object.__repr__


def told(recipe: Recipe) -> str:
    return state_of(recipe)._description(density=0.5)


def test_options_are_told_to_the_other_ranks():
    recipe = recipes.topk(0.5)
    words = told(replace(recipe, select=Other(0.5, "model")))
    assert "Other(scope=model, seed=None, norm=abs)" in words
    assert "wire version 2" in words
    assert "0x" not in told(replace(recipe, memory=Plain(0.9, clip=2.0)))
    assert "Plain(clip=2.0)" in told(replace(recipe, memory=Plain(0.9, clip=2.0)))
    assert "momentum=0.5" in told(recipes.sbc(0.5, momentum=lambda step: 0.5))
    state_of(replace(recipe, select=Other(0.5, "model"))).reduce(grads())


@pytest.fixture
def group() -> Any:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_a_checkpoint_can_be_looked_at_where_the_group_is_gone(group):
    ddp = DistributedDataParallel(nn.Linear(4, 2))
    saved = CompressionState(ddp, recipes.topk(0.5)).state_dict()
    dist.destroy_process_group()
    CompressionState(ddp, recipes.topk(0.5)).load_state_dict(saved)


@dataclass(frozen=True)
class BringsNothing:
    """An exchange that sends nothing."""

    many_phase: ClassVar[bool] = False
    has_large_sender: ClassVar[bool] = False
    tensors: ClassVar[Tensors] = {}

    def check(self, recipe: Recipe) -> None:
        pass

    def run(self, message: Message, recipe: Recipe, channel: Channel) -> Phases[Deliveries]:
        yield from channel.share(lambda: torch.empty(0, dtype=torch.uint8))
        return []


def test_where_nothing_is_brought_the_mean_is_zero_and_memory_has_the_gradient():
    recipe = replace(recipes.topk(0.5), exchange=BringsNothing())
    state = CompressionState(nn.Linear(2, 1, bias=False), recipe)
    mean = state.reduce({"weight": torch.tensor([[1.0, 2.0]])})
    assert mean["weight"].tolist() == [[0.0, 0.0]]
    assert state.memory()["residual"]["weight"].tolist() == [1.0, 2.0]
