"""Twin of csrc/cpu/topk.cpp."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddp_compress.ops import host
from ddp_compress.ops.reference.random_words import hashes
from ddp_compress.ops.reference.segment_means import exact_mean, segment_means


def topk(
    grads: Sequence[Tensor],
    residuals: Sequence[Tensor],
    momenta: Sequence[Tensor],
    momentum: float,
    bounds: Tensor,
    groups: Tensor,
    ks: Tensor,
    salts: Tensor,
    heavier: bool,
    sums: Sequence[Tensor],
    next_momenta: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Find the k largest entries of the accumulated gradient in every group.

    The accumulated gradient is ``a = residual + grad``, or ``residual + (momentum * momenta +
    grad)``. Of each group the k entries of largest magnitude are taken, zeros never; of equals at
    the cut the first, or with ``salts`` those of the largest hash (see `hashes`). With ``heavier``
    the k largest positive and the k most negative entries compete: the side whose mean is larger
    in magnitude is taken, the negative one when they are equal (SBC, Alg. 2). Nothing is written
    but ``sums`` and ``next_momenta``.

    Args:
        grads: chunks of the message, [N_c] each, one dtype (fp32, bf16, fp16, fp64); N in all.
        residuals: one for each chunk, fp32 (fp64 for fp64 gradients).
        momenta: like ``residuals``, or empty.
        momentum: factor of ``momenta``.
        bounds: [P + 1], int64, offsets of the P parameters in the message, from 0 to N.
        groups: [P], int64, the group of each parameter; -1 for parameters left out. A group's
            parameters follow one another, but for left-out ones.
        ks: [G], int64, the most entries to take from each group, at least 1.
        salts: [P], int64, see `salts`; [0] where the first of equals are taken.
        heavier: whether only the heavier-sided entries are taken.
        sums: other memory like ``residuals``, to be filled with the accumulated gradient, all of
            it unless it is not finite; or empty.
        next_momenta: the same for ``momentum * momenta + grad``: as many as there are ``sums``,
            or none without ``momenta``.

    Returns:
        The positions [K] (int32, ascending in the message), the accumulated values [K]; a bool
        [1]: whether every accumulated value of the groups is finite, or else the rest has no
        meaning; how many are taken of every group, [G] int64; and with ``heavier`` their exact
        means (see `segment_means`), [G] fp32, else [0].

    Raises:
        RuntimeError: shapes or dtypes do not fit.

    Example:
        >>> indices, values, finite, counts, _ = topk(
        ...     [torch.tensor([1.0, -3.0, 2.0])], [torch.zeros(3)], [], 0.0,
        ...     bounds=torch.tensor([0, 3]), groups=torch.tensor([0]), ks=torch.tensor([2]),
        ...     salts=torch.tensor([9]), heavier=False, sums=[], next_momenta=[])
        >>> indices, values, finite, counts
        (tensor([1, 2], dtype=torch.int32), tensor([-3.,  2.]), tensor([True]), tensor([2]))
    """
    moved = _moved(grads, residuals[0].dtype, momenta, momentum)
    accumulated = torch.cat([r.flatten() for r in residuals]) + moved
    for left, whole in ((sums, accumulated), (next_momenta, moved)):
        for out, part in zip(left, whole.split([g.numel() for g in grads]), strict=False):
            out.copy_(part)
    edges, of_param = bounds.tolist(), groups.tolist()
    found, finite = [], True
    for group, k in enumerate(ks.tolist()):
        spans = [host.arange(edges[p], edges[p + 1]) for p, g in enumerate(of_param) if g == group]
        positions = torch.cat(spans) if spans else host.empty(0, dtype=torch.int64)
        values = accumulated[positions]
        ranks = hashes(positions, bounds, salts) if len(salts) else torch.zeros_like(positions)
        finite = finite and bool(values.isfinite().all())
        pick = _heavier_side if heavier else _largest
        chosen = pick(values, ranks, k)
        found.append(positions[chosen])
    indices = torch.cat(found) if found else host.empty(0, dtype=torch.int64)
    counts = host.tensor([len(each) for each in found], dtype=torch.int64)
    values, flag = accumulated[indices], host.tensor([finite], dtype=torch.bool)
    means = segment_means(values, counts) if heavier else host.empty(0, dtype=torch.float32)
    return indices.int(), values, flag, counts, means


def _moved(
    grads: Sequence[Tensor], dtype: torch.dtype, momenta: Sequence[Tensor], mu: float
) -> Tensor:
    grad = torch.cat([g.flatten() for g in grads]).to(dtype)
    return torch.cat([m.flatten() for m in momenta]) * mu + grad if momenta else grad


def _largest(values: Tensor, ranks: Tensor, k: int) -> Tensor:
    """Positions, ascending, of the k largest magnitudes; equals by rank, then the first first."""
    magnitudes = values.abs()
    order = ranks.argsort(descending=True, stable=True)
    order = order[magnitudes[order].argsort(descending=True, stable=True)][:k]
    return order[magnitudes[order] > 0].sort().values


def _heavier_side(values: Tensor, ranks: Tensor, k: int) -> Tensor:
    up, down = (_largest(side, ranks, k) for side in (values.clamp(min=0), values.clamp(max=0)))
    return up if exact_mean(values[up]) > -exact_mean(values[down]) else down
