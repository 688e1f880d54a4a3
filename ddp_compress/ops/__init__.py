"""The only door to the kernels: native where the extension is built, plain PyTorch elsewhere.

Every op here has the signature of its twin in `reference`, which documents it. On a
CUDA device the data of an op are there and its tables (bounds, groups, ks, salts, counts) on the
host. A kernel there never waits to learn how long a list has become: it fills a slot for every
entry there may be, and `_used` waits, once, and cuts the unused ones off.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddp_compress.ops import reference
from ddp_compress.ops.devices import to_device_of, to_host


def _load_native() -> bool:
    """Load the extension that stands in the package; say so, once, where that fails."""
    why = "they were not built"
    for library in Path(__file__).parents[1].glob("_C*"):
        if library.suffix in {".so", ".pyd", ".dylib"}:
            try:
                torch.ops.load_library(library)
                return True
            except OSError as error:
                why = str(error)
    warnings.warn(
        f"ddp_compress runs without its native kernels ({why}): correct, but many times slower. "
        "Install a C++ compiler and install the package again.",
        stacklevel=2,
    )
    return False


NATIVE = _load_native()
CUDA = NATIVE and torch._C._dispatch_has_kernel_for_dispatch_key("ddp_compress::topk", "CUDA")
UNUSED = 2**31 - 1  # the position in an unused slot of a CUDA kernel's list
_kernels = torch.ops.ddp_compress if NATIVE else reference


def _used(lists: Sequence[Tensor], *words: Tensor) -> tuple[Tensor, ...]:
    """Lists of entries without their unused slots, which come last. The first holds positions.

    Words [1] that the host must know come with the lists' length: it waits once for all.
    """
    if not lists[0].is_cuda:
        return (*lists, *words)
    count = torch.searchsorted(lists[0], UNUSED).view(1)
    count, *told = to_host(torch.cat([count, *words])).split(1)
    used = [each[: int(count)] for each in lists]
    return (*used, *(each.to(word.dtype) for each, word in zip(told, words, strict=True)))


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
    sums: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.topk`."""
    lists = (list(grads), list(residuals), list(momenta))
    indices, values, finite = _kernels.topk(
        *lists, momentum, bounds, groups, ks, salts, heavier, list(sums)
    )
    indices, values, finite = _used([indices, values], finite)
    return indices, values, finite


def segment_means(values: Tensor, counts: Tensor) -> Tensor:
    """See `reference.segment_means`."""
    return _kernels.segment_means(values, to_device_of(counts, values))


def accumulate(
    residual: Tensor,
    grad: Tensor,
    momentum: Tensor | None,
    mu: float,
    next_residual: Tensor,
    next_momentum: Tensor | None,
) -> None:
    """See `reference.accumulate`."""
    _kernels.accumulate(residual, grad, momentum, mu, next_residual, next_momentum)


def scatter_add(
    out: Tensor, start: int, indices: Sequence[Tensor], values: Sequence[Tensor], scale: float
) -> None:
    """See `reference.scatter_add`."""
    _kernels.scatter_add(out, start, list(indices), list(values), scale)


def elias_fano_encode(indices: Tensor, numel: int, k: int) -> Tensor:
    """See `reference.elias_fano_encode`."""
    return _kernels.elias_fano_encode(indices, numel, k)


def elias_fano_decode(data: Tensor, numel: int, k: int) -> tuple[Tensor, Tensor]:
    """See `reference.elias_fano_decode`."""
    indices, status = _kernels.elias_fano_decode(data, numel, k)
    indices, status = _used([indices], status)
    return indices, status


def golomb_encode(indices: Tensor, bounds: Tensor) -> Tensor:
    """See `reference.golomb_encode`."""
    return _kernels.golomb_encode(indices, bounds)


def golomb_decode(data: Tensor, bounds: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """See `reference.golomb_decode`."""
    # On the host: no code tells where the next one starts.
    indices, status = _kernels.golomb_decode(to_host(data), bounds, limit)
    return to_device_of(indices, data), status


def tally(ballots: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """See `reference.tally`."""
    positions, votes = _used(_kernels.tally(list(ballots)))
    return positions, votes


def vote_keys(
    positions: Tensor, votes: Tensor, bounds: Tensor, salts: Tensor, voters: int, random: bool
) -> Tensor:
    """See `reference.vote_keys`."""
    return _kernels.vote_keys(positions, votes, bounds, salts, voters, random)


def largest(keys: Tensor, k: int) -> Tensor:
    """See `reference.largest`."""
    return _kernels.largest(keys, k)


def rans_encode(symbols: Tensor, alphabet: int) -> Tensor:
    """See `reference.rans_encode`. For the host alone: a state runs through all symbols."""
    return _kernels.rans_encode(symbols, alphabet)


def rans_decode(data: Tensor, count: int, alphabet: int) -> tuple[Tensor, Tensor]:
    """See `reference.rans_decode`. For the host alone."""
    return _kernels.rans_decode(data, count, alphabet)


def sign_encode(values: Tensor, bounds: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """See `reference.sign_encode`."""
    return _kernels.sign_encode(values, bounds, block)


def sign_decode(bits: Tensor, scales: Tensor, bounds: Tensor, block: int) -> Tensor:
    """See `reference.sign_decode`."""
    return _kernels.sign_decode(bits, scales, bounds, block)


def hadamard(values: Tensor, bounds: Tensor, salts: Tensor, inverse: bool) -> None:
    """See `reference.hadamard`."""
    _kernels.hadamard(values, bounds, salts, inverse)


def uniform_encode(
    values: Tensor, bounds: Tensor, salts: Tensor, bits: int
) -> tuple[Tensor, Tensor]:
    """See `reference.uniform_encode`."""
    return _kernels.uniform_encode(values, bounds, salts, bits)


def uniform_decode(codes: Tensor, levels: Tensor, bounds: Tensor, bits: int) -> Tensor:
    """See `reference.uniform_decode`."""
    return _kernels.uniform_decode(codes, levels, bounds, bits)
