"""How ranks share what they selected: one idea a file. Nothing else knows that ranks exist."""

from ddp_compress.exchange.all_gather import AllGather
from ddp_compress.exchange.comm import Comm, PeerError

__all__ = ["AllGather", "Comm", "PeerError"]
