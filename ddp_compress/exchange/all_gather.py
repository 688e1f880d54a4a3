"""Every rank sends its own selection to every other."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddp_compress.exchange.comm import Comm, Work
from ddp_compress.exchange.frame import NONFINITE
from ddp_compress.layout import Sparse
from ddp_compress.message import Delivery, Message

if TYPE_CHECKING:
    from ddp_compress.recipe import Recipe


@dataclass(frozen=True)
class AllGather:
    """Select, quantize, encode, gather; decode every rank in rank order and take the mean.

    One collective a message. A rank sends one message and receives W - 1, so traffic grows with W.
    The body is: exact values in the gradient's dtype, positions, values.

    Example:
        >>> AllGather()
        AllGather()
    """

    def run(
        self, message: Message, recipe: Recipe, comm: Comm
    ) -> Generator[Work, None, list[Delivery] | None]:
        """See `recipe.Exchange.run`."""
        plan = message.plan
        try:
            body = _encode(message, recipe, comm)
        except Exception as error:  # whatever it is, the other ranks must hear of it
            yield from comm.report(error)
            raise
        answers = yield from comm.share(
            plan.density,
            (recipe.name, recipe.memory, recipe.quantize, recipe.codec, plan.digest),
            message.step,
            NONFINITE if body is None else 0,
            torch.empty(0, dtype=torch.uint8) if body is None else body,
        )
        if any(header.flags & NONFINITE for header, _ in answers):
            return None
        selected, exact = [], []
        for rank, (_, answer) in enumerate(answers):
            try:
                entries, dense = _decode(answer, message, recipe)
            except ValueError as error:
                raise ValueError(f"rank {rank}: {error}") from None
            selected.append(entries)
            exact.append(dense)
        scale = 1.0 / comm.world_size
        deliveries = [Delivery(selected[comm.rank], selected, scale)]
        if len(plan.exact):
            deliveries.append(Delivery(exact[comm.rank], exact, scale, exact=True))
        return deliveries


def _encode(message: Message, recipe: Recipe, comm: Comm) -> Tensor | None:
    """The body, or None where a gradient is not finite."""
    selection = recipe.select(message, recipe.memory)
    sparse, exact = selection.entries, message.values_at(message.plan.exact)
    if not (selection.finite and exact.isfinite().all()):
        return None
    exact = message.clamped(exact).to(message.grads[0].dtype)
    comm.stats.nonzeros += len(sparse) + len(exact)
    counts = message.plan.counts(sparse.indices)
    return torch.cat(
        [
            exact.view(torch.uint8),
            recipe.codec.encode(sparse.indices, message.plan),
            recipe.quantize.encode(message.clamped(sparse.values), counts),
        ]
    )


def _decode(body: Tensor, message: Message, recipe: Recipe) -> tuple[Sparse, Sparse]:
    """Selected and exact entries of one rank's body, checked against what the plan allows."""
    plan, dtype = message.plan, message.grads[0].dtype
    exact_bytes = len(plan.exact) * dtype.itemsize
    if len(body) < exact_bytes:
        raise ValueError(f"exact values: got {len(body)} bytes, expected {exact_bytes}")
    exact = body[:exact_bytes].clone().view(dtype)
    indices, used = recipe.codec.decode(body[exact_bytes:], plan)
    counts = plan.counts(indices)
    if (counts > plan.ks).any() or int(counts.sum()) != len(indices):
        raise ValueError("positions: more than a group may send, or outside every group")
    values = recipe.quantize.decode(body[exact_bytes + used :], counts)
    wide = message.memory_dtype
    return Sparse(indices, values.to(wide)), Sparse(plan.exact, exact.to(wide))
