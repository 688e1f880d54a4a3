"""One step: everything is sent, then all of it is committed or none."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter

import torch
from torch import Tensor

from ddp_compress.memory import clip_gradient
from ddp_compress.message.chunk import Chunk, memory_dtype
from ddp_compress.message.delivery import Deliveries
from ddp_compress.message.entries import add_entries
from ddp_compress.message.layout import Layout
from ddp_compress.message.message import Message
from ddp_compress.message.plan import MAX_NUMEL, Plan, plan_for, tables_for
from ddp_compress.ops.devices import Stream, record_stream, side_stream
from ddp_compress.recipe import Memory, Recipe
from ddp_compress.schedules import density_at
from ddp_compress.stages import Stages, enter
from ddp_compress.step.buckets import Buckets
from ddp_compress.step.metrics import norm
from ddp_compress.step.peers import Peers
from ddp_compress.step.replica import VERDICT, Replica
from ddp_compress.step.running import InOrder, InTurns, Running
from ddp_compress.step.scaling import mantissa, unscale
from ddp_compress.step.settings import Settings
from ddp_compress.step.store import ParameterStore
from ddp_compress.step.undo import Undo
from ddp_compress.transport.channel import Channel
from ddp_compress.transport.phases import Phases, drive


class Transaction:
    """The chunks of one step on their way.

    Memory is only read until `finish` commits, so an error or an abort at any time before leaves it
    whole by doing nothing.

    Args:
        settings: see `Settings`.
        store: where memory is kept.
        buckets: those that the step comes in.
        peers: the other ranks, which have met.
        step: the step's number.
        stages: where its time is counted.
        norms: where to put the norm of every chunk's own gradient; None for nowhere.

    Attributes:
        numel: elements in all chunks, of this rank's parts.
        world_size: how many ranks exchange them.
        undo: the way back, once it is committed.
        norms: see above.
    """

    def __init__(
        self,
        settings: Settings,
        store: ParameterStore,
        buckets: Buckets,
        peers: Peers,
        step: int,
        stages: Stages,
        norms: list[Tensor] | None = None,
    ) -> None:
        assert peers.comm is not None
        self._settings = settings
        self._store = store
        self._buckets = buckets
        self._comm = peers.comm
        self.world_size = peers.comm.world_size
        self._replica = peers.replica
        self._averages = peers.replica.averages if peers.replica else 1
        self._worker = peers.worker
        self._step = step
        self._stages = stages
        self.norms = norms
        self._drafts: dict[tuple[torch.dtype, torch.device], _Draft] = {}
        self._sent: list[_Sent] = []
        self._failure: Exception | None = None
        self._density = self._momentum = 0.0
        # Kept here, because the worker changes it at its own time.
        self._shared_density = self._comm.agreed.density
        self._chunks: list[Chunk] = []
        self.numel = 0
        self.undo: Undo | None = None
        for comm in peers.comms:
            comm.begin_step()
        try:
            self._density = density_at(settings.recipe.select.density, step)
            self._momentum = settings.recipe.memory.momentum_at(step)
        except Exception as error:
            self.fail(error)

    def add(self, chunk: Chunk) -> None:
        """Put a chunk into the open message of its kind; send the message when it is full.

        An error waits: the message that is due next carries it to every rank.
        """
        for ready in self._buckets.ready(chunk):
            self._add(ready)

    def _add(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)
        draft = self._drafts.setdefault((chunk.grad.dtype, chunk.grad.device), _Draft())
        waits = self._settings.recipe.select.scope == "model"  # for the last chunk
        self._prepare(chunk)
        try:
            if not waits and draft.numel and draft.numel + len(chunk.grad) > MAX_NUMEL:
                self._send(draft.take())
            draft.add(chunk, 0 if waits else self._bytes(chunk))
            if draft.bytes >= self._settings.flush_bytes:
                self._send(draft.take())
        except Exception as error:
            self.fail(error)

    def _prepare(self, chunk: Chunk) -> None:
        """Unscale and clip a gradient, in place; take its norm in between."""
        clip = self._settings.recipe.memory.clip
        try:
            if chunk.grad.is_cuda and self._worker is None:
                raise ValueError(f"gradient is on {chunk.grad.device}, its model on the CPU")
            if chunk.scale is not None:
                unscale(chunk.grad, chunk.scale)
            if self.norms is not None:
                self.norms.append(norm(chunk.grad))
            if clip is not None:
                clip_gradient(chunk, clip / math.sqrt(self.world_size * self._averages))
        except Exception as error:  # this rank's messages must come to as many as the others'
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Let the next message tell every rank of an error."""
        self._failure = self._failure or error

    def finish(self) -> bool:
        """Send what is open, wait for every rank, commit.

        Returns:
            Whether the step was committed; False where a rank had a non-finite gradient.

        Raises:
            PeerError, ValueError: see `CompressionState.push`. Memory is as before the step.
        """
        try:
            for chunk in self._buckets.rest(self.fail):
                self._add(chunk)
            self._send_rest()
            finite = self._wait()
            enter("decode")
            if finite:
                self._commit()
                self._buckets.latest = _layouts(self._chunks)
            else:
                self._abort()
            for sent in self._sent:
                with self._stream(sent.device).on():  # a future remembers the stream
                    for chunk in sent.chunks:
                        chunk.future.set_result(chunk.grad)
            self._buckets.give_back(self._stream)
        except BaseException:
            self._join()
            raise
        finally:
            self._buckets.let_go()
        return finite

    def _send_rest(self) -> None:
        on_host = {device.type for _, device in self._drafts} <= {"cpu"}
        if on_host and not self._sent and self._replica is None:
            # Backward is over: nothing would go on beside it. (On a stream, work takes no turns.)
            self._worker = None
        for draft in self._drafts.values():
            if draft.chunks:
                self._send(draft.take())
        if self._failure and not self._sent:
            self._send([])

    def _wait(self) -> bool:
        """For all messages; whether every gradient was finite. Raise if anything has failed."""
        waiting, failure = list(self._sent), None
        while waiting:  # in turns, so that the messages' round trips overlap
            for sent in waiting:
                try:
                    sent.running.advance()
                except Exception as error:  # perhaps on this rank alone: go on with the others
                    sent.running.done, failure = True, failure or error
            waiting = [sent for sent in waiting if not sent.running.done]
        failure = failure or self._failure
        finite = None not in [sent.running.outcome for sent in self._sent]
        if self._replica is not None:
            finite = self._verdict(self._replica, finite, failure)
        elif failure:
            raise failure
        return finite

    def _verdict(self, replica: Replica, finite: bool, failure: Exception | None) -> bool:
        inside = replica.channel(VERDICT, self._density, self._step, lambda: "verdict")
        try:
            return drive(replica.verdict(inside, finite, failure))
        except Exception as error:
            self._forget_agreed()
            raise failure or error from None

    def _commit(self) -> None:
        """Write memory, and the averaged gradients; or neither, where that fails."""
        self.undo = Undo(self._chunks, self._parts, self._comm.agreed)
        try:
            for sent in self._sent:
                with side_stream(sent.device).on():
                    _commit_chunks(sent, self._settings.recipe.memory, self._momentum)
                sent.channel.commit()
            for sent in self._sent:
                for delivery in sent.running.outcome or ():
                    delivery.confirm()
                _hear_presence(sent)
            for sent in self._sent:
                if self._replica is not None:
                    drive(self._replica.after(sent.chunks, sent.parts))
                with self._stream(sent.device).on():
                    _scale(sent.chunks)
        except BaseException:  # on this rank alone: the next step tells the others
            if self._replica is not None:
                self._replica.give_up()
            self.undo.take_back()
            self._spoil_gradients()
            raise

    def _abort(self) -> None:
        """Leave memory alone, and say by the gradients that there are none."""
        self._forget_agreed()
        self._spoil_gradients()

    def _forget_agreed(self) -> None:
        """The step counts on no rank, as all know: perhaps from others than they exchange with."""
        self._comm.agreed.density, self._comm.agreed.step = self._shared_density, self._step

    def _spoil_gradients(self) -> None:
        """Nobody is to apply them by mistake."""
        for sent in self._sent:
            with self._stream(sent.device).on():
                for chunk in sent.chunks:
                    chunk.grad.fill_(torch.nan)

    def _stream(self, device: torch.device) -> Stream:
        """On which a gradient is completed."""
        return self._replica.stream(device) if self._replica else side_stream(device)

    def abandon(self) -> None:
        """Give up a step that never came to its last chunk."""
        self._buckets.let_go()
        for sent in self._sent:
            sent.running.abandon()
        self._join()

    def _join(self) -> None:
        """Where no future will: whoever goes on may let go of memory that is still worked on."""
        for sent in self._sent:
            for stream in {side_stream(sent.device), self._stream(sent.device)}:
                stream.join()

    def _bytes(self, chunk: Chunk) -> int:
        """About what a chunk adds to a message: alike on every rank, whatever happens on one."""
        recipe = self._settings.recipe
        alone = self._plan([chunk], self._shared_density)
        uncompressed = len(alone.uncompressed) * chunk.grad.dtype.itemsize
        return (recipe.body.size(alone, recipe) + uncompressed) // self._averages

    def _plan(self, chunks: Sequence[Chunk], density: float) -> Plan:
        scope = self._settings.recipe.select.scope
        return plan_for(_layouts(chunks), scope, density, self._settings.min_numel)

    def _send(self, chunks: Sequence[Chunk]) -> None:
        recipe, number, replica = self._settings.recipe, len(self._sent), self._replica
        failure, parts = self._failure, chunks
        try:
            if failure:
                raise failure
            parts = replica.parts(chunks) if replica else chunks
            for part in parts:
                dtype = memory_dtype(part.grad.dtype)
                part.kept = self._store.arrange(part.layout, dtype, part.grad.device)
                part.kept.reserve(recipe.memory.tensors)
            plan = self._plan(parts, self._density)
            message = Message(parts, plan, self._step, recipe.memory, self._momentum)
            must_share, digest = partial(_must_share, message, recipe), plan.layout_digest
            channel = Channel(self._comm, number, self._density, must_share, digest, self._step)
            if parts and parts[0].presence is not None:
                channel.aside = parts[0].presence.told(plan.names)
            exchange = _cut_writes(recipe.exchange.run(message, recipe, channel), message)
        except Exception as error:
            channel = Channel.failing(self._comm, number, self._step)
            exchange, failure = channel.report(error), error
        instead: Callable[[BaseException], Phases[Deliveries]] = channel.fail_as
        if replica:
            alike = partial(_must_share_inside, chunks)
            inside = replica.channel(number, self._density, self._step, alike)
            instead = partial(replica.instead, inside, channel)
            exchange = replica.before(chunks, inside, exchange, channel, failure)
        device = chunks[0].grad.device if chunks else torch.device("cpu")
        if failure is None or replica:  # else there is nothing to do there, and no worker perhaps
            exchange = side_stream(device).drive(exchange)
        running = self._launch(self._stages.follow(exchange), instead)
        self.numel += sum(len(part.grad) for part in parts)
        self._sent.append(_Sent(chunks, parts, device, channel, running))

    @property
    def _parts(self) -> Iterator[Chunk]:
        return (part for sent in self._sent for part in sent.parts)

    def _launch(
        self,
        exchange: Phases[Deliveries],
        instead: Callable[[BaseException], Phases[Deliveries]],
    ) -> Running:
        if self._worker is None:
            return InTurns(exchange)
        before = self._sent[-1].running if self._sent else None
        after = before.future if isinstance(before, InOrder) else None
        return InOrder(self._worker.submit(exchange, instead, after))


def _cut_writes(exchange: Phases[Deliveries], message: Message) -> Phases[Deliveries]:
    """The same; what is to be written is cut by chunk where it runs, which may wait for a device.

    To commit runs on DDP's own thread, which must not.
    """
    deliveries = yield from exchange
    for delivery in deliveries or ():
        for name, entries in delivery.writes.items():
            for chunk, part in zip(message.chunks, message.cut(entries), strict=True):
                chunk.writes.append((name, part))
    return deliveries


def _layouts(chunks: Sequence[Chunk]) -> tuple[Layout, ...]:
    return tuple(map(attrgetter("layout"), chunks))


def _must_share(message: Message, recipe: Recipe) -> object:
    """What ranks must share."""
    memory = (message.momentum, recipe.memory.clip, mantissa(message.scale))
    parts = (recipe.body, recipe.quantize, recipe.codec, recipe.exchange)
    return (recipe.name, *memory, *parts, message.plan.digest, message.chunks[0].must_match)


def _must_share_inside(chunks: Sequence[Chunk]) -> object:
    """What ranks of a replica must share of a message, for its parts to be one gradient's."""
    layouts = tables_for(_layouts(chunks), "tensor").digest
    first = ((c.grad.dtype, mantissa(c.scale), c.must_match) for c in chunks[:1])
    return (layouts, *first)


@dataclass
class _Draft:
    """A message that still takes chunks; its size in elements and, about, in bytes."""

    chunks: list[Chunk] = field(default_factory=list)
    numel: int = 0
    bytes: int = 0

    def add(self, chunk: Chunk, size: int) -> None:
        self.chunks.append(chunk)
        self.numel += len(chunk.grad)
        self.bytes += size

    def take(self) -> list[Chunk]:
        """Its chunks, leaving it empty."""
        chunks, self.chunks, self.numel, self.bytes = self.chunks, [], 0, 0
        return chunks


@dataclass(frozen=True)
class _Sent:
    """A message on its way: chunks, and what of them is this rank's to exchange."""

    chunks: Sequence[Chunk]
    parts: Sequence[Chunk]
    device: torch.device
    channel: Channel
    running: Running


def _hear_presence(sent: _Sent) -> None:
    """What all ranks have told of the parameters that have a gradient."""
    presence = sent.parts[0].presence if sent.parts else None
    if presence is not None:
        names = [name for part in sent.parts for name in part.layout.names]
        presence.heard(names, sent.channel.heard)


def _commit_chunks(sent: _Sent, memory: Memory, momentum: float) -> None:
    """Write memory, and the averaged gradients."""
    start = 0
    for chunk in sent.parts:
        memory.retain(chunk, momentum)
        deliveries = sent.running.outcome or ()
        if not deliveries:
            chunk.grad.zero_()
        for number, delivery in enumerate(deliveries):
            for entries in delivery.sent:
                memory.release(chunk, start, entries, delivery.uncompressed)
            # In the place of this rank's own gradient, which memory has.
            received, scale = delivery.received, delivery.scale
            add_entries(chunk.grad, start, received, scale, afresh=number == 0)
        for name, written in chunk.writes:
            chunk.kept.overwrite(name, written)
        start += len(chunk.grad)


def _scale(chunks: Sequence[Chunk]) -> None:
    """Each by this rank's scale, which may differ from others'."""
    for chunk in chunks:
        if chunk.scale is not None:
            chunk.grad.mul_(chunk.scale)
            record_stream(chunk.scale)  # it is of the backward's stream
