"""`advise`: from a model and its ranks to advice."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_compress.advise.advice import Advice
from ddp_compress.advise.extras import rich
from ddp_compress.advise.hosts import measure_inside
from ddp_compress.advise.link import Link, measure
from ddp_compress.advise.measuring import Measuring
from ddp_compress.advise.methods import DEFAULT, baselines, of_recipes
from ddp_compress.advise.outlook import Setting
from ddp_compress.advise.ranks import Ranks
from ddp_compress.advise.workload import Workload, measure_step, of_model, of_size
from ddp_compress.checks import check_count
from ddp_compress.recipe import Recipe
from ddp_compress.transport.comm import PeerError
from ddp_compress.transport.groups import backends
from ddp_compress.transport.nodes import Within, check_within, claim


def advise(
    model: nn.Module | int,
    *,
    step: float | None = None,
    inputs: Sequence[object] | Tensor | None = None,
    recipes: Sequence[str | Recipe] = DEFAULT,
    density: float | None = None,
    within: Within | None = None,
    process_group: dist.ProcessGroup | None = None,
    link: Link | None = None,
    ranks: int | None = None,
    progress: bool = True,
) -> Advice:
    """Measure what an exchange of a model's gradients takes, with every method, on these ranks.

    All ranks call it together, before training, in place of guessing. Gradients are made up, of the
    model's shapes; the model itself does not change. What a method costs in accuracy is not
    measured.

    Args:
        model: the model, DDP or not, on the device where it will train; or how many parameters
            there would be.
        step: seconds of forward and backward of one step, without an exchange. None: measured with
            ``inputs``; without those nothing is hidden behind backward.
        inputs: what the model is called with; whatever it returns is summed and differentiated.
            Gradients and buffers stay as they are.
        recipes: see `ddp_compress.recipes`; made, or as texts such as "topk,density=0.001".
        density: of those given as texts; None for each recipe's own.
        within: see `CompressionState`: of the recipes.
        process_group: the ranks; None for the default group.
        link: for a process that is alone: what to assume.
        ranks: likewise, how many.
        progress: whether rank 0 shows a progress bar.

    Returns:
        The advice, the same on every rank: `Advice.print` shows it.

    Raises:
        ValueError, TypeError: an argument is wrong, on this rank.
        PeerError: on every rank, where ranks were given different models or failed to describe
            theirs.
        RuntimeError: ranks could not reach each other.
        ImportError: ``progress`` needs rich, which is not installed.

    Example:
        >>> from ddp_compress.advise import Link
        >>> advice = advise(100_000, step=0.01, recipes=["topk"], progress=False,
        ...     link=Link(rate=1e8, latency=1e-3), ranks=2)
        >>> advice.pays
        True
    """
    begin = time.perf_counter()
    check_within(within)
    if progress:
        rich()  # its lack shows before ranks wait for each other
    workload = _workload(model, step)
    methods = [*baselines(workload.parameters), *of_recipes(recipes, density)]
    given = _inputs(model, step, inputs)
    with _process_group():
        measuring = Ranks(process_group, _device(model, process_group))
        _check_assumptions(measuring.world_size == 1, link, ranks)
        per_node = 1

        def setting() -> str:
            nonlocal per_node
            per_node = _per_node(within)
            words = zlib.crc32(repr([each.recipe for each in methods]).encode())
            return (
                f"{workload.describe()}, {'with' if given else 'without'} inputs, {per_node} ranks "
                f"a node, {', '.join(each.name for each in methods)} (words: {words})"
            )

        with _together():
            measuring.agree(setting)
            if given is not None:
                assert isinstance(model, nn.Module)
                seconds = measure_step(_bare(model), given, measuring)
                workload = Workload(workload.parameters, seconds)
            here = Setting(ranks or measuring.world_size, link or measure(measuring))
            inside = None if measuring.world_size == 1 else measure_inside(measuring)
            with _bar(progress and measuring.rank == 0, len(methods) * Measuring.PARTS) as done:
                found = Measuring(workload, measuring, here, within, per_node, done)
                outlooks = list(found.outlooks(methods))
        is_measured = measuring.world_size > 1
    seconds = time.perf_counter() - begin
    return Advice(workload, here, is_measured, outlooks, inside, seconds)


def _bare(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _inputs(
    model: nn.Module | int, step: float | None, inputs: Sequence[object] | Tensor | None
) -> Sequence[object] | None:
    """What the model is called with, if its step is to be measured."""
    if inputs is None or step is not None:
        return None
    if not isinstance(model, nn.Module):
        raise ValueError("inputs need a model to be called: give the model, or step=SECONDS")
    return [inputs] if isinstance(inputs, Tensor) else inputs


def _workload(model: nn.Module | int, step: float | None) -> Workload:
    if step is not None and not step >= 0:
        raise ValueError(f"step must be seconds of forward and backward, 0 or more; got {step}")
    if isinstance(model, nn.Module):
        return Workload(of_model(model), step or 0.0)
    check_count("model, if it is a number of parameters,", model, least=1)
    return Workload(of_size(model), step or 0.0)


def _device(model: nn.Module | int, group: dist.ProcessGroup | None) -> torch.device:
    """Where the model is, or would be."""
    if isinstance(model, nn.Module):
        return next(iter(model.parameters())).device
    on_gpu = backends(group).get("cuda", "gloo") != "gloo" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def _check_assumptions(alone: bool, link: Link | None, ranks: int | None) -> None:
    """A link is measured, or assumed by a process that is alone."""
    if alone and (link is None or ranks is None):
        raise ValueError(
            "one process alone has no link to measure: start it on the ranks that train, as in "
            "`torchrun --nproc_per_node=8 -m ddp_compress.advise`, or say what to assume: "
            "--link 1gbit --latency 1ms --ranks 16; in a script link=Link(1e9, 1e-3), ranks=16"
        )
    if not alone and (link is not None or ranks is not None):
        raise ValueError(
            "several processes measure their link and their number: leave out link and ranks, or "
            "start one process alone"
        )
    if ranks is not None:
        check_count("ranks", ranks, least=2)


def _per_node(within: Within | None) -> int:
    """How many ranks share a node, and exchange a slice each."""
    if within is None:
        return 1
    mine = claim(within)
    if mine.ranks is None:
        raise ValueError(
            'within="node" finds nodes by torchrun: start with it, or give the group of a node'
        )
    return len(mine.ranks)


@contextmanager
def _process_group() -> Iterator[None]:
    """The one that there is, or one of this process alone."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """What the process group says where ranks lose each other, in one line."""
    try:
        yield
    except (NotImplementedError, PeerError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise RuntimeError(
            "the ranks have lost each other: one has ended, or a link has failed, while they "
            f"measured ({lines[0] if lines else type(error).__name__})"
        ) from error


@contextmanager
def _bar(shown: bool, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar, and what is to be called for each of its parts."""
    if not shown:
        yield lambda: None
        return
    with rich().progress.Progress(transient=True) as progress:
        task = progress.add_task("measuring", total=total)
        yield lambda: progress.advance(task)
