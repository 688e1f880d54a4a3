"""Every CUDA kernel beside its CPU twin: the same bits, of large tensors, views and NaN.

    python bench/gpu_smoke.py
    python bench/gpu_smoke.py --numel 100000 --ops topk
    python bench/gpu_smoke.py --pretend --numel 3000

Each case runs twice on the device: on memory as it is allocated, and one element behind that, where
wide loads are not aligned. What it gives, and what it writes, must be what the CPU's kernel gives.
The exit code is 1 where something differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ddp_compress import ops
from gpu import CUDA, add_pretend, gpu

NUMELS = [1_000_000, 50_000_000]
WORLD_SIZE = 4
BLOCK = 4096
NO_SALTS = torch.empty(0, dtype=torch.int64)

Move = Callable[[Tensor], Tensor]  # a copy of data, where an op is to run


@dataclass(frozen=True)
class Case:
    """An op and what it is given.

    Args:
        op: its name.
        what: it is given.
        run: calls it, on data that are moved where it is to run. Gives all that comes of it.
    """

    op: str
    what: str
    run: Callable[[Move], Sequence[Tensor]]


class Cases:
    """The cases of one size. Tables stay on the host."""

    def __init__(self, numel: int) -> None:
        self.numel, self.k = numel, numel // 100
        self.grad, self.residual, self.momentum = (torch.randn(numel) ** 3 for _ in range(3))
        self.one = torch.tensor([0, numel])
        self.three = torch.tensor([0, numel // 5, numel // 2, numel])
        self.salts = torch.tensor([7, 8, 9])
        self.lists = [self._positions() for _ in range(WORLD_SIZE)]
        self.values = [torch.randn(self.k) for _ in range(WORLD_SIZE)]
        counts, free, sent = self.three.diff(), torch.randint(32, (256,)), torch.rand(16352) < 0.5
        self.turned = {
            "hadamard": (counts, self.salts, NO_SALTS, torch.empty(0, dtype=torch.bool)),
            "kashin, half of it": (counts, self.salts, free, sent),
        }

    def _positions(self) -> Tensor:
        """One in every hundred, anywhere there."""
        return (torch.arange(self.k) * 100 + torch.randint(100, (self.k,))).int()

    def all(self) -> Iterator[Case]:
        """Every case."""
        yield from self.of_topk()
        yield from self.of_memory()
        yield from self.of_positions()
        yield from self.of_ballots()
        yield from self.of_values()

    # -------------------------------------------------------------------------------- selection

    def of_topk(self) -> Iterator[Case]:
        """In every dtype."""
        spoilt = self.grad.clone()
        spoilt[self.numel // 2] = torch.nan
        ones, zeros = torch.ones(self.numel), torch.zeros(self.numel)
        yield Case("topk", "fp32", self.topk)
        yield Case("topk", "heavier side", partial(self.topk, heavier=True))
        yield Case("topk", "three tensors in two chunks, momentum", self.topk_of_three)
        yield Case("topk", "all equal", partial(self.topk, grad=ones, residual=zeros))
        yield Case("topk", "NaN", lambda move: self.topk(move, spoilt)[:3])  # no sums
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            yield Case("topk", str(dtype), partial(self.topk, dtype=dtype))

    def topk(
        self,
        move: Move,
        grad: Tensor | None = None,
        residual: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        heavier: bool = False,
    ) -> Sequence[Tensor]:
        grad = move((self.grad if grad is None else grad).to(dtype))
        memory = torch.float64 if dtype == torch.float64 else torch.float32
        residual = move((self.residual if residual is None else residual).to(memory))
        sums = torch.empty_like(residual)
        tables = self.one, torch.tensor([0]), torch.tensor([self.k]), NO_SALTS
        return *ops.topk([grad], [residual], [], 0.0, *tables, heavier, [sums], []), sums

    def topk_of_three(self, move: Move) -> Sequence[Tensor]:
        given = self.grad, self.residual, self.momentum
        grads, residuals, momenta = ([*map(move, each.tensor_split(2))] for each in given)
        tables = self.three, torch.arange(3), self.three.diff() // 100, self.salts
        return ops.topk(grads, residuals, momenta, 0.9, *tables, False, [], [])

    # ----------------------------------------------------------------------------------- memory

    def of_memory(self) -> Iterator[Case]:
        """What is written into tensors of all elements."""
        yield Case("accumulate", "fp32", self.accumulate)
        yield Case("accumulate", "bf16, momentum", self.accumulate_with_momentum)
        yield Case("scatter_add", "W = 4", partial(self.scatter_add, dtype=torch.float32, start=0))
        part = partial(self.scatter_add, dtype=torch.float16, start=self.numel // 3)
        yield Case("scatter_add", "fp16, a part", part)
        yield Case("scatter_add", "afresh", partial(part, afresh=True))

    def accumulate(self, move: Move) -> Sequence[Tensor]:
        grad, residual = move(self.grad), move(self.residual)
        after = torch.empty_like(residual)
        ops.accumulate(residual, grad, None, 0.0, after, None)
        return grad, after

    def accumulate_with_momentum(self, move: Move) -> Sequence[Tensor]:
        grad, residual, momentum = (
            move(self.grad.bfloat16()),
            move(self.residual),
            move(self.momentum),
        )
        after = torch.empty_like(residual), torch.empty_like(momentum)
        ops.accumulate(residual, grad, momentum, 0.9, *after)
        return grad, *after

    def scatter_add(
        self, move: Move, dtype: torch.dtype, start: int, afresh: bool = False
    ) -> Sequence[Tensor]:
        out = move(self.grad[start:].to(dtype))
        lists, values = [*map(move, self.lists)], [*map(move, self.values)]
        ops.scatter_add(out, start, lists, values, 1 / WORLD_SIZE, afresh)
        return [out]

    # -------------------------------------------------------------------------------- positions

    def of_positions(self) -> Iterator[Case]:
        """Their codes."""
        positions, numel, k = self.lists[0], self.numel, self.k
        code = ops.elias_fano_encode(positions, numel, k)
        damaged = code.clone()
        damaged[len(code) // 2 :] = 0

        def encoded(move: Move) -> Sequence[Tensor]:
            return [ops.elias_fano_encode(move(positions), numel, k)]

        def decoded(move: Move, data: Tensor) -> Sequence[Tensor]:
            return ops.elias_fano_decode(move(data), numel, k)

        def golomb(move: Move) -> Sequence[Tensor]:
            return [ops.golomb_encode(move(positions), self.three)]

        yield Case("elias_fano_encode", "", encoded)
        yield Case("elias_fano_decode", "", partial(decoded, data=code))
        yield Case("elias_fano_decode", "damaged", partial(decoded, data=damaged))
        yield Case("golomb_encode", "", golomb)
        for dtype in (None, torch.float32, torch.float16):
            lists = partial(self.lists_of_ranks, dtype=dtype)
            yield Case("entries_decode", str(dtype or "means"), lists)

    def lists_of_ranks(self, move: Move, dtype: torch.dtype | None) -> Sequence[Tensor]:
        """The last of them ends early."""
        ends = self.three[1:].int()
        bodies = []
        for positions, values in zip(self.lists, self.values, strict=True):
            worth = values[: len(ends)] if dtype is None else values.to(dtype)
            code = ops.elias_fano_encode(positions, self.numel, self.k)
            bodies.append(move(torch.cat([code, worth.view(torch.uint8)])))
        bodies[-1] = bodies[-1][:-1]
        return ops.entries_decode(bodies, move(ends), self.numel, self.k, dtype)

    def of_ballots(self) -> Iterator[Case]:
        """The vote."""
        positions, votes = ops.tally(self.lists)

        def tally(move: Move) -> Sequence[Tensor]:
            return ops.tally([*map(move, self.lists)])

        def keys(move: Move, random: bool) -> Sequence[Tensor]:
            cast = move(positions), move(votes)
            return [ops.vote_keys(*cast, self.three, self.salts, WORLD_SIZE, random)]

        def largest(move: Move, every: Tensor) -> Sequence[Tensor]:
            return [ops.largest(move(every), self.k)]

        (every,) = keys(Tensor.clone, random=False)
        yield Case("tally", "W = 4", tally)
        yield Case("vote_keys", "", partial(keys, random=False))
        yield Case("vote_keys", "random", partial(keys, random=True))
        yield Case("largest", "", partial(largest, every=every))

    # ----------------------------------------------------------------------------------- values

    def of_values(self) -> Iterator[Case]:
        """Their means, signs and codes."""
        spoilt = self.grad.clone()
        spoilt[:: self.numel // 7] = torch.nan
        yield Case("segment_means", "", partial(self.means, values=self.values[0]))
        yield Case("segment_means", "NaN", partial(self.means, values=spoilt[: self.k]))
        yield Case("sign_encode", "", partial(self.signs, values=self.grad))
        yield Case("sign_encode", "NaN", partial(self.signs, values=spoilt))
        yield Case("sign_decode", "", self.values_of_signs)
        yield Case("sign_add", "W = 4", self.mean_of_signs)
        for what in self.turned:
            yield Case("rotated_encode", what, partial(self.rotated, what=what))
            yield Case("rotated_decode", what, partial(self.values_of_rotated, what=what))
            yield Case("rotated_add", what, partial(self.mean_of_rotated, what=what))

    def means(self, move: Move, values: Tensor) -> Sequence[Tensor]:
        counts = torch.tensor([self.k // 3, self.k - self.k // 3])
        return [ops.segment_means(move(values), counts)]

    def signs(self, move: Move, values: Tensor) -> Sequence[Tensor]:
        return ops.sign_encode(move(values), self.three, BLOCK)

    def values_of_signs(self, move: Move) -> Sequence[Tensor]:
        bits, scales = map(move, self.signs(Tensor.clone, self.grad))
        return [ops.sign_decode(bits, scales, self.three, BLOCK)]

    def mean_of_signs(self, move: Move) -> Sequence[Tensor]:
        bits, scales = map(move, self.signs(Tensor.clone, self.grad))
        mean, every = move(self.grad), ([bits] * WORLD_SIZE, [scales] * WORLD_SIZE)
        ops.sign_add(mean, *every, self.three, BLOCK, 1 / WORLD_SIZE, True)
        return [mean]

    def rotated(self, move: Move, what: str) -> Sequence[Tensor]:
        counts, signs, free, sent = self.turned[what]
        tables = counts, signs, self.salts, free, sent
        return [ops.rotated_encode(move(self.grad), *tables, True, iterations=2, bits=4)]

    def values_of_rotated(self, move: Move, what: str) -> Sequence[Tensor]:
        (data,) = self.rotated(Tensor.clone, what)
        return [ops.rotated_decode(move(data), *self.turned[what], bits=4)]

    def mean_of_rotated(self, move: Move, what: str) -> Sequence[Tensor]:
        (data,) = self.rotated(Tensor.clone, what)
        mean, every = move(self.grad), [move(data)] * WORLD_SIZE
        ops.rotated_add(mean, 0, every, *self.turned[what], 4, 1.0, 1 / WORLD_SIZE, True)
        return [mean]


def aligned(data: Tensor) -> Tensor:
    """On the device, as it allocates memory."""
    return data.to(CUDA)


def unaligned(data: Tensor) -> Tensor:
    """On the device, one element behind that."""
    return torch.cat([data[:1], data]).to(CUDA)[1:]


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> str:
    """Where results differ, in words; nothing where they do not."""
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        here = ours.cpu()
        if here.dtype != theirs.dtype or here.shape != theirs.shape:
            return (
                f"result {number} is {here.dtype} {[*here.shape]} on the device, "
                f"{theirs.dtype} {[*theirs.shape]} on the CPU"
            )
        if torch.equal(bits(here), bits(theirs)):
            continue
        wrong = bits(here) != bits(theirs)
        if theirs.is_floating_point():
            wrong &= ~(here.isnan() & theirs.isnan())  # one NaN is as good as another
        if wrong.any():
            first = int(wrong.int().argmax())
            return (
                f"{int(wrong.sum())} of {len(here)} elements of result {number}, the first at "
                f"{first}: {here[first]} on the device, {theirs[first]} on the CPU"
            )
    return ""


def bits(values: Tensor) -> Tensor:
    """Values as whole numbers."""
    if not values.is_floating_point():
        return values
    return values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.itemsize])


def kernels_here(pretend: bool) -> set[str]:
    """The ops that have a CUDA kernel."""
    key, space = ("CPU", "ddp_compress_emulated::") if pretend else ("CUDA", "ddp_compress::")
    names: list[str] = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    return {name.removeprefix(space) for name in names if name.startswith(space)}


def check(case: Case, numel: int) -> bool:
    """Whether a case is the same on the device, told as it goes: a kernel may hang."""
    what = ", ".join(filter(None, (case.op, case.what, f"{numel / 1e6:g} M")))
    expected = case.run(Tensor.clone)
    right = True
    for move in (aligned, unaligned):
        print(f"{what}, {move.__name__}: ", end="", flush=True)
        differs = difference(case.run(move), expected)
        print(differs or "same", flush=True)
        right = right and not differs
    return right


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numel", type=int, nargs="+", default=NUMELS, help="1 and 50 M")
    parser.add_argument("--ops", nargs="+", help="these alone")
    add_pretend(parser)
    options = parser.parse_args()
    torch.manual_seed(0)
    outcomes: dict[str, list[bool]] = {}
    with gpu(options.pretend):
        for numel in options.numel:
            for case in Cases(numel).all():
                if not options.ops or case.op in options.ops:
                    outcomes.setdefault(case.op, []).append(check(case, numel))
        untried = kernels_here(options.pretend) - set(options.ops or ()) - set(outcomes)
    if untried and not options.ops:
        sys.exit(f"no case for {', '.join(sorted(untried))}: bench/gpu_smoke.py needs one")
    every = [right for each in outcomes.values() for right in each]
    print(f"{sum(every)} of {len(every)} cases of {len(outcomes)} ops are the same as on the CPU")
    sys.exit(not all(every))


if __name__ == "__main__":
    main()
