"""A ballot as bytes: the positions voted for, or what changed since the last ballot."""

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.exchange.bodies import COUNT_BYTES, read_count
from ddp_compress.message.universe import CountedUniverse
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_host
from ddp_compress.recipe import Codec

WHOLE, CHANGES = 0, 1


def encode(ballot: Tensor, last: Tensor | None, bounds: Tensor, codec: Codec) -> Tensor:
    """Bytes of a ballot: uint8 [B], on the host.

    The first four are a count, whose lowest bit tells which of two forms follows. Whole: the count
    of positions, the positions. Changes: the count of positions to add, the positions, then those
    to drop as *places in the last ballot*, by Golomb-Rice: where a tenth of the votes change, 4.7
    bits each in place of 12.

    Args:
        ballot: [K] int32, ascending.
        last: the ballot before, [K'], which receivers know; None where they do not.
        bounds: [P + 1] offsets of the parameters.
        codec: for positions.
    """
    if last is None:
        return _counted(WHOLE, ballot, bounds, codec)
    # Of positions that both ballots hold, two votes are counted.
    positions, votes = ops.tally([ballot, last])
    single = positions[votes == 1]
    place = torch.searchsorted(last, single).clamp_(max=max(0, len(last) - 1))
    is_drop = last[place] == single if len(last) else torch.zeros_like(single, dtype=torch.bool)
    drops = ops.golomb_encode(place[is_drop].int(), host.tensor([0, len(last)], dtype=torch.int64))
    return torch.cat([_counted(CHANGES, single[~is_drop], bounds, codec), to_host(drops)])


def decode(body: Tensor, last: Tensor | None, bounds: Tensor, codec: Codec) -> Tensor:
    """The ballot again, [K] int32, where its bytes are.

    Raises:
        ValueError: the bytes are no ballot within the bounds, or change one that is not known.
    """
    head = read_count(body)
    count, form = head >> 1, head & 1
    numel = int(bounds[-1])
    if not 0 <= count <= numel:
        raise ValueError(f"ballot: {count} positions, expected at most {numel}")
    added, used = codec.decode(body[COUNT_BYTES:], CountedUniverse(bounds, count))
    if form == WHOLE:
        return added
    if last is None:
        raise ValueError(
            "ballot: changes to a ballot that this rank does not know; load checkpoints on every "
            "rank at the same step, or on none"
        )
    drops, all_of_last = body[COUNT_BYTES + used :], host.tensor([0, len(last)], dtype=torch.int64)
    places, status = ops.golomb_decode(drops, all_of_last, len(last))
    if int(status) < 0:
        raise ValueError("ballot: the places to drop are corrupt")
    kept = torch.ones_like(last, dtype=torch.bool)
    kept[places.long()] = False
    ballot, votes = ops.tally([added, last[kept]])
    if (votes > 1).any():
        raise ValueError("ballot: a position is added that was there already")
    return ballot


def _counted(form: int, positions: Tensor, bounds: Tensor, codec: Codec) -> Tensor:
    head = host.tensor([2 * len(positions) + form], dtype=torch.int32).view(torch.uint8)
    body = codec.encode(positions, CountedUniverse(bounds, len(positions)))
    return torch.cat([head, to_host(body)])
