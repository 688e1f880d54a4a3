"""Twin of csrc/cpu/accumulate.cpp."""

from torch import Tensor


def accumulate(
    residual: Tensor,
    grad: Tensor,
    momentum: Tensor | None,
    mu: float,
    next_residual: Tensor,
    next_momentum: Tensor | None,
) -> None:
    """Take a gradient into memory: into another than it was in before.

    ``next_momentum = mu * momentum + grad; next_residual = residual + next_momentum``; without a
    momentum tensor the gradient itself is added. What was there before stays as it is.

    Args:
        residual: [N], fp32 (fp64 for an fp64 gradient).
        grad: [N], fp32, bf16, fp16 or fp64.
        momentum: [N] like ``residual``, or None.
        mu: factor of the old momentum.
        next_residual: [N] like ``residual``, to be filled.
        next_momentum: [N] like ``momentum``, to be filled; None where that is None.

    Example:
        >>> import torch
        >>> residual, grad = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5])
        >>> after = torch.empty(2)
        >>> accumulate(residual, grad, None, 0.0, after, None)
        >>> residual, after
        (tensor([1., 2.]), tensor([1.5000, 2.5000]))
    """
    moved = grad.to(residual.dtype)
    if momentum is not None and next_momentum is not None:
        moved = next_momentum.copy_(momentum).mul_(mu).add_(moved)
    next_residual.copy_(residual).add_(moved)
