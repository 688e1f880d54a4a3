"""The only door to the kernels: native where the extension is built, plain PyTorch elsewhere.

Every op here has the signature of its twin in `reference`, which documents it; sequences of tensors
are lists or tuples. On a CUDA device the data of an op are there and its tables (bounds, groups,
ks, salts, counts) on the host. A kernel there never waits to learn how long a list has become: it
fills a slot for every entry there may be, and a `_trimmed` op waits, once, and cuts the unused ones
off.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ddp_compress.ops import reference
from ddp_compress.ops.devices import at_once_on_host, to_device_of, to_host
from ddp_compress.ops.reference.entries import UNUSED as UNUSED

F = TypeVar("F", bound=Callable[..., Any])


def _why_not(stem: str) -> str:
    """Load a library that stands in the package; why that fails, if it does."""
    why = "they were not built"
    for library in Path(__file__).parents[1].glob(f"{stem}.*"):
        if library.suffix in {".so", ".pyd", ".dylib"}:
            try:
                torch.ops.load_library(library)
                return ""
            except OSError as error:
                why = str(error)
    return why


NATIVE_LACKS = _why_not("_C")
NATIVE = not NATIVE_LACKS
CUDA_LACKS = NATIVE_LACKS or (
    _why_not("_C_cuda") if torch.version.cuda else f"torch {torch.__version__} has no CUDA"
)
CUDA = not CUDA_LACKS
INSTALL = "pip install --force-reinstall --no-deps --no-cache-dir . (see docs/install.md)"


def _say_what_lacks() -> None:
    """Warn, once, of what runs slowly or will be refused."""
    if not NATIVE:
        warnings.warn(
            f"ddp_compress runs without its native kernels ({NATIVE_LACKS}): right, but many times "
            f"slower. Install a wheel that has them, or where a C++ compiler is: {INSTALL}",
            stacklevel=2,
        )
    elif torch.version.cuda and not CUDA and torch.cuda.device_count():  # initializes no CUDA
        warnings.warn(
            f"ddp_compress runs without its CUDA kernels ({CUDA_LACKS}): models on a GPU are "
            f"refused. Install a wheel that has them, or where nvcc is: {INSTALL}",
            stacklevel=2,
        )


_say_what_lacks()


def _kernel_of(twin: F) -> F:
    """What runs in place of a reference twin: the native kernel, where it is built."""
    return getattr(torch.ops.ddp_compress, twin.__name__) if NATIVE else twin


def _trimmed(twin: F, lists: int) -> F:
    """The same where a twin gives lists of entries: without their unused slots, which come last.

    The first list holds positions. Words, behind the lists, are what the host must know too: it
    waits once for all.
    """
    kernel = _kernel_of(twin)

    def op(*args: Any, **options: Any) -> Sequence[Tensor]:
        found: Sequence[Tensor] = kernel(*args, **options)
        if not found[0].is_cuda:
            return found
        count = torch.searchsorted(found[0], UNUSED).view(1)
        count, *words = at_once_on_host([count, *found[lists:]])
        return *(each[: int(count)] for each in found[:lists]), *words

    return cast(F, op)


def _on_host(twin: F, **steps: Callable[..., Any]) -> F:
    """The same where only the CPU has a kernel: on a GPU the twin runs, with kernels for steps."""
    kernel = _kernel_of(twin)

    def op(values: Sequence[Tensor] | Tensor, *args: Any) -> Any:
        first = values if isinstance(values, Tensor) else values[0]
        return twin(values, *args, **steps) if first.is_cuda else kernel(values, *args)

    return cast(F, op)


accumulate = _kernel_of(reference.accumulate)
cell_means = _kernel_of(reference.cell_means)  # on the host, as entropy coding is
cell_numbers = _kernel_of(reference.cell_numbers)
cell_values = _kernel_of(reference.cell_values)
elias_fano_encode = _kernel_of(reference.elias_fano_encode)
entries_decode = _kernel_of(reference.entries_decode)
golomb_encode = _kernel_of(reference.golomb_encode)
join_kernels = _on_host(reference.join_kernels)
largest = _kernel_of(reference.largest)
largest_kernels = _on_host(reference.largest_kernels)
rans_encode = _kernel_of(reference.rans_encode)  # on the host: a state runs through all symbols
rans_decode = _kernel_of(reference.rans_decode)
rotated_encode = _kernel_of(reference.rotated_encode)
rotated_add = _kernel_of(reference.rotated_add)
rotated_decode = _kernel_of(reference.rotated_decode)
scatter_add = _kernel_of(reference.scatter_add)
split_kernels = _kernel_of(reference.split_kernels)  # on the host: bodies are its work
sign_encode = _kernel_of(reference.sign_encode)
sign_add = _kernel_of(reference.sign_add)
sign_decode = _kernel_of(reference.sign_decode)
vote_keys = _kernel_of(reference.vote_keys)

topk_slots = _kernel_of(reference.topk)  # where nobody waits yet
topk = _trimmed(reference.topk, lists=2)
elias_fano_decode = _trimmed(reference.elias_fano_decode, lists=1)
tally = _trimmed(reference.tally, lists=2)
rank_kernels = _on_host(reference.rank_kernels, topk=topk)

_segment_means = _kernel_of(reference.segment_means)
_golomb_decode = _kernel_of(reference.golomb_decode)


def segment_means(values: Tensor, counts: Tensor) -> Tensor:
    """See `reference.segment_means`."""
    return _segment_means(values, to_device_of(counts, values))


def golomb_decode(data: Tensor, bounds: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """See `reference.golomb_decode`."""
    # On the host: no code tells where the next one starts.
    indices, status = _golomb_decode(to_host(data), bounds, limit)
    return to_device_of(indices, data), status
