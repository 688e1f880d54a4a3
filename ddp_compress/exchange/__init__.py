"""How ranks share what they selected: one idea a file. Nothing else knows that ranks exist."""

from ddp_compress.exchange.all_gather import AllGather
from ddp_compress.exchange.ballot_box import BallotBox
from ddp_compress.exchange.by_size import BySize
from ddp_compress.exchange.channel import Channel
from ddp_compress.exchange.comm import Comm, PeerError
from ddp_compress.exchange.rotating_owner import RotatingOwner
from ddp_compress.exchange.shared_mask import SharedMask
from ddp_compress.exchange.sharded import Sharded
from ddp_compress.exchange.worker import Worker

__all__ = [
    "AllGather",
    "BallotBox",
    "BySize",
    "Channel",
    "Comm",
    "PeerError",
    "RotatingOwner",
    "SharedMask",
    "Sharded",
    "Worker",
]
