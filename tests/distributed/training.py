"""A small model, its data, and plain-torch twins of what compressed training should do."""

import copy
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ddp_compress import CompressionState, compress_hook
from tests.table import Row

LEARNING_RATE = 0.05
SEVERAL_BUCKETS = 0.001  # MiB: two buckets for `small_model` once DDP has rebuilt them
MANY_BUCKETS = 0.0002  # MiB: a bucket for almost every parameter


def small_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """755 parameters, the same on every rank: weights in rows, a norm, biases."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = nn.Sequential(
            nn.Linear(12, 24), nn.Tanh(), nn.LayerNorm(24), nn.Linear(24, 14), nn.Linear(14, 3)
        )
    return model.to(dtype)


def wrap(
    model: nn.Module,
    row: Row,
    hook: Callable[..., Any] = compress_hook,
    flush_bytes: int = 256 * 1024,
    bucket_cap_mb: float = SEVERAL_BUCKETS,
    **options: Any,
) -> tuple[DistributedDataParallel, CompressionState]:
    """The model in DDP, its gradients compressed."""
    ddp = DistributedDataParallel(model, bucket_cap_mb=bucket_cap_mb, **options)
    state = CompressionState(ddp, row.recipe, min_numel=row.min_numel, flush_bytes=flush_bytes)
    ddp.register_comm_hook(state, hook)
    return ddp, state


def loss(model: nn.Module, rank: int, number: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of one batch; batches are numbered and differ between ranks."""
    generator = torch.Generator().manual_seed(1000 * rank + number)
    inputs = torch.randn(8, 12, generator=generator)
    targets = torch.stack([inputs[:, :4].sum(1), inputs[:, 4] * inputs[:, 5], inputs[:, 6]], 1)
    device = next(model.parameters()).device
    outputs = model(inputs.to(device, dtype)).float()
    return (outputs - targets.to(device)).square().mean()


def backward(ddp: nn.Module, number: int, dtype: torch.dtype = torch.float32) -> None:
    """Forward and backward of this rank's batch; gradients are averaged through the recipe."""
    ddp.zero_grad()
    loss(ddp, dist.get_rank(), number, dtype).backward()


def descend(model: nn.Module) -> None:
    """Plain SGD."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=LEARNING_RATE)


def train(ddp: nn.Module, numbers: Iterable[int], dtype: torch.dtype = torch.float32) -> None:
    for number in numbers:
        backward(ddp, number, dtype)
        descend(ddp)


def grads(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def digest(tensors: Iterable[Tensor]) -> str:
    """The same for two lists of tensors only if they are equal bit for bit; of shards all are."""
    total = hashlib.sha256()
    for tensor in tensors:
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        flat = whole.detach().cpu().contiguous().flatten()
        total.update(flat.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def weights(model: nn.Module) -> str:
    return digest(model.parameters())


def memory(state: CompressionState) -> dict[str, str]:
    """The state's tensors and its step, as digests: what an aborted step must leave alone."""
    tensors = state.state_dict()["tensors"]
    kept = {
        f"{slot} of {name}": digest([tensor])
        for slot, by_name in tensors.items()
        for name, tensor in sorted(by_name.items())
        if tensor.any()  # nothing is kept as zeros, or not yet kept at all
    }
    return {"step": str(state.step), **kept}


def plain_grads(model: nn.Module, rank: int, numbers: Sequence[int]) -> list[Tensor]:
    """A rank's own gradient, summed over batches."""
    model.zero_grad()
    for number in numbers:
        loss(model, rank, number).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def send_top(residual: Tensor, density: float) -> Tensor:
    """The largest entries of a residual, zeros elsewhere; they leave it."""
    numel = residual.numel()
    k = min(numel, max(1, round(density * numel)))
    top = residual.abs().flatten().topk(k).indices
    sent = torch.zeros(numel).index_copy(0, top, residual.flatten()[top]).view_as(residual)
    residual -= sent
    return sent


def simulate_topk(
    world_size: int,
    density: float,
    batches: Sequence[Sequence[Sequence[int]]],
    build: Callable[[], nn.Module] = small_model,
) -> tuple[nn.Module, list[list[Tensor]]]:
    """Train a model by top-k in every parameter, all ranks in one process, plain torch.

    Args:
        world_size: W.
        density: share of each parameter's elements.
        batches: at every step, for every rank, the batches that it has.
        build: makes the model.

    Returns:
        The trained model, and every rank's residuals.
    """
    model = build()
    residuals = [[torch.zeros_like(p) for p in model.parameters()] for _ in range(world_size)]
    for step in batches:
        means = [torch.zeros_like(p) for p in model.parameters()]
        for rank, numbers in enumerate(step):
            local = plain_grads(copy.deepcopy(model), rank, numbers)
            for residual, grad, mean in zip(residuals[rank], local, means, strict=True):
                residual += grad
                mean += send_top(residual, density) / world_size
        for parameter, mean in zip(model.parameters(), means, strict=True):
            parameter.grad = mean
        descend(model)
    return model, residuals
