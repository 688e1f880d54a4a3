"""Ranks meet on two levels: with those of other replicas, then with those of their own."""

from collections.abc import Callable

from ddp_compress.transport.comm import Comm
from ddp_compress.transport.groups import members


def meet_and_own(
    between: Comm, inside: Comm, meet: Callable[[], str], setting: str, density: float, step: int
) -> None:
    """Meet; what has failed between replicas, the ranks of a replica hear, and raise as well.

    Args:
        between: this rank's exchange with the same rank of other replicas.
        inside: with the ranks of its own replica.
        meet: compares what ranks must share with the former; gives a name, see `Comm.agree`.
        setting: what ranks of a replica must share.
        density: of the next step.
        step: the next.

    Raises:
        PeerError: on every rank, where one differs or has failed.
    """
    between.names, inside.names = members(between.group), members(inside.group)
    outcome: str | Exception
    try:
        outcome = meet()
    except Exception as error:
        outcome = error

    def told() -> str:
        if isinstance(outcome, Exception):
            raise outcome
        return f"{setting}, replica {between.rank} of {between.world_size}"

    try:
        name = inside.agree(told, density, step)
    except Exception as error:
        raise outcome if isinstance(outcome, Exception) else error from None
    assert isinstance(outcome, str), "what is raised inside is raised here"
    between.own(outcome)
    inside.own(name)
