"""Twin of csrc/cpu/accumulate.cpp."""

from torch import Tensor


def accumulate(residual: Tensor, grad: Tensor, momentum: Tensor | None, mu: float) -> None:
    """Move a gradient into memory, in place, and leave zeros behind.

    ``momentum = mu * momentum + grad; residual += momentum; grad = 0``; without a momentum tensor
    the gradient itself is added.

    Args:
        residual: [N], fp32 (fp64 for an fp64 gradient).
        grad: [N], fp32, bf16, fp16 or fp64.
        momentum: [N] like ``residual``, or None.
        mu: factor of the old momentum.

    Example:
        >>> import torch
        >>> residual, grad = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5])
        >>> accumulate(residual, grad, None, 0.0)
        >>> residual, grad
        (tensor([1.5000, 2.5000]), tensor([0., 0.]))
    """
    if momentum is None:
        residual += grad
    else:
        momentum.mul_(mu).add_(grad)
        residual += momentum
    grad.zero_()
