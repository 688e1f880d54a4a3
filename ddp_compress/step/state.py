"""All that changes: residuals and their kin, the step, the statistics."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

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
)
from ddp_compress.checks import check_count
from ddp_compress.message.chunk import Chunk
from ddp_compress.message.layout import Layout
from ddp_compress.message.memory_format import flatten, unflatten
from ddp_compress.ops.devices import SideStream
from ddp_compress.recipe import Recipe
from ddp_compress.schedules import density_at
from ddp_compress.stats import Stats
from ddp_compress.step.applied import Applied
from ddp_compress.step.bucket_replay import Buckets, ReplayedBuckets
from ddp_compress.step.ddp_model import BeforeForward, find_model
from ddp_compress.step.guards import (
    refuse_optimizer_in_backward,
    refuse_other_ranks,
    refuse_second_momentum,
    refuse_unsupported_ddp,
    refuse_unsupported_parameters,
)
from ddp_compress.step.parameters import Parameters, ignored_parameters
from ddp_compress.step.restored import Restored
from ddp_compress.step.scaling import scale_of
from ddp_compress.step.store import ParameterStore
from ddp_compress.step.transaction import Settings, Transaction
from ddp_compress.step.undo import Undo
from ddp_compress.step.worker import Worker
from ddp_compress.transport.comm import Comm

FLUSH_BYTES = 256 * 1024
CLOSED = "this state was closed: make a new one, or close it later"


class CompressionState:
    """What a rank carries from step to step, and the way of a gradient through a recipe.

    A step is a transaction. Gradients come in chunk by chunk; each message is selected, encoded
    and sent as soon as it is full, but memory is written only when the last chunk is in and every
    rank's messages have arrived whole. If any rank met a non-finite gradient, nothing is written
    anywhere and every gradient comes back as NaN, so that the optimizer's step is skipped
    everywhere (by ``torch.amp.GradScaler``, or by whoever checks the gradient norm).

    Args:
        model: the DDP model or the bare one. Its parameters name the state's tensors; those that
            DDP ignores are left out.
        recipe: see `ddp_compress.recipes`.
        process_group: the ranks to exchange with, those of the DDP model; None for its group, or
            the default one.
        start_step: the step that density schedules start from.
        min_numel: parameters with fewer elements are uncompressed: they travel dense, with
            ``all_gather`` inside the same messages, else by an all-reduce of their own. Raise it
            when the few hundred numbers of biases and norms matter more than their bytes: at 0.1 %
            density they can outweigh all the rest.
        flush_bytes: a message goes out when it holds this many bytes. Small ones cost a round
            trip each; large ones do not overlap backward.

    Attributes:
        stats: see `Stats`.
        step: steps taken, ``start_step`` included; an aborted step is not counted.
        must_match: anything else whose repr ranks must share in every step.

    Raises:
        TypeError: ``recipe`` is not a `Recipe`.
        ValueError: a parameter is complex or has sparse gradients, the DDP model has options that
            go past a hook, ``process_group`` is of other ranks, or an argument lies outside its
            range. For a state made of the bare model, from the first backward pass of its DDP
            model.

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
        start_step: int = 0,
        min_numel: int = 0,
        flush_bytes: int = FLUSH_BYTES,
    ) -> None:
        if not isinstance(recipe, Recipe):
            raise TypeError(
                f"recipe must be a ddp_compress Recipe such as recipes.sbc(density=0.001), "
                f"got {type(recipe).__name__}"
            )
        check_count("start_step", start_step, least=0)
        check_count("min_numel", min_numel, least=0)
        check_count("flush_bytes", flush_bytes, least=1)
        bare = model.module if isinstance(model, DistributedDataParallel) else model
        refuse_unsupported_parameters(bare, ignored_parameters(bare))
        self.recipe = recipe
        self.process_group = process_group
        self.step = start_step
        self.stats = Stats()
        self._given_group = process_group
        self._parameters = Parameters(bare)
        self._store = ParameterStore(recipe.tensors)
        self._settings = Settings(recipe, min_numel, flush_bytes)
        self._find_unused = False
        self._comm: Comm | None = None
        self._transaction: Transaction | ReplayedBuckets | None = None
        self._scaler: GradScaler | None = None
        self._stepped_without_scaler = False
        self._saved_by: list[int] | None = None  # rank and world size, of what was loaded
        self._loaded_density: float | None = None
        self._buckets = Buckets()
        self._left_memory = False  # behind, with the DDP model that this is a copy's of
        self.must_match: object = None
        self._start()
        if isinstance(model, DistributedDataParallel):
            self._bind_to(model)
        else:
            self._restored.watch(bare)

    def _start(self) -> None:
        """What every copy of a state makes anew."""
        self._closed = False
        self._worker: Worker | None = None
        self._side_stream = SideStream()
        self._undo: Undo | None = None
        self._ends: list[Callable[[], None]] = []  # what else `close` is to end
        self._passed = False  # whether there was a pass since, perhaps an aborted one
        self._before_forward: BeforeForward | None = None
        self._watch_parameters()

    def _watch_parameters(self) -> None:
        named, has_momentum = self._parameters.named, "momentum" in self.recipe.memory.tensors
        self._applied = Applied(named, has_momentum)
        self._restored = Restored(named)
        if has_momentum:
            refuse_second_momentum(self, named.values(), self.recipe.name)

    def __getstate__(self) -> dict[str, Any]:
        """All but what cannot leave the process: its group, and a step under way."""
        gone = (
            *("process_group", "_given_group", "_comm", "_transaction", "_worker", "_side_stream"),
            *("_scaler", "_undo", "_ends", "_before_forward", "_applied", "_restored"),
        )
        kept = {"_saved_by": self._rank_and_size(), "_loaded_density": self._latest_density()}
        kept["_had_scaler"] = self._scaler is not None
        return self.__dict__ | dict.fromkeys(gone) | kept

    def __setstate__(self, saved: dict[str, Any]) -> None:
        had_scaler = saved.pop("_had_scaler")
        self.__dict__.update(saved)
        self._buckets = Buckets(self._buckets.latest)
        self._start()
        if had_scaler:
            warnings.warn(
                "this copy of a CompressionState knows no GradScaler: call use_scaler again",
                stacklevel=2,
            )

    def ends_with(self, end: Callable[[], None]) -> None:
        """Let `close` call a function too, which ends what others have opened for this state."""
        self._ends.append(end)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompressionState:
        """A copy with all that is kept; but with nothing where it comes along with a DDP model.

        Copies of those are mostly for evaluation, as averages of weights, and have lost their hook.
        Where both are copied in one call, copy the state first, or load its ``state_dict``.
        """
        twin = object.__new__(CompressionState)
        memo[id(self)] = twin
        saved = self.__getstate__()
        if self._before_forward is not None and id(self._before_forward.model) in memo:
            saved |= {"_store": ParameterStore(self.recipe.tensors), "_buckets": Buckets()}
            saved["_left_memory"] = self.stats.steps > 0
        twin.__setstate__(copy.deepcopy(saved, memo))
        return twin

    def __repr__(self) -> str:
        return (
            f"CompressionState(recipe={self.recipe!r}, step={self.step}, "
            f"parameters={len(self._parameters.named)} of {self._parameters.numel} elements, "
            f"ratio={self.stats.ratio:.1f})"
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
        if not isinstance(scaler, GradScaler):
            raise TypeError(f"scaler must be a torch.amp.GradScaler, got {type(scaler).__name__}")
        if self._stepped_without_scaler and scaler.is_enabled():
            raise RuntimeError(
                "use_scaler was called after steps without it, so memory is in the units of scales "
                "gone by: call it before the first step, or load a checkpoint in unscaled units"
            )
        self._scaler = scaler

    def loss_scale(self, device: torch.device) -> Tensor | None:
        """What gradients on a device are multiplied by now, [] fp32; None without a scaler."""
        return None if self._scaler is None else scale_of(self._scaler, device)

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
            ValueError: on every rank, where a message is corrupt.
        """
        chunk = Chunk(
            flat, layout, may_be_unused=self._find_unused, scale=scale, must_match=self.must_match
        )
        return self._take(chunk, last, self._buckets)

    def push_bucket(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """`push` a bucket of the DDP model whose hook this state is.

        Raises:
            PeerError, ValueError: see `push`. A rank also fails where the bucket is of another
                model or converted since, its DDP model has options that go past a hook, or
                gradients are summed with those of a pass that was sent before, which a momentum
                would take in twice.
        """
        parameters, flat = bucket.parameters(), bucket.buffer()
        failure = None
        try:
            if bucket.index() == 0:
                self._begin_pass(parameters[0])
            self._applied.check_bucket(parameters)
            if bucket.is_last():
                self._applied.check_pass()
            layout, scale = self._parameters.layout(parameters), self.loss_scale(flat.device)
        except Exception as error:  # perhaps on this rank alone: its messages must meet the others'
            failure, layout, scale = error, self._parameters.stand_in(parameters), None
        chunk = Chunk(
            flat, layout, may_be_unused=self._find_unused, scale=scale, must_match=self.must_match
        )
        future = self._take(chunk, bucket.is_last(), self._buckets, failure)
        joined = self._before_forward is not None and self._before_forward.joined
        if bucket.is_last() and self._undo is not None and not joined:
            self._applied.sent(self._undo.sent, self._undo.settle)
        return future

    def _begin_pass(self, parameter: Tensor) -> None:
        self.abandon_step()  # a backward that raised may have left half a step behind
        hook = self._before_forward
        if hook is None or not hook.precedes_pass(self):
            self._bind_to(find_model(parameter, self, but=hook.model if hook else None))
        self._restored.check_pass(self.stats.steps > 0)
        if self._left_memory:
            self._left_memory = False
            warnings.warn(
                "this state came along with a copy of a DDP model, without the memory of the "
                "original, which is owed to the model: load_state_dict the original's state_dict()",
                stacklevel=2,
            )

    def _bind_to(self, model: DistributedDataParallel) -> None:
        """Learn of a DDP model what its hook must know."""
        has_met = self._comm is not None and not self._comm.outdated
        if not has_met:  # if anything is refused now, its ranks must hear of it
            self.process_group = model.process_group
        self._find_unused = model.find_unused_parameters
        refuse_unsupported_ddp(model)
        refuse_optimizer_in_backward(model)
        if has_met or self._given_group is not None:
            refuse_other_ranks(self.process_group if has_met else self._given_group, model)
        if not has_met:
            self.process_group = self._given_group or model.process_group
        theirs = Parameters(model.module)
        if theirs.is_copy_of(self._parameters):  # this state came from a file, or of another copy
            self._parameters = theirs
            self._watch_parameters()
        elif self._before_forward is not None and self._before_forward.model is model:
            return
        self._watch_model(model)

    def _watch_model(self, model: DistributedDataParallel) -> None:
        self._restored.watch(model.module)
        if self._before_forward is not None:
            self._before_forward.remove()
        self._before_forward = BeforeForward(model, self._applied.before_forward)
        weakref.finalize(self, self._before_forward.remove)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _take(
        self, chunk: Chunk, last: bool, buckets: Buckets, failure: Exception | None = None
    ) -> Future[Tensor]:
        if chunk.grad.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a CUDA graph cannot hold the exchange with other ranks: capture less"
            )
        transaction = self._current_step(buckets)
        if failure is not None:
            transaction.fail(failure)
        transaction.add(chunk)
        if last and self._finish(transaction):
            buckets.latest = tuple(transaction.layouts)
        return chunk.future

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
            layout, named = self._parameters.layout_of_given(tensors), self._parameters.named
            flat = torch.cat([flatten(t.detach(), named[n]) for n, t in tensors.items()])
        except Exception as error:
            transaction = self._current_step(alone)
            transaction.fail(error)
            self._finish(transaction)
            raise
        must_match = (self.must_match, must_match)
        chunk = Chunk(flat, layout, may_be_unused=self._find_unused, must_match=must_match)
        mean = self._take(chunk, True, alone).wait()
        parts = layout.split(mean)
        return {n: unflatten(parts[n], named[n], t) for n, t in tensors.items()}

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
        ``hgc`` the next pass takes another collective, because another rank's turn was expected.

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
            if self._applied.by is not None:
                raise RuntimeError(
                    f"{self._applied.by} has applied gradients of this pass already: call "
                    "discard() in place of its step. If it is of other parameters than those whose "
                    "gradients are thrown away, give each a DDP model and a state of its own"
                )
            self._undo.take_back()
            self._applied.nothing_owed()
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
        self._undo, self._passed = None, False
        self._applied.nothing_owed()

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
        self._closed = True
        if self._worker is not None:
            self._worker.close()
        if self._comm is not None:
            self._comm.close()
        for end in self._ends:
            end()
        self._restored.stop()
        if self._before_forward is not None:
            self._before_forward.remove()

    def _current_step(self, buckets: Buckets) -> Transaction | ReplayedBuckets:
        """The step under way; where there is none a new one, in such buckets."""
        if self._closed and self._comm is not None:
            raise RuntimeError(CLOSED)
        if self._transaction is None:
            self._undo, self._passed = None, False
            comm = self._connect()
            step = Transaction(
                self._settings, self._store, comm, self._worker, self._side_stream, self.step
            )
            self._transaction = buckets.begin(step, self._side_stream)
            here = [comm.rank, comm.world_size]
            if self._saved_by not in (None, here):
                rank, world_size = self._saved_by
                self._transaction.fail(
                    ValueError(
                        f"checkpoint was saved by rank {rank} of {world_size}, this is rank "
                        f"{comm.rank} of {comm.world_size}: what other ranks kept would be lost. "
                        "Load it on the same rank of as many, or see ddp_compress.redistribute"
                    )
                )
        return self._transaction

    def _finish(self, transaction: Transaction | ReplayedBuckets) -> bool:
        """Whether the step was committed."""
        try:
            committed = transaction.finish()
        finally:
            self._transaction = None
        self._passed = True
        self._applied.nothing_owed()
        if not committed:
            self.stats.aborted += 1
            return False
        self._undo = transaction.undo
        self.step += 1
        self._stepped_without_scaler |= self._scaler is None
        world_size = self._connect().world_size
        self.stats.steps += 1
        elements = sum(layout.numel for layout in transaction.layouts)
        self.stats.elements += elements
        self.stats.dense_bytes += 2 * (world_size - 1) / world_size * 4 * elements
        return True

    def _connect(self) -> Comm:
        """Meet the other ranks, once: a state may be built before the process group."""
        if self._comm is None or self._comm.outdated:
            exchange = self.recipe.exchange
            # To wait for a CUDA device is the worker's business: backward goes on meanwhile.
            device = next((p.device for p in self._parameters.named.values()), torch.device("cpu"))
            if exchange.many_phase or device.type == "cuda":
                self._worker = self._worker or Worker(device)
            comm = Comm(self.process_group, self.stats, device, exchange.has_large_sender)
            try:
                density = density_at(self.recipe.select.density, self.step)
            except Exception:
                density = 1.0  # the step's message will tell every rank
            # As in an undisturbed run, where the latest step's says where messages of the next end.
            comm.agree(
                partial(self._description, density), self._loaded_density or density, self.step
            )
            self._comm = comm
        return self._comm

    def _description(self, density: float) -> str:
        """What all ranks must share, in words."""
        if self._closed:
            raise RuntimeError(CLOSED)
        recipe, settings, parameters = self.recipe, self._settings, self._parameters.named
        options = ((n, value) for n, value in vars(recipe.select).items() if n != "density")
        select = ", ".join(f"{name}={value}" for name, value in options)
        return (
            f"recipe {recipe.name}, density {density:.9g}, "
            f"{type(recipe.memory).__name__}(momentum={recipe.memory.momentum_at(self.step):.9g}, "
            f"clip={recipe.memory.clip}), "
            f"{type(recipe.select).__name__}({select}), "
            f"{recipe.body}, {recipe.quantize}, {recipe.codec}, {recipe.exchange}, "
            f"step {self.step}, min_numel {settings.min_numel}, "
            f"flush_bytes {settings.flush_bytes}, parameters #{digest_of(parameters):08x}, "
            f"loaded density {self._loaded_density}, loaded buckets #{self._buckets.digest:08x}"
        )

    # ------------------------------------------------------------------------ memory by itself

    def memory(self) -> dict[str, dict[str, Tensor]]:
        """A copy of what is kept of every parameter: by slot and parameter, flat [numel]."""
        return self._store.state_dict()

    def replace_memory(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Keep other tensors, such as `memory` gave; all else stays as it is."""
        self.abandon_step()  # a backward that raised may have left half a step behind
        self._undo, self._passed = None, False
        self._applied.nothing_owed()
        self._restored.memory()
        self._left_memory = False
        self._store.load(tensors)
        if self._comm is not None:
            self._comm.committed.clear()

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
            "parameters": digest_of(self._parameters.named),
            "saved_by": self._rank_and_size(),
            "step": self.step,
            "density": self._latest_density(),
            "dim_orders": dim_orders(self._parameters.named),
            "buckets": [list(layout.names) for layout in self._buckets.latest],
            "stats": self.stats.state_dict(),
            "tensors": tensors,
            "checksum": checksum(tensors),
        }

    def _rank_and_size(self) -> list[int] | None:
        """Rank and world size, where this rank has met the others; None where nothing is kept."""
        if self._comm is None:
            return self._saved_by
        return [self._comm.rank, self._comm.world_size]

    def _latest_density(self) -> float | None:
        """Of the latest step, as far as the ranks have agreed."""
        return self._loaded_density if self._comm is None else self._comm.density

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
        check_fits(saved, self.recipe, self._parameters.named)
        check_whole(saved)
        self.replace_memory(saved["tensors"])
        self.step = saved["step"]
        self._stepped_without_scaler = False
        self._saved_by = saved["saved_by"]
        self._loaded_density = saved["density"]
        self._buckets = Buckets([self._parameters.layout_of(names) for names in saved["buckets"]])
        self.stats = Stats.of(saved["stats"])
        if self._comm is not None:
            self._buckets.settle()
            self._comm.stats = self.stats
