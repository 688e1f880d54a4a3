"""What a state knows of the DDP model whose hook it is."""

from __future__ import annotations

import copy
import weakref
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_compress.recipe import Recipe
from ddp_compress.step.after_backward import AfterBackward, End
from ddp_compress.step.applied import Applied
from ddp_compress.step.ddp_model import BeforeForward, find_model
from ddp_compress.step.guards import (
    refuse_optimizer_in_backward,
    refuse_other_ranks,
    refuse_unsupported_ddp,
    refuse_unsupported_parameters,
)
from ddp_compress.step.parameters import Parameters, ignored_parameters
from ddp_compress.step.peers import Peers
from ddp_compress.step.restored import Restored
from ddp_compress.step.shard_gradients import ShardBucket, shard_buckets


class Binding:
    """What a state knows of its model: first the bare one, then the DDP model, once it is seen.

    Args:
        module: the bare model.
        recipe: the state's.
        peers: whose process group is the DDP model's, where none was given.

    Attributes:
        parameters: of the bare model; those of its copy, once the state is a copy's.
        buckets: in which gradients of a sharded model travel; none before it is followed.
        weights: a number that models of equal weights share, of a sharded one that is followed.
        find_unused: whether a parameter may be left out of this rank's step.
        applied: what became of the gradients that were sent.
        restored: whether weights were loaded without memory.
        before_forward: sees the DDP model's forward passes; None before it is bound.

    Raises:
        ValueError: a parameter cannot be compressed.
    """

    def __init__(self, module: nn.Module, recipe: Recipe, peers: Peers) -> None:
        refuse_unsupported_parameters(module, ignored_parameters(module))
        self.parameters = Parameters(module)
        self.find_unused = False
        self.buckets: list[ShardBucket] = []
        self.weights: int | None = None
        self.before_forward: BeforeForward | None = None
        self._recipe = recipe
        self._peers = peers
        self._watch_parameters()
        self.restored.watch(module)

    def __getstate__(self) -> dict[str, Any]:
        """All but what sees this very model."""
        seen = dict.fromkeys(("applied", "restored", "before_forward"))
        return self.__dict__ | seen

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__dict__.update(saved)
        self._watch_parameters()

    def with_peers(self, peers: Peers) -> Binding:
        """The same for a copy of the state, which has yet to see its DDP model."""
        twin = copy.copy(self)
        twin._peers = peers
        return twin

    def begin_pass(self, state: object, parameter: Tensor, remembers: bool) -> None:
        """A backward pass has come to its first bucket.

        Args:
            state: the hook's.
            parameter: of the bucket.
            remembers: whether memory holds anything.

        Raises:
            ValueError: see `bind_to`; or no DDP model holds the parameter, or several do.
        """
        hook = self.before_forward
        if hook is None or not hook.precedes_pass(state):
            self.bind_to(find_model(parameter, state, but=hook.model if hook else None))
        self.restored.check_pass(remembers)

    def bind_to(self, model: DistributedDataParallel) -> None:
        """Learn of a DDP model what its hook must know.

        Raises:
            ValueError: its options go past a hook, it is of other ranks, or another model.
        """
        self.find_unused = model.find_unused_parameters
        peers = self._peers
        if not peers.have_met:  # if anything is refused now, the model's ranks must hear of it
            peers.group = model.process_group
        refuse_unsupported_ddp(model)
        refuse_optimizer_in_backward(model)
        group = peers.group if peers.have_met else peers.given or model.process_group
        if group is not model.process_group:
            refuse_other_ranks(group, model)
        peers.group = group
        theirs = Parameters(model.module)
        if theirs.is_copy_of(self.parameters):  # this state came from a file, or of another copy
            self.parameters = theirs
            self._watch_parameters()
        elif self.before_forward is not None and self.before_forward.model is model:
            return
        self.restored.watch(model.module)
        if self.before_forward is not None:
            self.before_forward.remove()
        self.before_forward = BeforeForward(model, self.applied.before_forward)
        weakref.finalize(self, self.before_forward.remove)

    def follow(self, model: nn.Module, end: End) -> None:
        """See when passes of a sharded model are over, and what becomes of their gradients.

        Args:
            model: this one, or one that holds it.
            end: see `AfterBackward`.

        Raises:
            ValueError: its gradients are exchanged already.
        """
        trained = {n: p for n, p in self.parameters.named.items() if p.requires_grad}
        passes = AfterBackward(model, trained, end, begin=self._begin_backward)
        self.applied.check_by(lambda optimizer, _: passes.check_optimizer(optimizer))
        self.buckets = shard_buckets(self.parameters)

    def _begin_backward(self) -> None:
        self.applied.begin_backward()
        if not self._peers.have_met:  # they will compare what weights are before the first step
            self.weights = self.parameters.digest()

    @property
    def model(self) -> DistributedDataParallel | None:
        """The DDP model, where it is known and still lives."""
        return None if self.before_forward is None else self.before_forward.model

    @property
    def joined(self) -> bool:
        """Whether the pass under way is one in which this rank has no input (`DDP.join`)."""
        return self.before_forward is not None and self.before_forward.joined

    def stop(self) -> None:
        """See no more."""
        self.restored.stop()
        if self.before_forward is not None:
            self.before_forward.remove()

    def _watch_parameters(self) -> None:
        named, recipe = self.parameters.named, self._recipe
        self.applied = Applied(named, recipe.name if "momentum" in recipe.memory.tensors else None)
        self.restored = Restored(named)
