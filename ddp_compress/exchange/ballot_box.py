"""Every rank votes for positions; the mask is those with most votes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ddp_compress import ops
from ddp_compress.checks import check_bool, check_int, check_one_of, named
from ddp_compress.exchange import ballot
from ddp_compress.exchange.bodies import COUNT_BYTES, check_counts, read_count
from ddp_compress.exchange.shared_mask import Mask
from ddp_compress.message.entries import Entries
from ddp_compress.message.message import Message
from ddp_compress.message.shards import Shards
from ddp_compress.message.universe import CountedUniverse
from ddp_compress.ops import host
from ddp_compress.ops.devices import to_device, to_host
from ddp_compress.ops.reference import salts, shift_salts
from ddp_compress.recipe import Recipe
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.phases import Phases

Count = Literal["auto", "gather", "sharded"]

BIN_BITS = 25  # of a key; 2**32 keys for each number of votes fall into 128 bins
PHASE_BYTES = 128 * 1024  # what a 1 Gbit/s link moves in the millisecond that a phase takes


@dataclass(frozen=True)
class BallotBox:
    """The K most voted positions, exactly, the same on all ranks; ties fall by a seeded hash.

    A position's key is its number of votes and, below that, a hash of seed, step and place. The K
    largest keys win. With ``random`` the key is the largest of as many hashes as it has votes:
    then the K largest are a draw without replacement whose chances are as the votes.

    There is no server. Either every rank gathers every ballot and counts (``"gather"``: one
    collective, W - 1 ballots), or every rank counts the positions that it owns, a histogram of
    keys over all ranks tells where the K-th lies, and the winners are gathered (``"sharded"``: five
    collectives, about two ballots at any W). Both find the same mask.

    Args:
        random: whether the key is random.
        seed: of the hash.
        count: ``"gather"``, ``"sharded"``, or ``"auto"`` for whichever sends fewer bytes, a
            collective counting as 128 kB.

    Raises:
        ValueError: another ``count``.

    Source: Ozfatura et al., Distributed Sparse SGD with Majority Voting (2020), Alg. 1 and 2.

    Example:
        >>> BallotBox(seed=1)
        BallotBox(random=False, seed=1, count='auto')
    """

    random: bool = False
    seed: int = 0
    count: Count = "auto"

    has_large_sender: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_bool("random", self.random)
        check_one_of("ballot_box", self.count, ("auto", "gather", "sharded"))
        check_int("seed", self.seed)

    def mask(self, message: Message, recipe: Recipe, channel: Channel) -> Phases[Mask | None]:
        """See `shared_mask.Agree`."""
        size, others = recipe.codec.size(message.plan), channel.world_size - 1
        sharded = 2 * size * others // channel.world_size + 4 * PHASE_BYTES
        gathers = self.count == "gather" or (self.count == "auto" and size * others <= sharded)
        poll = (_Gathered if gathers else _Sharded)(message, recipe, channel, self)
        return (yield from poll.run())


class _Poll:
    """One vote, as one rank sees it."""

    def __init__(self, message: Message, recipe: Recipe, channel: Channel, box: BallotBox) -> None:
        self.message = message
        self.plan = message.plan
        self.recipe = recipe
        self.channel = channel
        self.box = box
        self.salts = salts(message.plan.names, box.seed, message.step)
        self.writes: Mapping[str, Entries] = {}

    def vote(self) -> Tensor | None:
        """The positions that this rank votes for; None where a gradient is not finite."""
        selection = self.message.select(self.recipe.select)
        self.writes = selection.writes
        return selection.entries.positions if selection.finite else None

    def write(self, votes: list[Tensor], bounds: list[Tensor]) -> list[Tensor]:
        """The bytes of this rank's ballots."""
        last = self._last("written", len(votes))
        self._remember("written", votes)
        ballots = zip(votes, last, bounds, strict=True)
        bodies = [ballot.encode(*each, self.recipe.codec) for each in ballots]
        self.channel.stats.position_bits += sum(8 * len(body) for body in bodies)
        return bodies

    def read(self, bodies: list[Tensor], bounds: Tensor) -> list[Tensor]:
        """The ballots of all ranks."""
        last = self._last("read", len(bodies))
        votes = []
        for rank, body in enumerate(bodies):
            body = to_device(body, self.message.device)
            with named(f"rank {rank}"):
                votes.append(ballot.decode(body, last[rank], bounds, self.recipe.codec))
        self._remember("read", votes)
        return votes

    def keys(self, ballots: list[Tensor], bounds: Tensor, salts: Tensor) -> tuple[Tensor, Tensor]:
        """The positions voted for [U], and their keys."""
        positions, votes = ops.tally(ballots)
        voters = self.channel.world_size
        return positions, ops.vote_keys(positions, votes, bounds, salts, voters, self.box.random)

    def _last(self, what: str, count: int) -> list[Tensor | None]:
        """The ballots of the last step, where they can be known."""
        return self.channel.committed.get(f"{type(self).__name__} {what}", [None] * count)

    def _remember(self, what: str, ballots: list[Tensor]) -> None:
        if self.recipe.select.tensors:  # the next ballot follows from this one
            self.channel.pending[f"{type(self).__name__} {what}"] = ballots


class _Gathered(_Poll):
    """Every rank gathers every ballot."""

    def run(self) -> Phases[Mask | None]:
        bodies = yield from self.channel.share(self._ballot)
        if bodies is None:
            return None
        return Mask(self.channel.attempt(lambda: self._winners(bodies)), self.writes)

    def _ballot(self) -> Tensor | None:
        vote = self.vote()
        return None if vote is None else self.write([vote], [self.plan.bounds])[0]

    def _winners(self, bodies: list[Tensor]) -> Tensor:
        ballots = self.read(bodies, self.plan.bounds)
        for rank, votes in enumerate(ballots):
            with named(f"rank {rank}: ballot"):
                check_counts(votes, self.plan)
        positions, keys = self.keys(ballots, self.plan.bounds, self.salts)
        return positions.index_select(0, ops.largest(keys, self.plan.k))


class _Sharded(_Poll):
    """Every rank counts the positions that it owns."""

    def __init__(self, message: Message, recipe: Recipe, channel: Channel, box: BallotBox) -> None:
        super().__init__(message, recipe, channel, box)
        self._cut = Shards(self.plan, channel.world_size)
        # Voted for, of those that this rank owns.
        self._positions = self._keys = host.empty(0, dtype=torch.int32)

    def run(self) -> Phases[Mask | None]:
        channel = self.channel
        bodies = yield from channel.route(self._ballots)
        if bodies is None:
            return None
        histogram = yield from channel.sum(
            lambda: self._count(bodies), channel.world_size << (32 - BIN_BITS)
        )
        edge, places = _edge(histogram, self.plan.k)
        answers = yield from channel.share(lambda: self._won(edge))
        assert answers is not None, "all was finite when ballots were sent"
        return Mask(channel.attempt(lambda: self._winners(answers, places)), self.writes)

    def _ballots(self) -> list[Tensor] | None:
        vote = self.vote()
        if vote is None:
            return None
        parts = self._cut.split(Entries(vote, vote))
        votes = [part.positions for part in parts]
        return self.write(votes, [plan.bounds for plan in self._cut.plans])

    def _count(self, bodies: list[Tensor]) -> Tensor:
        """The histogram of keys in this rank's shard."""
        rank, bounds = self.channel.rank, self._cut.plans[self.channel.rank].bounds
        salts = shift_salts(self.salts, self._cut.offsets[rank])
        self._positions, self._keys = self.keys(self.read(bodies, bounds), bounds, salts)
        bins = self.channel.world_size << (32 - BIN_BITS)
        return torch.bincount(self._keys >> BIN_BITS, minlength=bins).int()

    def _won(self, edge: int) -> Tensor:
        """Positions above the edge bin; positions in it, and what of their keys is not known."""
        bounds, bins = self._cut.plans[self.channel.rank].bounds, self._keys >> BIN_BITS
        sure, near = self._positions[bins > edge], self._positions[bins == edge]
        rests = (self._keys[bins == edge] & ((1 << BIN_BITS) - 1)).int()
        encode = self.recipe.codec.encode
        return torch.cat(
            [
                host.tensor([len(sure), len(near)], dtype=torch.int32).view(torch.uint8),
                to_host(encode(sure, CountedUniverse(bounds, len(sure)))),
                to_host(encode(near, CountedUniverse(bounds, len(near)))),
                to_host(rests.view(torch.uint8)),
            ]
        )

    def _winners(self, answers: list[Tensor], places: int) -> Tensor:
        """All that is above the edge bin, and so many of those in it that K win."""
        won = []
        for rank, body in enumerate(answers):
            with named(f"rank {rank}"):
                won.append(self._read_won(rank, body))
        sure, near, rests = zip(*won, strict=True)
        order = torch.cat(near).sort()
        chosen = order.values[ops.largest(torch.cat(rests).long()[order.indices], places)]
        winners, votes = ops.tally([*sure, chosen])
        if (votes > 1).any() or len(winners) > self.plan.k:
            raise ValueError("mask: it does not fit the message")
        return winners

    def _read_won(self, rank: int, body: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One owner's winners, candidates at the edge, and the rests of their keys."""
        bounds = self._cut.plans[rank].bounds
        counts = read_count(body), read_count(body[COUNT_BYTES:])
        body, lists, at = to_device(body, self.message.device), [], 2 * COUNT_BYTES
        for count in counts:
            if not 0 <= count <= int(bounds[-1]):
                raise ValueError(f"{count} winners, expected at most {bounds[-1]}")
            positions, used = self.recipe.codec.decode(body[at:], CountedUniverse(bounds, count))
            lists.append(self._cut.widen(Entries(positions, positions), rank).positions)
            at += used
        rests, expected = body[at:], 4 * len(lists[1])
        if len(rests) != expected:
            raise ValueError(f"{len(rests)} bytes of keys, expected {expected}")
        return lists[0], lists[1], rests.clone().view(torch.int32)


def _edge(histogram: Tensor, k: int) -> tuple[int, int]:
    """The bin in which the k-th largest key lies, and how many in it are among the k.

    Example:
        >>> _edge(torch.tensor([5, 2, 3], dtype=torch.int32), k=4)
        (1, 1)
    """
    if k == 0:
        return len(histogram), 0
    above = histogram.flip(0).cumsum(0).flip(0) - histogram
    edge = int((above < k).nonzero()[0])
    return edge, k - int(above[edge])
