"""Before ranks meet, a GPU runs once what a recipe will ask of it; nothing else is seen of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ddp_compress import CompressionState
from ddp_compress.message.layout import Layout
from ddp_compress.select import TopK
from ddp_compress.step import warm_up
from tests import pretend_cuda
from tests.table import ROWS, Row, every_family
from tests.test_laws import SIZES, Model, random_grads

Asked = tuple[str, ...]


@contextmanager
def asked_of_a_gpu() -> Iterator[set[Asked]]:
    """In here there is a pretended GPU; the operators that it runs, and for which dtypes."""
    asked: set[Asked] = set()
    on_either = pretend_cuda.on_either

    def note(func: Any, args: Any, kwargs: Any) -> Any:
        result = on_either(func, args, kwargs)
        leaves = [each for each in tree_leaves((args, result)) if isinstance(each, Tensor)]
        there = {str(each.dtype) for each in leaves if isinstance(each, pretend_cuda.OnCuda)}
        if there and any(each.numel() for each in leaves):
            asked.add((str(func), *sorted(there)))
        return result

    with pretend_cuda.pretend(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretend_cuda, "on_either", note)
        yield asked


def state_on(device: torch.device, row: Row) -> CompressionState:
    return CompressionState(Model(device=device), row.recipe, min_numel=row.min_numel)


@every_family
@pytest.mark.parametrize("scale", [None, 1024.0])
def test_steps_ask_nothing_of_a_gpu_that_it_was_not_asked_before(row, scale):
    with asked_of_a_gpu() as asked:
        state = state_on(pretend_cuda.CUDA, row)
        multiplied_by = None if scale is None else torch.tensor(scale).to(pretend_cuda.CUDA)
        state.loss_scale = lambda device: multiplied_by  # type: ignore[method-assign]
        flats = [torch.cat([*random_grads(i).values()]).to(pretend_cuda.CUDA) for i in range(3)]
        asked.clear()
        state._connect()
        before = asked.copy()
        for flat in flats:
            layout = Layout(tuple(SIZES), tuple(SIZES.values()))
            state.push(flat, layout, last=True, scale=multiplied_by)
        state.close()
    assert before
    assert asked == before


def test_nothing_is_seen_of_it():
    drawn, cold = torch.get_rng_state(), state_on(torch.device("cpu"), ROWS["dgc"])
    cold._connect()
    with pretend_cuda.pretend():
        state = state_on(pretend_cuda.CUDA, ROWS["dgc"])
        state._connect()
        state.close()
    assert state.state_dict() == cold.state_dict()
    assert torch.equal(torch.get_rng_state(), drawn)


def test_on_the_cpu_nothing_is_done(monkeypatch):
    monkeypatch.setattr(warm_up, "Transaction", lambda *_: 1 / 0)
    assert state_on(torch.device("cpu"), ROWS["topk"]).reduce(random_grads(0))
    with pretend_cuda.pretend(), pytest.raises(ZeroDivisionError):
        state_on(pretend_cuda.CUDA, ROWS["topk"])._connect()


def test_what_fails_in_it_is_raised_as_it_is(monkeypatch):
    with pretend_cuda.pretend():
        state = state_on(pretend_cuda.CUDA, ROWS["topk"])
        with monkeypatch.context() as patch:
            patch.setattr(TopK, "_take", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                state._connect()
        grads = {name: grad.to(pretend_cuda.CUDA) for name, grad in random_grads(0).items()}
        mean = state.reduce(grads)
        state.close()
    expected = state_on(torch.device("cpu"), ROWS["topk"]).reduce(random_grads(0))
    for name, tensor in expected.items():
        assert torch.equal(pretend_cuda.host_of(mean[name]), tensor)


def test_it_takes_a_few_parameters_of_moderate_size():
    model = torch.nn.Sequential(
        *(torch.nn.Conv2d(8, width, 3) for width in (8, 120, 200)),
        torch.nn.Linear(1000, 1000),
        torch.nn.Linear(64, 64, bias=False).half(),
        torch.nn.LayerNorm(2000).requires_grad_(False),
    )
    state = CompressionState(model, ROWS["topk"].recipe)
    chunks = list(warm_up._chunks(state._parameters, 50, find_unused=True, scale=None))
    assert [chunk.layout.names for chunk in chunks] == [
        ("3.weight", "1.weight", "0.bias", "0.weight", "1.bias", "2.bias", "3.bias"),
        ("4.weight",),
    ]


def test_it_takes_so_many_parameters_that_their_tables_are_long():
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(30)))
    parameters = CompressionState(model, ROWS["topk"].recipe)._parameters
    (chunk,) = warm_up._chunks(parameters, 0, find_unused=False, scale=None)
    assert len(set(chunk.layout.names)) == warm_up.PARAMETERS
