"""Steps of one method, timed: among the real ranks, or among echoes of this one."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_compress.advise.echoes import echo_group
from ddp_compress.advise.link import ring
from ddp_compress.advise.methods import DENSE_STEPS, Method
from ddp_compress.advise.ranks import Ranks
from ddp_compress.advise.stand_in import MadeUp, Spend, StandIn
from ddp_compress.hook import attach
from ddp_compress.recipe import Recipe
from ddp_compress.schedules import density_at
from ddp_compress.stats import Stats
from ddp_compress.step.state import FLUSH_BYTES, CompressionState
from ddp_compress.transport.comm import PeerError
from ddp_compress.transport.nodes import Within

FAR = 2**20  # times W: a step in which warm-ups are over, and that is rank 0's turn
WARM_UP = DENSE_STEPS + 1  # DDP also rebuilds its buckets after the first step
REHEARSALS = 3
BUCKET_MB = 25.0  # DDP's default
ECHOED = 2**18, 2**20  # elements on which work among many ranks is measured


@dataclass(frozen=True)
class Trial:
    """What a step of a method costs.

    Args:
        numel: elements of the gradients.
        seconds: of the exchange on the slowest rank: a median over steps.
        spread: half the distance between the quartiles of that.
        sent: bytes, or received if these are more, by the rank that sends most.
        phases: collectives, most of which wait for each other.
    """

    numel: int
    seconds: float
    spread: float
    sent: float
    phases: float


def extended(small: tuple[int, float], large: tuple[int, float], numel: int) -> float:
    """Seconds of work on so many elements, from those on two other numbers of them.

    Work grows as it did from one to the other, but at most in proportion.

    Example:
        >>> extended((100, 2.0), (200, 3.0), 400)
        5.0
    """
    (fewer, less), (more, seconds) = small, large
    each = seconds / more
    if more > fewer:
        each = max(0.0, min(each, (seconds - less) / (more - fewer)))
    return seconds + each * (numel - more)


class Steps:
    """A stand-in model that exchanges its gradients by one method among the real ranks.

    Args:
        method: how.
        like: tensors of its parameters' shapes and dtypes.
        made_up: its gradients.
        ranks: who measures.
        within: see `CompressionState`.
        share: of the model's elements that these are: buckets and messages are as much smaller
            than the model's, so that there are as many.
        backward: seconds of every backward pass.
        spend: see `StandIn`.
    """

    def __init__(
        self,
        method: Method,
        like: Sequence[Tensor],
        made_up: MadeUp,
        ranks: Ranks,
        within: Within | None,
        share: float,
        backward: float,
        spend: Spend,
    ) -> None:
        on_device = [torch.empty_like(each, device=ranks.device) for each in like]
        self.numel = sum(each.numel() for each in like)
        self._ranks = ranks
        self._gradients = made_up.like(on_device)
        self._count = 0
        whole = 4 * self.numel / 2**20 + 1  # MiB
        self._model = DistributedDataParallel(
            StandIn(on_device, backward, spend),
            process_group=ranks.group,
            init_sync=False,
            bucket_cap_mb=whole if method.one_bucket else BUCKET_MB * share,
        )
        self._state: CompressionState | None = None
        self._payload = method.payload(on_device)
        if method.register:
            method.register(self._model)
        elif method.recipe:
            far = FAR * ranks.world_size
            self._state = attach(
                self._model,
                method.recipe,
                start_step=far,
                within=within,
                flush_bytes=max(1, int(FLUSH_BYTES * share)),
            )

    def run(self, count: int) -> list[float]:
        """Seconds of the exchange in so many steps, of the slowest rank."""
        times: list[float] = []
        for _ in range(count):
            with self._model.no_sync():
                times.append(self._ranks.seconds(self._pass))
            self._clear()
            times.append(self._ranks.seconds(self._pass))
            self._clear()
        slowest = self._ranks.slowest_of(times)
        pairs = zip(slowest[::2], slowest[1::2], strict=True)
        return [max(0.0, step - local) for local, step in pairs]

    def _pass(self) -> None:
        self._count += 1
        self._model(self._gradients[self._count // 2 % len(self._gradients)]).backward()

    def _clear(self) -> None:
        self._model.zero_grad(set_to_none=True)

    def trial(self, count: int) -> Trial:
        """Time so many steps."""
        before = self._counted()
        times = self.run(count)
        sent, phases = (
            (after - first) / count for after, first in zip(self._counted(), before, strict=True)
        )
        if self._state is None:
            sent = ring(self._payload, self._ranks.world_size)
            phases = float(sent > 0)
        sent, phases = self._ranks.slowest_of([sent, phases])
        return Trial(self.numel, statistics.median(times), spread(times), sent, phases)

    def _counted(self) -> tuple[float, float]:
        return counted(self._state.stats) if self._state else (0.0, 0.0)

    def close(self) -> None:
        """Let go of what the method keeps."""
        if self._state:
            self._state.close()


def counted(stats: Stats) -> tuple[float, float]:
    """Bytes sent, or received if these are more, and collectives."""
    return float(max(stats.sent_bytes, stats.received_bytes)), float(stats.collectives)


def spread(times: Sequence[float]) -> float:
    """Half the distance between the quartiles.

    Example:
        >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
        1.0
    """
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / 2


def rehearse(
    recipe: Recipe, numel: int, world_size: int, ranks: Ranks, made_up: MadeUp
) -> Trial | None:
    """A rank's work among so many ranks, of which all others are echoes: nothing is sent.

    All real ranks do it at once, since they may share their cores in training too.

    Args:
        recipe: how gradients are exchanged.
        numel: elements of the gradients; at most, as owners have equally many.
        world_size: how many ranks.
        ranks: who measures.
        made_up: gradients.

    Returns:
        What a step costs; None where owners of shards cannot be echoes of each other.
    """
    each = _shard(density_at(recipe.select.density, FAR), numel, world_size)
    row = torch.empty(1, each, dtype=torch.float32, device="meta")
    # Every owner has the same, so that what an echo answers fits as well as what the owner would.
    gradients = [flat.repeat(world_size, 1) for (flat,) in made_up.like([row])]
    ranks.meet()
    try:
        times, sent, phases = _echoed(recipe, gradients, world_size)
    except (PeerError, ValueError):
        times, sent, phases = [math.inf] * REHEARSALS, math.inf, math.inf
    *times, sent, phases = ranks.slowest_of([*times, sent, phases])
    if not math.isfinite(sent):
        return None
    return Trial(each * world_size, min(times), spread(times), sent, phases)


def _shard(density: float, numel: int, world_size: int) -> int:
    """Elements of an owner's shard, of which a whole number is selected."""
    most = max(1, numel // world_size)
    for each in range(most, most // 2, -1):
        if abs(density * each - round(density * each)) < 0.4 / world_size:
            return each
    return most


def _echoed(
    recipe: Recipe, gradients: Sequence[Tensor], world_size: int
) -> tuple[list[float], float, float]:
    """Seconds of every step; bytes and collectives of one."""
    model = nn.Module()
    model.register_parameter("all", nn.Parameter(torch.zeros_like(gradients[0])))
    group = echo_group(world_size)
    turn = FAR * world_size  # always this rank's, who alone can say anything in it
    times = []
    try:
        state = CompressionState(model, recipe, group, start_step=turn)
        for number in range(1 + REHEARSALS):
            flat = gradients[number % len(gradients)].flatten().clone()
            state.step = turn
            before = counted(state.stats)
            begin = time.perf_counter()
            state.reduce({"all": flat})
            if flat.is_cuda:
                torch.cuda.synchronize(flat.device)
            times.append(time.perf_counter() - begin)
        sent, phases = (a - b for a, b in zip(counted(state.stats), before, strict=True))
        state.close()
    finally:
        dist.destroy_process_group(group)
    return times[1:], sent, phases
