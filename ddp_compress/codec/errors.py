"""Turn what a decoding op says into the bytes read, or an error in words."""

from collections.abc import Callable

from torch import Tensor

from ddp_compress.message.universe import Universe
from ddp_compress.ops.reference.wire_format import DecodeError


def bytes_read(codec: str, status: Tensor, universe: Universe, wanted: Callable[[], str]) -> int:
    """The bytes that a decoder read, or the error it met.

    Args:
        codec: whose status it is.
        status: [1] int64, from a decoding op.
        universe: what the message may hold.
        wanted: what was expected where bytes are missing; called in that case alone.

    Raises:
        ValueError: the status is a `DecodeError`.

    Example:
        >>> import torch
        >>> bytes_read("golomb", torch.tensor([12]), universe=None, wanted=str)
        12
    """
    found = int(status)
    if found >= 0:
        return found
    words = {
        DecodeError.TRUNCATED: f"the message ends early; expected {wanted()}",
        DecodeError.OUT_OF_RANGE: (
            f"a position lies outside its tensor; expected positions below {universe.numel} in all"
        ),
        DecodeError.NOT_ASCENDING: "positions do not ascend; expected each above the one before",
        DecodeError.TOO_MANY: (
            f"more positions than a tensor or the message can hold; expected at most {universe.k}"
        ),
        DecodeError.DIRTY_PADDING: "an unused bit is set; expected only zeros there",
    }
    raise ValueError(f"{codec}: {words[DecodeError(found)]}")
