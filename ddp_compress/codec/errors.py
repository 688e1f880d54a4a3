"""The words for what a decoder found wrong."""

from torch import Tensor

from ddp_compress.message.universe import Universe
from ddp_compress.ops.reference.wire_format import DecodeError


def bytes_read(codec: str, status: Tensor, universe: Universe, truncated: str) -> int:
    """The bytes that a decoder read, or the error it met.

    Args:
        codec: whose status it is.
        status: [1] int64, from a decoding op.
        universe: what the message may hold.
        truncated: what to say where bytes are missing.

    Raises:
        ValueError: the status is a `DecodeError`.

    Example:
        >>> import torch
        >>> bytes_read("golomb", torch.tensor([12]), universe=None, truncated="")
        12
    """
    found = int(status)
    if found >= 0:
        return found
    words = {
        DecodeError.TRUNCATED: truncated,
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
