"""How ranks share what they selected: one idea a file. Nothing else knows that ranks exist."""

from ddp_compress.checks import check_one_of
from ddp_compress.exchange.all_gather import AllGather as AllGather
from ddp_compress.exchange.ballot_box import BallotBox as BallotBox
from ddp_compress.exchange.by_size import BySize as BySize
from ddp_compress.exchange.rotating_owner import RotatingOwner as RotatingOwner
from ddp_compress.exchange.running_average import RunningAverage as RunningAverage
from ddp_compress.exchange.sharded import Sharded as Sharded
from ddp_compress.exchange.shared_mask import SharedMask as SharedMask
from ddp_compress.exchange.union import Union as Union


def exchange_by_name(name: str) -> AllGather | Sharded | Union:
    """How ranks share selected entries, by the word that recipes use.

    Args:
        name: ``"all_gather"``: every rank's entries to every rank; nothing else is lost, but a rank
            receives (W - 1) K entries. ``"sharded"``: to the owner of each range, who sends back
            the K largest of the mean; about 2 K entries at any W (every owner sends at least one of
            every tensor, see ``scope``), but what it leaves out arrives later, from its own
            residual. ``"union"``: the owner sends back all that came;
            nothing else is lost, and entries that several ranks sent come back once.

    Raises:
        TypeError: the name is no string.
        ValueError: there is no such exchange.

    Example:
        >>> exchange_by_name("union")
        Union()
    """
    exchanges: dict[str, AllGather | Sharded | Union] = {
        "all_gather": AllGather(),
        "sharded": Sharded(),
        "union": Union(),
    }
    check_one_of("exchange", name, exchanges)
    return exchanges[name]
