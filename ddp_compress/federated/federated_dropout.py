"""Federated dropout: every round trains a smaller model, made of some of the units."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_compress.checkpoints import checkpoint
from ddp_compress.checks import check_bool, check_count, check_int
from ddp_compress.federated.sub_model import Index, indices, shrunk, tensors_of
from ddp_compress.federated.units import hidden_units
from ddp_compress.local.local_updates import LocalUpdates
from ddp_compress.local.roll_call import Answer
from ddp_compress.local.round import Round
from ddp_compress.ops import host
from ddp_compress.schedules import check_density
from ddp_compress.step.state import CompressionState
from ddp_compress.transport.groups import rank_and_size

Memory = dict[str, dict[str, Tensor]]  # by slot and parameter


class FederatedDropout:
    """Trains a smaller model in every round, and maps what it learned back into the full one.

    A round keeps ``max(1, round(rate * units))`` units of each hidden layer, drawn at random: the
    outputs of a linear layer, the filters of a convolution. The others' rows are gone from the
    layer's own weights, and their columns from those of the next, so `sub_model` is dense and
    smaller, and as large in every round: a linear layer between two hidden ones has ``rate ** 2``
    of its weights. Batch norms follow, and so do a linear layer's inputs behind a flattened map, a
    block of them a filter. Inputs and outputs of the model are whole. The sub-model gives what the
    full one would with zeros for the dropped units; nothing is rescaled.

    The units of a round are a function of seed and round alone, so one sub-model serves all ranks.
    It trains under DDP with any recipe, or under `LocalUpdates`; messages are those of its own
    size. What a `CompressionState` keeps of a coordinate, such as its residual, follows that
    coordinate: while it is dropped it waits here, whole, at the full model's size.

    With ``per_rank`` the units are a function of the rank too. Every rank trains its own sub-model
    without DDP, and `merge` sends updates through a state of the full model. An update is averaged
    over the ranks that hold its coordinate: of W ranks it is multiplied by W / (how many do) before
    it goes through the recipe, so what is still owed may be sent in any later round, and the mean
    over ranks is right. A selection then counts the full model's elements; recipes that send
    everything send all of them.

    Supported are models that `torch.fx` can trace, of ``Linear``, ``Conv1d`` to ``Conv3d`` without
    groups, ``BatchNorm``, activations, pooling, dropout, ``Flatten(1)``, also as functions, and
    sums of layers' outputs, whose units come and go together. Anything else is refused by name.

    Args:
        model: the full one, bare. Keep it in fp32: it takes up every round's changes.
        rate: share of the units that a round keeps, in (0, 1].
        seed: of the draws, the same on every rank.
        per_rank: whether every rank has a sub-model of its own.

    Attributes:
        model: the full model. Evaluate and save this one.
        sub_model: the smaller one. Its tensors stay the same objects; every round has other values.
        round: the latest that was drawn; None before the first.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``rate`` lies outside its range, or the model does what is not supported.

    Source: Caldas et al., Expanding the Reach of Federated Learning by Reducing Client Resource
    Requirements (2018), §3.2.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> dropout = FederatedDropout(model, rate=0.75, seed=0)
        >>> dropout.sub_model
        Sequential(
          (0): Linear(in_features=8, out_features=3, bias=True)
          (1): ReLU()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
        >>> for number in range(10):
        ...     dropout.draw(number)
        ...     sgd = torch.optim.SGD(dropout.sub_model.parameters(), lr=0.1)
        ...     dropout.sub_model(torch.ones(1, 8)).square().sum().backward()
        ...     sgd.step()
        ...     dropout.merge()
        >>> dropout
        FederatedDropout(rate=0.75, seed=0, per_rank=False, round=9, 35 of 46 parameters)
    """

    def __init__(
        self, model: nn.Module, rate: float = 0.75, seed: int = 0, per_rank: bool = False
    ) -> None:
        if not isinstance(model, nn.Module) or isinstance(model, DistributedDataParallel):
            raise TypeError(
                f"model must be the bare full model, got {type(model).__name__}: it is sub_model "
                "that is wrapped in DDP"
            )
        check_bool("per_rank", per_rank)
        self.model = model
        self.rate = check_density(rate, "rate")
        self.seed = check_int("seed", seed)
        self.per_rank = per_rank
        self.round: int | None = None
        self._units = hidden_units(model)
        self._index = self._indices(0, 0)
        self.sub_model = shrunk(model, self._units, self._index)
        self._state: CompressionState | None = None  # that updates travel through
        self._local_updates: LocalUpdates | None = None
        self._round: Round | None = None
        self._waiting: Memory = {}

    def __repr__(self) -> str:
        ours, full = (
            sum(p.numel() for p in model.parameters()) for model in (self.sub_model, self.model)
        )
        setting = ", ".join(f"{name}={value}" for name, value in self._setting().items())
        return f"FederatedDropout({setting}, round={self.round}, {ours} of {full} parameters)"

    def kept(self, number: int, rank: int = 0) -> dict[str, Tensor]:
        """The units that a round keeps of every layer that drops some, ascending.

        Args:
            number: of the round.
            rank: whose; with one sub-model for all ranks no matter.

        Example:
            >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
            >>> FederatedDropout(model, rate=0.5).kept(0)
            {'0': tensor([2, 3])}
        """
        drawn = self._drawn(number, rank)
        return {layer: drawn[group] for layer, group in self._units.layers.items()}

    def attach(self, through: LocalUpdates | CompressionState) -> None:
        """Tell what updates travel through, before the first round.

        Args:
            through: of the sub-model, a `LocalUpdates` or the state of a DDP hook: what they keep
                follows its coordinates from now on. With ``per_rank`` a state of the full model.

        Raises:
            TypeError: it is neither.
            ValueError: it is of another model, or keeps slices of its tensors alone.
        """
        if not isinstance(through, CompressionState | LocalUpdates):
            raise TypeError(
                f"through must be a LocalUpdates or a CompressionState, "
                f"got {type(through).__name__}"
            )
        if self.per_rank and not isinstance(through, CompressionState):
            raise TypeError("through must be a CompressionState of the full model with per_rank")
        local = through if isinstance(through, LocalUpdates) else None
        state = through.compression if isinstance(through, LocalUpdates) else through
        state.layout(list((self.model if self.per_rank else self.sub_model).parameters()))
        if state.within is not None and not self.per_rank:
            raise ValueError(
                "what the state keeps follows whole units from round to round, but with within= "
                "a rank has slices of them: make the state without it"
            )
        self._state, self._local_updates = state, local
        if self.per_rank:
            trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
            self._round = Round(state, self.model, trained)

    @torch.no_grad()
    def draw(self, number: int) -> None:
        """Begin a round: give `sub_model` the weights and buffers of the units that it keeps.

        What was trained since the last `merge` is given up. Give every round a new optimizer, or
        one without momentum: that of the last round is of other units. `LocalUpdates` sees to that
        by itself.

        Args:
            number: of the round, the same on every rank.

        Raises:
            ValueError: the attached state keeps memory of units that are not known.
        """
        check_count("number", number, least=0)
        state = None if self.per_rank else self._state
        kept = state.memory() if state else {}
        if self.round is None and any(kept.values()):
            raise ValueError(
                "the attached state keeps memory of a round that is not known: attach a new one, "
                "or load the checkpoint of this FederatedDropout as well"
            )
        self._put_away(kept)
        self._begin(number)
        for full, part, index in self._tensors():
            part.copy_(full[index])
        if state and any(kept.values()):
            state.replace_memory(self._take_out())
        if self._local_updates is not None:
            self._local_updates.restart()

    @torch.no_grad()
    def merge(self) -> None:
        """End a round: map what `sub_model` learned back into the full model.

        Local steps that are not yet shared are, first: a `LocalUpdates` is synchronized, and with
        ``per_rank`` updates are averaged here. All ranks must call it then. A round that is lost,
        because a rank's weights are not finite, leaves the full model as it was.

        Raises:
            RuntimeError: no round was drawn, or with ``per_rank`` nothing was attached.
            PeerError: on every rank, where ranks differ or one failed. Nothing has changed then.
        """
        if self.round is None:
            raise RuntimeError("merge was called before draw: there is no round to end")
        if self.per_rank:
            self._average()
            return
        if self._local_updates is not None:
            self._local_updates.synchronize()
        for full, part, index in self._tensors():
            full[index] = part.to(full)

    def state_dict(self) -> dict[str, Any]:
        """The round, and this rank's memory of units that it dropped.

        The full model is saved by itself, and so are what is attached and, in the middle of a
        round, `sub_model`. Load this one after attaching.
        """
        return {**self._setting(), "round": self.round, "waiting": checkpoint.copied(self._waiting)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave, of the same model and arguments.

        Raises:
            ValueError: it does not fit. Nothing has changed then.
        """
        self._check(saved)
        if saved["round"] is not None:
            self._begin(saved["round"])
        self.round = saved["round"]
        self._waiting = checkpoint.copied(saved["waiting"])

    def load_state_dicts(self, every: Sequence[Mapping[str, Any]]) -> None:
        """Take back this rank's of what `state_dict` gave on all ranks.

        Raises:
            ValueError: they are of another number of ranks, or do not fit.
        """
        rank, size = rank_and_size()
        if len(every) != size:
            raise ValueError(
                f"what {len(every)} ranks kept of units that they dropped fits as many ranks "
                f"alone, not {size}"
            )
        self.load_state_dict(every[rank])

    def _setting(self) -> dict[str, Any]:
        return {"rate": self.rate, "seed": self.seed, "per_rank": self.per_rank}

    def _description(self) -> str:
        """What all ranks must share, in words."""
        return f"federated dropout {self._setting()}"

    def _check(self, saved: Mapping[str, Any]) -> None:
        checkpoint.check_entries(saved, {*self._setting(), "round", "waiting"})
        for name, ours in self._setting().items():
            theirs = saved[name]
            checkpoint.expect(theirs == ours, f"checkpoint has {name}", theirs, repr(ours))
        number = saved["round"]
        drawn = number is None or checkpoint.is_count(number)
        checkpoint.expect(drawn, "checkpoint has round", number, "an int of 0 or more, or None")
        checkpoint.check_tensors("waiting tensors", saved["waiting"])
        shapes = {name: tuple(p.shape) for name, p in self.model.named_parameters()}
        for slot, name, tensor in checkpoint.flat_items(saved["waiting"]):
            what, came = f"checkpoint's {slot} of {name} has shape", tuple(tensor.shape)
            checkpoint.expect(came == shapes.get(name), what, came, str(shapes.get(name)))

    # ------------------------------------------------------------------------- one for every rank

    def _average(self) -> None:
        """Hold a round over the full model, in which every rank has moved its own coordinates."""
        if self._round is None:
            raise RuntimeError("merge averages the ranks' updates: attach a CompressionState first")
        self._round.restart()
        held = self._held()
        for name, (full, part, index) in zip(held, self._tensors(), strict=True):
            before = full[index]
            if full.is_floating_point():
                full[index] = before + (part.to(full) - before) * held[name][index].to(full)
            else:
                full[index] = part.to(full)
        try:
            self._round.meet(lambda: Answer(period=1, passes=1), self._description())
        except BaseException:
            self._round.write()
            raise

    def _held(self) -> dict[str, Tensor]:
        """W / (how many ranks hold a coordinate), by tensor."""
        _, world_size = self._place()
        counts = {
            name: torch.zeros_like(t, dtype=torch.float32) for name, t in tensors_of(self.model)
        }
        for rank in range(world_size):
            for name, index in self._indices(self.round or 0, rank).items():
                counts[name][index] += 1
        return {name: world_size / count for name, count in counts.items()}

    def _place(self) -> tuple[int, int]:
        return rank_and_size(self._state.process_group if self._state else None)

    # ------------------------------------------------------------------------------------ memory

    def _put_away(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Let what a state keeps of the sub-model wait at the coordinates of the full one."""
        full, ours = dict(self.model.named_parameters()), dict(self.sub_model.named_parameters())
        for slot, name, flat in checkpoint.flat_items(tensors):
            waiting = self._waiting.setdefault(slot, {})
            if name not in waiting:
                waiting[name] = flat.new_zeros(full[name].shape)
            waiting[name][self._index[name]] = self._shaped(flat, ours[name])

    def _take_out(self) -> Memory:
        """What waits for the sub-model of now, as its state keeps it."""
        ours = dict(self.sub_model.named_parameters())
        taken: Memory = {slot: {} for slot in self._waiting}
        for slot, name, waiting in checkpoint.flat_items(self._waiting):
            flat = taken[slot][name] = waiting.new_empty(ours[name].numel())
            self._shaped(flat, ours[name]).copy_(waiting[self._index[name]])
            waiting[self._index[name]] = 0
        return taken

    def _shaped(self, flat: Tensor, parameter: Tensor) -> Tensor:
        """Memory [N] in a parameter's shape: it lies as the parameter does."""
        return flat.as_strided(parameter.shape, parameter.stride())

    # ------------------------------------------------------------------------------------- units

    def _begin(self, number: int) -> None:
        rank, _ = self._place()
        self.round, self._index = number, self._indices(number, rank)
        if self._state is not None:
            self._state.must_match = f"{self._description()}, round {number}"

    def _drawn(self, number: int, rank: int) -> dict[str, Tensor]:
        """The units that a round keeps of every group."""
        own, drawn = f" {rank}" if self.per_rank else "", {}
        for group, units in self._units.sizes.items():
            numbers = random.Random(f"{self.seed} {number}{own} {group}")
            kept = numbers.sample(range(units), max(1, round(self.rate * units)))
            drawn[group] = host.tensor(sorted(kept), dtype=torch.int64)
        return drawn

    def _indices(self, number: int, rank: int) -> dict[str, Index]:
        return indices(self.model, self._units, self._drawn(number, rank))

    def _tensors(self) -> Iterator[tuple[Tensor, Tensor, Index]]:
        """Every parameter and buffer: the full model's, the sub-model's, and where that lies."""
        both = zip(tensors_of(self.model), tensors_of(self.sub_model), strict=True)
        return ((full, part, self._index[name]) for (name, full), (_, part) in both)
