"""Process groups: who is in them, and new ones of the same ranks."""

from collections.abc import Sequence

import torch
import torch.distributed as dist


def rank_and_size(group: dist.ProcessGroup | None = None) -> tuple[int, int]:
    """This rank's number in a group, and how many there are; alone without torch.distributed.

    Example:
        >>> rank_and_size()
        (0, 1)
    """
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def members(group: dist.ProcessGroup | None) -> list[int]:
    """The ranks of a group, as the whole job numbers them; None for the default one."""
    return dist.get_process_group_ranks(group)


def backends(group: dist.ProcessGroup | None) -> dict[str, str]:
    """By type of device, the backend that talks for it."""
    pairs = dist.get_backend_config(group).split(",")
    return dict(pair.split(":", 1) for pair in pairs)


def check_host_backend(group: dist.ProcessGroup | None) -> None:
    """Raise a RuntimeError unless something talks for the host's memory: the group, or Gloo."""
    if "cpu" not in backends(group) and not dist.is_gloo_available():
        raise RuntimeError(
            "compressed gradients travel from the host's memory: the process group has no backend "
            "for it, and this build of PyTorch has no Gloo"
        )


def new_group(
    parent: dist.ProcessGroup | None, ranks: Sequence[int], backend: str, name: str
) -> dist.ProcessGroup:
    """A new group of some ranks of another, with its timeout. These make it together.

    `dist.new_group` names a group after how many this process has. That differs between ranks which
    are in different groups, and comes again when groups go, with a rendezvous that is stale then.

    Args:
        parent: the other group; None for the default one.
        ranks: as the whole job numbers them, this one among them.
        backend: of the new group.
        name: what these ranks alone have agreed on.

    Raises:
        RuntimeError: this rank finds no way to the others, who hear of it at the group's timeout.
    """
    c10d = dist.distributed_c10d
    world = c10d._get_default_group()
    parent = parent or world
    known = backends(parent)
    any_device = torch.device("cpu" if "cpu" in known else next(iter(known)))
    _, store = c10d._world.pg_map[world]
    group, _ = c10d._new_process_group_helper(
        len(ranks),
        ranks.index(dist.get_rank()),
        list(ranks),
        dist.Backend(backend),
        store,
        f"ddp_compress/{name}",  # type: ignore[arg-type]
        timeout=parent._get_backend(any_device).options._timeout,
    )
    c10d._world.pg_group_ranks[group] = {rank: number for number, rank in enumerate(ranks)}
    return group
