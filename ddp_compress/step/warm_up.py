"""Before ranks meet, a GPU runs once what a recipe will ask of it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ddp_compress.message.chunk import Chunk
from ddp_compress.ops.devices import side_stream
from ddp_compress.stages import Stages
from ddp_compress.stats import Stats
from ddp_compress.step.buckets import Buckets
from ddp_compress.step.parameters import Parameters
from ddp_compress.step.peers import Peers
from ddp_compress.step.settings import Settings
from ddp_compress.step.store import ParameterStore
from ddp_compress.step.transaction import Transaction
from ddp_compress.step.worker import Worker
from ddp_compress.transport.comm import Comm, PeerError

STEPS = 2  # the second finds what the first has kept
NUMEL = 8192  # of a parameter: as many as top-k takes a sample of
PARAMETERS = 16  # of a dtype: so many that their tables are sent as a large model's are


def warm_up(
    settings: Settings,
    parameters: Parameters,
    find_unused: bool,
    scale: Tensor | None,
    worker: Worker | None,
    step: int,
) -> None:
    """Take steps of a rank alone, and forget them; on the CPU nothing is done.

    CUDA loads a kernel when it is first launched, and may wait for the whole device to do so; in
    the middle of backward that is for collectives as well, which wait for other ranks. PyTorch's
    first pinned memory waits, too. Nothing can load the kernels of PyTorch's operators but to run
    them, so a recipe's parts run as they will: a throwaway gradient, of a few of the model's
    parameters, goes all the way, to memory and back.

    What only several ranks do is not reached, nor kernels that PyTorch chooses by a tensor's size.

    Args:
        settings: the state's.
        parameters: the model's.
        find_unused: whether a parameter may be left out of a step.
        scale: [], of the loss; None for 1.
        worker: the state's.
        step: the next.

    Raises:
        Exception: whatever the recipe's parts raise.
    """
    device = parameters.device
    if device.type != "cuda":
        return
    peers = Peers(None)
    large_sender = settings.recipe.exchange.has_large_sender
    peers.comm = Comm(None, Stats(), device, large_sender, alone=True)
    peers.worker = worker
    store = ParameterStore(settings.recipe.tensors)
    for _ in range(STEPS):
        transaction = Transaction(settings, store, Buckets(), peers, step, Stages())
        for chunk in _chunks(parameters, settings.min_numel, find_unused, scale):
            transaction.add(chunk)
        try:
            transaction.finish()
        except PeerError as error:  # which this rank has told itself
            raise error.__cause__ or error from None
        finally:
            side_stream(device).join()  # no future does, and what is let go of was given by others


def _chunks(
    parameters: Parameters, min_numel: int, find_unused: bool, scale: Tensor | None
) -> Iterator[Chunk]:
    """A gradient for every dtype, with a parameter of every kind, and some small ones more.

    It is one of moderate size, if there is any: the smallest of `NUMEL` elements, else the largest.
    """
    device, kinds = parameters.device, dict[torch.dtype, dict[object, str]]()
    named, here = parameters.named, parameters.here
    trained = {n: here[n] for n, p in named.items() if p.requires_grad and p.device == device}
    for name, parameter in sorted(trained.items(), key=lambda each: -each[1].numel()):
        numel, kernels = parameter.numel(), parameters.layout_of([name]).kernels
        names = kinds.setdefault(parameter.dtype, {})
        kind = numel < max(1, min_numel), kernels[0].numel > 1
        if numel >= NUMEL or kind not in names:
            names[kind] = name
    for dtype, by_kind in kinds.items():
        chosen = list(by_kind.values())
        small = [n for n, p in trained.items() if p.dtype == dtype and p.numel() < NUMEL]
        chosen += [name for name in small if name not in chosen][: PARAMETERS - len(chosen)]
        layout = parameters.layout_of(chosen)
        grad = torch.linspace(-1.0, 1.0, layout.numel, dtype=dtype, device=device)
        yield Chunk(grad, layout, may_be_unused=find_unused, scale=scale)
