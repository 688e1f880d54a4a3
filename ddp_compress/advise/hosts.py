"""Ranks that share a host, and the link that they have inside it."""

from __future__ import annotations

import torch
import torch.distributed as dist

from ddp_compress.advise.link import Link, measure
from ddp_compress.advise.ranks import Ranks
from ddp_compress.stats import Traffic
from ddp_compress.transport.comm import Comm
from ddp_compress.transport.groups import members, new_group
from ddp_compress.transport.nodes import Claim, claim, nodes_of


def hosts_of(comm: Comm) -> list[list[int]]:
    """The ranks of every host; one list of all where hosts are not equally large."""
    claims = [Claim.of(text) for text in comm.share_text(claim("node").text())]
    everyone = members(comm.group)
    try:
        return nodes_of(claims, everyone, found=False)
    except ValueError:
        return [everyone]


def measure_inside(ranks: Ranks) -> Link | None:
    """The link inside a host, all hosts at once; None where there is one host, or one rank each."""
    comm = Comm(ranks.group, Traffic(), ranks.device)
    hosts = hosts_of(comm)
    own = next(host for host in hosts if dist.get_rank() in host)
    if len(hosts) == 1 or len(own) == 1:
        return None
    backend = comm.device_backend  # None where a GPU's may not be split
    device = ranks.device if backend else torch.device("cpu")
    name = comm.compare(lambda: "hosts")
    group = new_group(ranks.group, own, backend or "gloo", f"{name} {own[0]}")
    link = measure(Ranks(group, device))
    dist.destroy_process_group(group)
    slowest_bit, latency = ranks.slowest_of([1 / link.rate, link.latency])
    return Link(1 / slowest_bit, latency)
