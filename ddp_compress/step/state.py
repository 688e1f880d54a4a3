"""What a rank carries from step to step: memory, statistics, the step under way."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
import torch.distributed as dist  # noqa: TID251 - types alone
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from ddp_compress.checkpoints.checkpoint import (
    FORMAT,
    check_fits,
    check_form,
    check_whole,
    checksum,
    digest_of,
    dim_orders,
    part_of,
    with_clean_names,
)
from ddp_compress.checks import check_count
from ddp_compress.message.chunk import Chunk
from ddp_compress.message.layout import Layout
from ddp_compress.message.memory_format import flatten, unflatten
from ddp_compress.message.names import clean_name, clean_names
from ddp_compress.message.presence import Presence
from ddp_compress.recipe import Recipe
from ddp_compress.schedules import density_at
from ddp_compress.stages import Stages, enter, in_hook
from ddp_compress.stats import Stats
from ddp_compress.step.binding import Binding
from ddp_compress.step.buckets import Buckets
from ddp_compress.step.find_model import without_wrappers
from ddp_compress.step.first_step import Facts, FirstStep
from ddp_compress.step.metrics import Metrics
from ddp_compress.step.own_checkpoint import own_of_all
from ddp_compress.step.parameters import Parameters
from ddp_compress.step.peers import Peers
from ddp_compress.step.scaling import LossScale
from ddp_compress.step.settings import Settings
from ddp_compress.step.sharded_model import is_sharded, refuse_unsupported_shards, shards_of
from ddp_compress.step.store import ParameterStore
from ddp_compress.step.transaction import Transaction
from ddp_compress.step.undo import Undo
from ddp_compress.step.warm_up import warm_up
from ddp_compress.transport.nodes import Within, check_within

FLUSH_BYTES = 32 * 1024


class CompressionState:
    """What a rank carries from step to step, and the way of a gradient through a recipe.

    A step is a transaction. Gradients come in chunk by chunk; each message is selected, encoded
    and sent as soon as it is full, but memory is written only when the last chunk is in and every
    rank's messages have arrived whole. If any rank met a non-finite gradient, nothing is written
    anywhere and every gradient comes back as NaN, so that the optimizer's step is skipped
    everywhere (by ``torch.amp.GradScaler``, or by whoever checks the gradient norm).

    Args:
        model: the DDP model or the bare one. Its parameters name the state's tensors; those that
            DDP ignores are left out. Or a model that `torch.distributed.fsdp.fully_shard` has cut
            up: what is kept is of this rank's shards then.
        recipe: see `ddp_compress.recipes`.
        process_group: the ranks to exchange with, those of the DDP model; None for its group, or
            the default one. With a sharded model those that hold the same shard of other replicas.
        start_step: the step that density schedules start from; None for 0, with a warning where the
            optimizer's first step shows that weights were trained before.
        min_numel: parameters with fewer elements are uncompressed: they travel dense, with
            ``all_gather`` inside the same messages, else by an all-reduce of their own. Raise it
            when the few hundred numbers of biases and norms matter more than their bytes: at 0.1 %
            density they can outweigh all the rest.
        flush_bytes: a message goes out when it holds this many bytes. Small ones cost a round
            trip each; large ones do not overlap backward.
        within: which ranks share a node, with links among them faster than those between nodes:
            "node" for those of one host, as torchrun has started them; the group of this rank's
            node; or a mesh of one dimension, such as ``mesh["gpu"]``. A node's gradients are
            averaged dense, and each of its L ranks exchanges a slice of them, an L-th, with the
            ranks of the same place on all other nodes: so a node sends one message, not L, and all
            that is kept takes an L-th of the memory. Nodes must be equally large. None for ranks
            that all exchange with all others.

    Attributes:
        stats: see `Stats`.
        step: steps taken, ``start_step`` included; an aborted step is not counted.
        must_match: anything else whose repr ranks must share in every step.

    Raises:
        TypeError: ``recipe`` is not a `Recipe`.
        ValueError: a parameter is complex or has sparse gradients, the DDP model has options that
            go past a hook, ``process_group`` is of other ranks, a sharded model is one of those
            that `attach` refuses, or an argument lies outside its range. For a state made of the
            bare model, from the first backward pass of its DDP model.

    Example:
        >>> import torch, ddp_compress as dc
        >>> model = torch.nn.Linear(4, 2)
        >>> state = dc.CompressionState(model, dc.recipes.topk(density=0.5))
        >>> state.reduce({"weight": torch.tensor([4.0, 1, 2, 3, 0, 0, 0, 9])})["weight"]
        tensor([4., 0., 2., 3., 0., 0., 0., 9.])
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        process_group: dist.ProcessGroup | None = None,
        start_step: int | None = None,
        min_numel: int = 0,
        flush_bytes: int = FLUSH_BYTES,
        within: Within | None = None,
    ) -> None:
        if not isinstance(recipe, Recipe):
            raise TypeError(
                f"recipe must be a ddp_compress Recipe such as recipes.sbc(density=0.001), "
                f"got {type(recipe).__name__}"
            )
        if start_step is not None:
            check_count("start_step", start_step, least=0)
        check_count("min_numel", min_numel, least=0)
        check_count("flush_bytes", flush_bytes, least=1)
        check_within(within)
        model = without_wrappers(model)
        bare = model.module if isinstance(model, DistributedDataParallel) else model
        self.recipe = recipe
        self.step = start_step or 0
        self.stats = Stats()
        self.must_match: object = None
        self._settings = Settings(recipe, min_numel, flush_bytes)
        shards = None
        if is_sharded(bare):
            refuse_unsupported_shards(bare, recipe, process_group, within)
            shards = shards_of(bare)
        self._peers = Peers(process_group, within, shards)
        self._binding = Binding(bare, recipe, self._peers)
        self._store = ParameterStore(recipe.tensors)
        self._buckets = Buckets()
        self._loss_scale = LossScale()
        self._metrics = Metrics(self.stats)
        self._transaction: Transaction | None = None
        self._undo: Undo | None = None
        self._passed = False  # whether there was a pass since, perhaps an aborted one
        self._left_memory = False  # behind, with the DDP model that this is a copy's of
        self._facts = Facts(placed=start_step is not None)
        first_step = FirstStep(self, self._parameters.named, self._facts)
        self._binding.applied.check_by(first_step.check)
        if isinstance(model, DistributedDataParallel):
            self._binding.bind_to(model)

    def __getstate__(self) -> dict[str, Any]:
        """All but a step under way; a copy meets its peers by itself.

        Raises:
            TypeError: it is of a sharded model, which cannot be copied either.
        """
        if self._parameters.sharded:
            raise TypeError(
                "the CompressionState of a sharded model cannot be copied or pickled: save its "
                "state_dict()"
            )
        peers = copy.copy(self._peers)
        binding, metrics = self._binding.with_peers(peers), Metrics(self.stats)
        own = {"_peers": peers, "_binding": binding, "_metrics": metrics}
        nothing = {"_transaction": None, "_undo": None, "_passed": False}
        return self.__dict__ | own | nothing | {"_buckets": Buckets(self._buckets.latest)}

    def __deepcopy__(self, memo: dict[int, Any]) -> CompressionState:
        """A copy with all that is kept; but with nothing where it comes along with a DDP model.

        Copies of those are mostly for evaluation, as averages of weights, and have lost their hook.
        Where both are copied in one call, copy the state first, or load its ``state_dict``.
        """
        twin = object.__new__(CompressionState)
        memo[id(self)] = twin
        saved = self.__getstate__()
        if id(self._binding.model) in memo:
            saved |= {"_store": ParameterStore(self.recipe.tensors), "_buckets": Buckets()}
            saved["_left_memory"] = self.stats.steps > 0
        twin.__dict__.update(copy.deepcopy(saved, memo))
        return twin

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """The ranks to exchange with; None for the default group, or before they are known."""
        return self._peers.group

    @property
    def shard_group(self) -> dist.ProcessGroup | None:
        """The ranks that hold a sharded model together with this one; None where this has all."""
        return self._peers.shards

    @property
    def within(self) -> Within | None:
        """Which ranks share a node, as it was given; see above."""
        return self._peers.within

    @property
    def stages(self) -> Stages:
        """Where the time of its steps is counted; see `metrics`."""
        return self._metrics.stages

    @property
    def _parameters(self) -> Parameters:
        return self._binding.parameters

    def __repr__(self) -> str:
        density = self.recipe.select.density
        latest = self._peers.latest_density if callable(density) else density
        return (
            f"CompressionState({self.recipe.name}, "
            + (f"density={latest:.4g}, " if latest is not None else "")
            + f"step={self.step}, elements={self._parameters.numel}, ratio={self.stats.ratio:.1f})"
        )

    # ------------------------------------------------------------------ the way of a gradient

    def use_scaler(self, scaler: GradScaler) -> None:
        """Tell of the GradScaler that scales the loss, before the first step.

        DDP's gradients g then arrive as ``S g``. They are divided by S as they come and their mean
        is multiplied by S in the end, so that ``scaler.unscale_`` and ``step`` find what they
        expect, and all that is kept is in unscaled units whatever becomes of S. Powers of two
        round nothing; another S rounds each time. After an overflow every rank's scaler backs off.

        Without this call memory is kept in the units of its day, and a changed scale distorts it.
        Checkpoints do not hold the scaler; a copied state must be told again. What goes through
        `reduce` is not scaled.

        Args:
            scaler: used for all of the model's losses; a disabled one is no matter.

        Raises:
            TypeError: it is no GradScaler.
            RuntimeError: this state has taken steps without one.

        Example:
            >>> import ddp_compress as dc
            >>> state = dc.CompressionState(nn.Linear(4, 2), dc.recipes.topk(density=0.5))
            >>> scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
            >>> state.use_scaler(scaler)
            >>> state.loss_scale(torch.device("cpu"))
            tensor(1024.)
        """
        self._loss_scale.use(scaler)
        self._facts.knows_scaler = True

    def needs_no_hook(self) -> None:
        """Say that no hook is to call this state: `reduce` is, as in the rounds of `LocalUpdates`.

        Else a warning tells at the optimizer's first step that nothing has called it.
        """
        self._facts.needs_no_hook = True

    def loss_scale(self, device: torch.device) -> Tensor | None:
        """What gradients on a device are multiplied by now, [] fp32; None without a scaler."""
        return self._loss_scale.on(device)

    @in_hook
    def push(
        self, flat: Tensor, layout: Layout, last: bool, scale: Tensor | None = None
    ) -> Future[Tensor]:
        """Take one flat gradient of a step; complete all the step's futures at the last.

        A GradBucket is one case, a weight difference another. All ranks push equal layouts in
        equal order.

        Args:
            flat: [N], fp32, bf16, fp16 or fp64, contiguous. It becomes the result, in place.
            layout: its parameters in order.
            last: whether the step ends with it.
            scale: [], what ``flat`` was multiplied by, and the result is to be; None for 1.

        Returns:
            A future of ``flat``, holding the mean over ranks of what they sent; after an aborted
            step NaN.

        Raises:
            PeerError: on every rank, where a rank failed or compresses otherwise.
            ValueError: on every rank, where a message is corrupt. Where that is noticed late, as on
                a GPU, gradients are NaN; memory is as before the step in any case.
        """
        return self._take(self._chunk(flat, layout, scale), last, self._buckets)

    @in_hook
    def push_bucket(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """`push` a bucket of the DDP model whose hook this state is.

        Raises:
            PeerError, ValueError: see `push`. A rank also fails where the bucket is of another
                model or converted since, its DDP model has options that go past a hook, or
                gradients are summed with those of a pass that was sent before, which a momentum
                would take in twice.
        """
        parameters, flat, applied = bucket.parameters(), bucket.buffer(), self._binding.applied
        failure = None
        try:
            if bucket.index() == 0:
                self._begin_pass(parameters[0])
                applied = self._binding.applied
            applied.check_bucket(parameters)
            if bucket.is_last():
                applied.check_pass()
            layout, scale = self._parameters.layout(parameters), self.loss_scale(flat.device)
        except Exception as error:  # perhaps on this rank alone: its messages must meet the others'
            failure, layout, scale = error, self._parameters.stand_in(parameters), None
        chunk = self._chunk(flat, layout, scale)
        future = self._take(chunk, bucket.is_last(), self._buckets, failure)
        if bucket.is_last() and self._undo is not None and not self._binding.joined:
            applied.sent(self._undo.sent, self._undo.settle)
        return future

    def follow(self, model: nn.Module) -> None:
        """Send the gradients of a sharded model whenever a backward pass has brought some.

        Args:
            model: this state's.

        Raises:
            ValueError: its gradients are exchanged already.
        """
        self._binding.follow(model, self._push_shards)

    @torch.no_grad()
    @in_hook
    def _push_shards(self, came: Sequence[Tensor], failure: Exception | None) -> None:
        """`push` the gradients of a sharded model's pass, and write back what comes of them.

        Args:
            came: parameters that have got one in this pass.
            failure: what is wrong on this rank.

        Raises:
            PeerError, ValueError: see `push`.
        """
        applied, buckets = self._binding.applied, self._binding.buckets
        self.abandon_step()
        try:
            if failure is not None:
                raise failure
            self._binding.restored.check_pass(remembers=self.stats.steps > 0)
            applied.check_bucket(came)
            applied.check_pass()
            presence = self._parameters.presence(came, "momentum" in self.recipe.memory.tensors)
        except Exception as error:  # perhaps on this rank alone: its messages must meet the others'
            failure, presence = error, Presence(())
        futures = []
        try:
            for bucket in buckets:
                flat, scale = bucket.stand_in(), None
                try:
                    if failure is None:
                        flat, scale = bucket.gather(), self.loss_scale(flat.device)
                except Exception as error:
                    failure = error
                chunk = self._chunk(flat, bucket.layout, scale)
                chunk.presence = presence
                last = bucket is buckets[-1]
                futures.append(self._take(chunk, last, self._buckets, failure))
        except BaseException:
            for parameter in came:
                parameter.grad = None  # nobody is to apply them by mistake
            raise
        names = presence.here if self._undo is None else presence.anywhere
        for bucket, future in zip(buckets, futures, strict=True):
            bucket.write_back(future.wait(), names)
        if self._undo is not None:
            applied.sent(names, self._undo.settle)

    def _begin_pass(self, parameter: Tensor) -> None:
        self.abandon_step()  # a backward that raised may have left half a step behind
        self._binding.begin_pass(self, parameter, remembers=self.stats.steps > 0)
        if self._left_memory:
            self._left_memory = False
            warnings.warn(
                "this state came along with a copy of a DDP model, without the memory of the "
                "original, which is owed to the model: load_state_dict the original's state_dict()",
                stacklevel=2,
            )

    def _chunk(self, flat: Tensor, layout: Layout, scale: Tensor | None = None) -> Chunk:
        return Chunk(
            flat,
            layout,
            may_be_unused=self._binding.find_unused,
            scale=scale,
            must_match=self.must_match,
        )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _take(
        self, chunk: Chunk, last: bool, buckets: Buckets, failure: Exception | None = None
    ) -> Future[Tensor]:
        if chunk.grad.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a CUDA graph cannot hold the exchange with other ranks: capture less"
            )
        self._facts.called = True
        transaction = self._current_step(buckets)
        if failure is not None:
            transaction.fail(failure)
        transaction.add(chunk)
        if last:
            self._finish(transaction)
        return chunk.future

    @in_hook
    def reduce(self, tensors: Mapping[str, Tensor], must_match: object = None) -> dict[str, Tensor]:
        """Average named tensors through the recipe, as one step without DDP.

        Args:
            tensors: for some parameters, by name, a tensor of as many elements; not changed.
            must_match: anything whose repr ranks must share in this step.

        Returns:
            For each the mean over ranks of what they sent, shaped as given.

        Raises:
            PeerError: on every rank, where the tensors of one are not of this model, of several
                dtypes, or none; or where ranks differ.
        """
        self.abandon_step()
        alone = Buckets()  # no bucket of DDP's is among them
        try:
            given = {clean_name(name): tensor for name, tensor in tensors.items()}
            layout, here = self._parameters.layout_of_given(given), self._parameters.here
            flat = torch.cat([flatten(t.detach(), here[n]) for n, t in given.items()])
        except Exception as error:
            self.fail(error)
        chunk = self._chunk(flat, layout)
        chunk.must_match = (self.must_match, must_match)
        mean = self._take(chunk, True, alone).wait()
        parts, names = layout.split(mean), clean_names(tensors)
        like = zip(tensors.items(), names, strict=True)
        return {given: unflatten(parts[n], here[n], t) for (given, t), n in like}

    def fail(self, error: Exception) -> NoReturn:
        """Take part in a step for which this rank has nothing, and tell every rank why.

        Raises:
            Exception: ``error``, or a `PeerError` from it.
        """
        self.abandon_step()
        transaction = self._current_step(Buckets())
        transaction.fail(error)
        self._finish(transaction)
        raise error

    def layout(self, parameters: Sequence[Tensor]) -> Layout:
        """The layout of a bucket that holds these parameters.

        Raises:
            ValueError: a parameter is not the model's, or lies otherwise in memory than when this
                state was made.
        """
        return self._parameters.layout(parameters)

    def discard(self) -> None:
        """Take the latest backward pass back out of memory: its gradient will not be applied.

        What is sent is meant to be applied, and what is not will be, with later gradients. For a
        batch that is skipped, a generator's loss that went through a discriminator, or the first
        pass of SAM, neither is right. Call this on every rank, after the pass and before the next:
        memory and ``step`` are as before the pass then, bit for bit. The gradients themselves are
        yours to clear. After an aborted pass, whose gradients are NaN, nothing is done. With
        ``hgc`` the next pass takes another collective, because another rank's turn was expected;
        with a density schedule the next pass's messages may end elsewhere than without the pass.

        For that, memory as it was before a pass is kept until an optimizer has applied its
        gradients, or `settle` is called (on the host: always): 4 bytes a parameter, 8 with a
        momentum.

        Raises:
            RuntimeError: there is no pass to take back: there was none since the state was made or
                loaded, it was taken back, or an optimizer has applied its gradients.
            PeerError: at the next pass, on every rank, where ranks have discarded differently.

        Example:
            >>> import ddp_compress as dc
            >>> state = dc.CompressionState(nn.Linear(2, 1), dc.recipes.topk(density=0.5))
            >>> _ = state.reduce({"weight": torch.tensor([4.0, 1.0])})
            >>> state.discard()
            >>> state.memory()["residual"]["weight"]
            tensor([0., 0.])
        """
        self.abandon_step()
        if not self._passed:
            raise RuntimeError(
                "there is no pass to discard: call discard() once, after the pass and before the "
                "next"
            )
        if self._undo is not None:
            applied = self._binding.applied
            if applied.by is not None:
                raise RuntimeError(
                    f"{applied.by} has applied gradients of this pass already: call "
                    "discard() in place of its step. If it is of other parameters than those whose "
                    "gradients are thrown away, give each a DDP model and a state of its own"
                )
            self._undo.take_back()
            applied.nothing_owed()
            self.step -= 1
            self.stats.discarded += 1
        self._undo, self._passed = None, False

    def settle(self) -> None:
        """Let go of what `discard` would need: the gradients of the latest pass are applied.

        An optimizer's step says so by itself. Call it where weights are stepped by hand, to have
        the memory on a GPU back.

        Example:
            >>> import ddp_compress as dc
            >>> state = dc.CompressionState(nn.Linear(2, 1), dc.recipes.topk(density=0.5))
            >>> mean = state.reduce({"weight": torch.tensor([4.0, 1.0])})["weight"]
            >>> state.settle()
        """
        if self._undo is not None:
            self._undo.settle()
        self._no_way_back()

    def abandon_step(self) -> None:
        """Drop a step that never came to its last chunk. Nothing is lost: memory is untouched."""
        if self._transaction is not None:
            self._transaction.abandon()
        self._transaction = None

    def close(self) -> None:
        """End the state's thread and process group, where its recipe needs them.

        A script need not call it: both end with ``destroy_process_group`` and the interpreter.
        Call it where states come and go, after the last step on every rank.
        """
        self.abandon_step()
        self._peers.close()
        self._binding.stop()

    def ends_with(self, end: Callable[[], None]) -> None:
        """Let `close` call a function too, which ends what others have opened for this state."""
        self._peers.ends_with(end)

    def _no_way_back(self) -> None:
        self._undo, self._passed = None, False
        self._binding.applied.nothing_owed()

    def _current_step(self, buckets: Buckets) -> Transaction:
        """The step under way; where there is none a new one, in such buckets."""
        if self._transaction is None:
            self._undo, self._passed = None, False
            self._connect()
            settings, stages, norms = self._settings, self.stages, self._metrics.norms()
            step = Transaction(
                settings, self._store, buckets, self._peers, self.step, stages, norms
            )
            self._transaction = step
            try:
                self._peers.check_place()
            except ValueError as error:  # perhaps on this rank alone
                step.fail(error)
        return self._transaction

    def _connect(self) -> None:
        """Meet the other ranks, once."""
        if self._peers.have_met:
            return
        try:
            density = density_at(self.recipe.select.density, self.step)
        except Exception:
            density = 1.0  # the step's message will tell every rank
        recipe, device = self.recipe, self._parameters.device
        describe = partial(self._description, density)
        meet = partial(self._peers.meet, recipe.exchange, device, self.stats, self._warm_up)
        enter("wait")
        meet(describe, density, self.step, self._binding.weights)
        enter("encode")

    def _warm_up(self) -> None:
        device, worker = self._parameters.device, self._peers.worker
        find_unused, scale = self._binding.find_unused, self.loss_scale(device)
        warm_up(self._settings, self._parameters, find_unused, scale, worker, self.step)

    def _description(self, density: float) -> str:
        """What all ranks must share, in words."""
        digest = digest_of(self._parameters.here)
        return (
            f"{self._settings.describe(density, self.step)}, parameters #{digest:08x}, "
            f"loaded buckets #{self._buckets.digest:08x}"
        )

    def _finish(self, transaction: Transaction) -> None:
        try:
            committed = transaction.finish()
        finally:
            self._transaction = None
        self._passed = True
        self._binding.applied.nothing_owed()
        self.stats.step(transaction.numel, transaction.world_size, committed)
        self._metrics.stepped(transaction.norms)
        if committed:
            self._undo = transaction.undo
            self.step += 1
            self._loss_scale.stepped()

    def metrics(self) -> dict[str, float]:
        """What compression did since the last call: flat and plain, for whatever watches the run.

        Of this rank alone: no other rank need call it. Seconds and the gradient's norm are measured
        from the first call on: call it once before training to have those of the first steps. Until
        then it costs nothing; afterwards a few clocks are read in every step, and the norm of a
        gradient is taken once a call, in the step after it.

        Returns:
            By name, each behind ``"compression/"``; see docs/statistics.md for all of them. What is
            not known, as where no step was taken, is NaN.

        Example:
            >>> import ddp_compress as dc
            >>> state = dc.CompressionState(nn.Linear(4, 2), dc.recipes.topk(density=0.5))
            >>> _ = state.reduce({"weight": torch.tensor([4.0, 1, 2, 3, 0, 0, 0, 9])})
            >>> metrics = state.metrics()
            >>> metrics["compression/density"], metrics["compression/residual_norm"]
            (0.5, 1.0)
        """
        within = self.within is not None
        return self._metrics.read(self.stats, self._store.kept("residual"), within)

    # ------------------------------------------------------------------------ memory by itself

    def memory(self) -> dict[str, dict[str, Tensor]]:
        """A copy of what is kept of every parameter: by slot and parameter, flat [numel].

        With ``within=`` it is of this rank's slice of each, of a sharded model of its shard.
        """
        return self._store.state_dict()

    def replace_memory(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Keep other tensors, such as `memory` gave; all else stays as it is."""
        self.abandon_step()  # a backward that raised may have left half a step behind
        self._no_way_back()
        self._binding.restored.memory()
        self._left_memory = False
        self._facts.placed = True
        self._store.load(tensors)
        self._peers.forget_messages()

    # ---------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """This rank's memory, step and statistics: plain tensors, numbers and names, all copies.

        Every rank keeps its own: residuals differ between ranks. Load it with
        ``torch.load(..., weights_only=True)``. For `torch.distributed.checkpoint` see `PerRank`.

        Example:
            >>> import ddp_compress as dc
            >>> state = dc.CompressionState(nn.Linear(4, 2), dc.recipes.sbc(density=0.1))
            >>> state.state_dict()["tensors"]  # before the first step
            {'residual': {}}
        """
        tensors = self._store.state_dict()
        return {
            "format": FORMAT,
            "recipe": self.recipe.name,
            "parameters": digest_of(self._parameters.here),
            "saved_by": self._peers.rank_and_size,
            "part": self._peers.part,
            "blocks": self._parameters.blocks,
            "step": self.step,
            "density": self._peers.latest_density,
            "dim_orders": dim_orders(self._parameters.here),
            "buckets": [list(layout.names) for layout in self._buckets.latest],
            "stats": self.stats.state_dict(),
            "tensors": tensors,
            "checksum": checksum(tensors),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave on this rank, of the same model and recipe.

        Density may differ. For another number of ranks see `redistribute`. On another rank the next
        step raises a `PeerError`, on every rank.

        Until DDP has rebuilt its buckets, which after a restart takes it a step or two, gradients
        are sent in the checkpoint's buckets. For that, load before the state's first step: later
        the ranks could not tell whether all of them do so.

        Raises:
            ValueError: the checkpoint does not fit. Nothing has changed then.
        """
        check_form(saved)
        part = part_of(saved)
        numels = self._parameters.numels(part)
        check_whole(saved)
        saved = with_clean_names(saved)
        check_fits(saved, self.recipe, self._parameters.here, numels)
        self.replace_memory(saved["tensors"])
        self.step = saved["step"]
        self.stats = Stats.of(saved["stats"])
        self._metrics.restart(self.stats)
        self._loss_scale.loaded()
        self._buckets = Buckets([self._parameters.layout_of(names) for names in saved["buckets"]])
        if self._peers.comm is not None:
            self._buckets.settle()
        self._peers.loaded(saved["saved_by"], part, saved["density"], self.stats)

    def load_state_dicts(self, every: Sequence[Mapping[str, Any]]) -> None:
        """Take back what `state_dict` gave on all ranks, be they more or fewer now.

        On as many ranks it is this rank's own, else its share of all, by `redistribute`.

        Args:
            every: of all ranks of the job, in their order.

        Raises:
            ValueError: they do not fit, or are not of all ranks. Nothing has changed then.

        Example:
            >>> import ddp_compress as dc
            >>> state = dc.CompressionState(nn.Linear(3, 1), dc.recipes.topk(density=0.3))
            >>> two = [dc.redistribute([state.state_dict()], rank, 2) for rank in range(2)]
            >>> state.load_state_dicts(two)
        """
        self.load_state_dict(own_of_all(every, self._peers))
