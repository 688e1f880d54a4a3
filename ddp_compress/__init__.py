"""Compressed gradients for DistributedDataParallel, in one line.

Example:
    ``state = ddp_compress.attach(ddp_model, "sbc", density=0.001)``
"""

from ddp_compress import checkpoints, recipes, schedules
from ddp_compress.advise import Advice, Link, advise
from ddp_compress.checkpoints.all_ranks import AllRanks
from ddp_compress.checkpoints.newest import Checkpoints
from ddp_compress.checkpoints.per_rank import PerRank
from ddp_compress.checkpoints.redistribute import redistribute
from ddp_compress.federated.federated_dropout import FederatedDropout
from ddp_compress.hook import attach, compress_hook
from ddp_compress.local.local_updates import LocalUpdates
from ddp_compress.message.layout import Layout
from ddp_compress.recipe import Recipe
from ddp_compress.schedules import Schedule, exponential_warmup
from ddp_compress.stats import Stats
from ddp_compress.step.state import CompressionState
from ddp_compress.transport.comm import PeerError

__all__ = [
    "Advice",
    "AllRanks",
    "Checkpoints",
    "CompressionState",
    "FederatedDropout",
    "Layout",
    "Link",
    "LocalUpdates",
    "PeerError",
    "PerRank",
    "Recipe",
    "Schedule",
    "Stats",
    "advise",
    "attach",
    "checkpoints",
    "compress_hook",
    "exponential_warmup",
    "recipes",
    "redistribute",
    "schedules",
]
