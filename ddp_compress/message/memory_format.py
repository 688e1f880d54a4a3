"""In which order the elements of a parameter, and so of its gradient, lie in memory."""

from torch import Tensor


def dim_order(parameter: Tensor) -> tuple[int, ...]:
    """The dimensions from the outermost to the innermost, as DDP lays the gradient into a bucket.

    That is as the parameter lies in memory; in the order of its indices where it has gaps.

    Example:
        >>> import torch
        >>> weight = torch.empty(8, 4, 3, 3)
        >>> dim_order(weight), dim_order(weight.to(memory_format=torch.channels_last))
        ((0, 1, 2, 3), (0, 2, 3, 1))
    """
    if not parameter.is_contiguous():
        order = parameter.dim_order()
        if parameter.permute(order).is_contiguous():
            return tuple(order)
    return tuple(range(parameter.dim()))


def flatten(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A tensor's elements [N] as the parameter's lie in memory; perhaps the tensor's own memory.

    Args:
        tensor: of as many elements as the parameter, in the order of its indices.
        parameter: see above.
    """
    return tensor.reshape(parameter.shape).permute(dim_order(parameter)).flatten()


def unflatten(flat: Tensor, parameter: Tensor, like: Tensor) -> Tensor:
    """`flatten` undone, in the shape of ``like``.

    Example:
        >>> import torch
        >>> weight = torch.arange(6).view(3, 2).T
        >>> flat = flatten(weight, weight)
        >>> flat, unflatten(flat, weight, weight).equal(weight)
        (tensor([0, 1, 2, 3, 4, 5]), True)
    """
    order = dim_order(parameter)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    shape = [parameter.shape[dim] for dim in order]
    return flat.view(shape).permute(inverse).reshape(like.shape)
