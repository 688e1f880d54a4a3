"""Lists of entries in plain PyTorch: positions by Elias-Fano, then what they are worth."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddp_compress.ops import host
from ddp_compress.ops.reference.elias_fano import elias_fano_decode, elias_fano_size
from ddp_compress.ops.reference.wire_format import DecodeError

UNUSED = 2**31 - 1  # the position in a slot that holds none


def entries_decode(
    bodies: Sequence[Tensor], group_ends: Tensor, numel: int, k: int, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Decode the lists of W ranks; nothing in them is trusted.

    A list is a message of `elias_fano_encode`, then the values of its positions in a type, or the
    mean of every group, fp32. They must be finite, as many as there are positions (or groups), and
    no position may lie behind the last group.

    Args:
        bodies: W of `[B]` uint8, where B may differ.
        group_ends: `[G]` int32, ascending: the position behind every group's last.
        numel: positions of the message.
        k: slots of a list, at least G.
        dtype: of values, float32, float16 or bfloat16; None for means.

    Returns:
        Positions `[W, k]` int32, ascending, then 2**31 - 1 in unused slots; values `[W, k]` fp32,
        in unused slots 0; words `[W, 1 + G]` int64: the bytes that positions took or a negative
        `DecodeError`, which leaves the rest without meaning, and how many positions lie before the
        end of each group.

    Source:
        Elias 1974; Fano 1971, for the positions.

    Example:
        >>> bodies = [torch.tensor([74, 1, 0, 0, 128, 63], dtype=torch.uint8)]
        >>> ends = torch.tensor([8], dtype=torch.int32)
        >>> entries_decode(bodies, ends, numel=8, k=3, dtype=None)
        (tensor([[0, 5, 6]], dtype=torch.int32), tensor([[1., 1., 1.]]), tensor([[2, 3]]))
    """
    shape = len(bodies), k
    indices = host.full(shape, UNUSED, dtype=torch.int32)
    values = host.full(shape, 0.0, dtype=torch.float32)
    words = []
    for body, own_indices, own_values in zip(bodies, indices, values, strict=True):
        found, status = elias_fano_decode(body, numel, k)
        own_indices[: len(found)] = found
        edges = torch.searchsorted(found, group_ends)
        if status >= 0:
            rest = body[elias_fano_size(numel, k) :]
            if not _read(rest, edges, len(found), dtype, own_values):
                status = status.new_tensor([DecodeError.BAD_VALUES])
        words.append(torch.cat([status, edges]))
    return indices, values, torch.stack(words)


def _read(
    data: Tensor, edges: Tensor, count: int, dtype: torch.dtype | None, values: Tensor
) -> bool:
    """Fill in the values of so many positions [k]; whether they are good."""
    kind = dtype or torch.float32
    wanted = len(edges) if dtype is None else count
    complete = data[: len(data) // kind.itemsize * kind.itemsize].clone().view(kind).float()
    given = torch.nn.functional.pad(complete, (0, max(0, wanted - len(complete))))[:wanted]
    inside = int(edges[-1]) if len(edges) else 0
    if dtype is None:
        counts = edges.diff(prepend=edges.new_zeros(1))
        values[:inside] = given.repeat_interleave(counts)
    else:
        values[:count] = given
    exact = len(data) == wanted * kind.itemsize
    return exact and inside == count and bool(given.isfinite().all())
