"""Whatever bytes come from other ranks: a `ValueError` at worst, never a wrong access.

Kernels run alone, under sanitizers (see fuzz/target.h); `make fuzz` does so for longer.
"""

import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from ddp_compress import codec
from ddp_compress.exchange import ballot
from ddp_compress.exchange.all_entries import AllEntries, can_add
from ddp_compress.exchange.bodies import Bodies, check_counts
from ddp_compress.exchange.fused import FusedLists, can_fuse
from ddp_compress.exchange.separate import SeparateLists
from ddp_compress.exchange.uncompressed import split_uncompressed
from ddp_compress.message.arena import Arena
from ddp_compress.message.chunk import Chunk
from ddp_compress.message.context import Context
from ddp_compress.message.encoded import EncodedEntries
from ddp_compress.message.entries import AnyEntries, Entries, add_entries
from ddp_compress.message.layout import Layout
from ddp_compress.message.message import Message
from ddp_compress.message.plan import Plan
from ddp_compress.ops import UNUSED
from ddp_compress.stats import Stats
from ddp_compress.transport.frame import HEADER_BYTES, Header, padded, seal, unseal
from tests import pretend_cuda
from tests.make import ROOT, make
from tests.table import OPTIONS, RECIPES, Row

DECODERS = ("elias_fano", "entries", "golomb", "rans", "rotated", "signs")
KERNELS = (
    *("ballot", "topk", "accumulate", "scatter_add", "segment_means"),
    *("cells", "kernel_lists", "whole_kernels"),
)


def test_kernels_under_sanitizers():
    command = [make("build/fuzz/main"), "--seconds", "6", "--messages", "20000"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    messages = {name: int(count) for name, count, *_ in map(str.split, run.stdout.splitlines()[1:])}
    assert messages.keys() == {*DECODERS, *KERNELS}
    assert min(messages.values()) > 0


def test_every_kernel_has_a_target():
    kernels = {path.stem for path in (ROOT / "csrc" / "cpu").glob("*.cpp")}
    assert kernels == {*DECODERS, *KERNELS}


def as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0).byte()


def as_bytes(data: Tensor) -> bytes:
    return bytes(data.tolist())


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to four changes: bits, bytes, places, lengths, or the end of another message."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, kind = rng.randint(0, len(found)), rng.randrange(6)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(found):
            found[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == 2 and at < len(found):
            there = rng.randrange(len(found))
            found[at], found[there] = found[there], found[at]
        elif kind == 3:
            del found[at : rng.choice([len(found), at + rng.randint(1, 4)])]
        elif kind == 4:
            found[at:at] = rng.randbytes(rng.randint(1, 8))
        elif kind == 5:
            found[at:] = other[min(at, len(other)) :]
    return bytes(found)


def many(messages: Sequence[bytes], count: int) -> Iterator[bytes]:
    rng = random.Random(0)
    for _ in range(count):
        yield mutated(rng.choice(messages), rng.choice(messages), rng)


def test_mutated_frames_are_noticed():
    rng = random.Random(1)
    frames = set()
    for size in (0, 1, 4, 37, 300):
        header = Header(rng.random(), rng.randrange(2**16), size, length=HEADER_BYTES + size)
        frames.add(as_bytes(seal(header, as_tensor(rng.randbytes(size)))))
    opened = 0
    for data in many([as_bytes(padded(as_tensor(each), 320)) for each in frames], 20_000):
        try:
            header, _ = unseal(as_tensor(data))
        except ValueError:
            continue
        assert data[: header.length] in frames  # only padding was altered
        opened += 1
    assert 0 < opened < 20_000


LAYOUTS = (Layout(("a", "b", "c"), (600, 7, 0)), Layout(("d", "e"), (1, 90)))


def assert_positions(found: Tensor, bounds: Tensor) -> None:
    assert (found.diff() > 0).all()
    assert ((found >= 0) & (found < bounds[-1])).all()


@pytest.mark.parametrize("name", ["golomb", "elias_fano", "raw"])
def test_mutated_ballots_are_ballots_or_refused(name):
    how, bounds = codec.codec_by_name(name), Plan(LAYOUTS, "model", 0.1).bounds
    rng = random.Random(2)

    def positions() -> Tensor:
        return torch.tensor(sorted(rng.sample(range(int(bounds[-1])), 50)), dtype=torch.int32)

    last = positions()
    lasts = [None, None, last, last]
    ballots = [as_bytes(ballot.encode(positions(), each, bounds, how)) for each in lasts]
    read = 0
    for data in many(ballots, 4000):
        try:
            found = ballot.decode(as_tensor(data), last, bounds, how)
        except ValueError:
            continue
        assert_positions(found, bounds)
        read += 1
    assert 0 < read < 4000


def messages_of(row: Row, dtype: torch.dtype) -> Iterator[Message]:
    plan = Plan(LAYOUTS, row.scope, row.recipe.select.density, row.min_numel)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        chunks = []
        for layout in LAYOUTS:
            grad = torch.randn(layout.numel, generator=generator).to(dtype)
            chunks.append(
                Chunk(grad, layout, Arena({name: torch.zeros(layout.numel) for name in KEPT}))
            )
        yield Message(chunks, plan, 0, row.recipe.memory)


KEPT = ("residual", "momentum")
Lists = SeparateLists | FusedLists
FUZZED = RECIPES | OPTIONS


def assert_entries(found: Entries, plan: Plan) -> None:
    assert found.values.isfinite().all()
    if found.indices is not None:
        assert len(found.values) == len(found.indices)
        assert_positions(found.indices, plan.bounds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "name",
    [
        "topk",
        "topk-golomb-fp16",
        "topk-raw-bf16",
        "dgc-golomb",
        "sbc",
        "sbc-raw",
        "sign",
        "rotated",
    ],
)
def test_mutated_bodies_are_entries_or_refused(name, dtype):
    row = FUZZED[name]
    messages = list(messages_of(row, dtype))
    kinds: list[type[Lists]] = [SeparateLists]
    kinds += [FusedLists] if can_fuse(row.recipe) else []
    kinds += [AllEntries] if can_add(row.recipe) else []
    sent: list[bytes] = []
    for message in messages:
        each = [kind(message, row.recipe, Stats(), rank=0).encode() for kind in kinds]
        bodies = {as_bytes(body) for body in each if body is not None}
        assert len(bodies) == 1
        sent += bodies
    readers = [kind(messages[0], row.recipe, Stats(), rank=0) for kind in kinds]
    for data in many(sent, 2000):
        told = {outcome(partial(decoded, [data], messages[0], reader)) for reader in readers}
        assert len(told) == 1, told


@pytest.mark.parametrize(("name", "dtype"), [("topk", torch.float32), ("sbc", torch.float16)])
def test_a_gpu_finds_in_mutated_bodies_what_the_cpu_does(name, dtype):
    """Its host hears late of what is bad, in the same words."""
    row = FUZZED[name]
    here, *others = messages_of(row, dtype)
    every = [FusedLists(each, row.recipe, Stats(), rank=0).encode() for each in others]
    sent = [as_bytes(body) for body in every if body is not None]
    with pretend_cuda.pretend():
        moved = [replace(chunk, grad=chunk.grad.to(pretend_cuda.CUDA)) for chunk in here.chunks]
        there, refused = replace(here, chunks=moved), 0
        at_once = SeparateLists(here, row.recipe, Stats(), rank=0)
        late = FusedLists(there, row.recipe, Stats(), rank=0)
        for data in many(sent, 100):
            bodies = [sent[0], data]
            expected = outcome(partial(decoded, bodies, here, at_once))
            assert outcome(partial(decoded, bodies, there, late)) == expected
            refused += expected.startswith("rank 1: ")
    assert 0 < refused < 100


def decoded(bodies: Sequence[bytes], message: Message, lists: Lists) -> list[bytes]:
    """All that bodies hold, or an error."""
    rest, uncompressed = split_uncompressed(list(map(as_tensor, bodies)), message)
    selected = [on_host(entries, message.plan) for entries in lists.decode(rest)]
    lists.confirm()
    for entries in selected:
        if entries.indices is not None:
            check_counts(entries.indices, message.plan)
    found = []
    for entries in (*selected, *uncompressed):
        assert_entries(entries, message.plan)
        parts = (entries.indices, entries.values)
        found += [as_bytes(each.view(torch.uint8)) for each in parts if each is not None]
    return found


def on_host(entries: AnyEntries, plan: Plan) -> Entries:
    """The same there, decoded, and without slots that a GPU leaves unused."""
    if isinstance(entries, EncodedEntries):
        values = torch.full((plan.numel,), -0.0)  # a sum with it is the other, whatever its sign
        add_entries(values, 0, [entries], 1.0)
        positions = plan.all_positions
        return Entries(positions, values if positions is None else values[positions.long()])
    values = pretend_cuda.host_of(entries.values)
    if entries.indices is None:
        return Entries(None, values)
    indices = pretend_cuda.host_of(entries.indices)
    used = indices != UNUSED
    return Entries(indices[used], values[used])


def outcome(work: Callable[[], object]) -> str:
    """What comes of it, or the error."""
    try:
        return repr(work())
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(
    "name", ["topk-sharded", "dgc-sharded", "sbc-sharded", "stc", "rotated-sharded"]
)
def test_mutated_bodies_with_a_count_are_entries_or_refused(name):
    row = FUZZED[name]
    messages = list(messages_of(row, torch.float32))
    plan = messages[0].plan
    sent = []
    for message in messages:
        chosen = row.recipe.select(message).entries
        body = Bodies(message, row.recipe, Stats(), rank=0).encode_counted(chosen, plan)
        sent.append(as_bytes(body))
    reader = Bodies(messages[0], row.recipe, Stats(), rank=0)
    for data in many(sent, 2000):
        try:
            found = reader.decode_counted(as_tensor(data), plan)
        except ValueError:
            continue
        assert_entries(found, plan)


@pytest.mark.parametrize("name", ["vote-random", "vote-add-drop", "hgc", "hgc-2-bits"])
def test_mutated_values_at_a_mask_are_values_or_refused(name):
    quantize = FUZZED[name].recipe.quantize
    counts, generator = torch.tensor([30, 0, 1, 9]), torch.Generator().manual_seed(3)
    rows = torch.randn(4, 40, generator=generator)
    context = Context(counts, guess=torch.randn(40, generator=generator))
    sent = [as_bytes(quantize.encode(values, context)) for values in rows]
    for data in many(sent, 1500):
        try:
            values = quantize.decode(as_tensor(data), context)
        except ValueError:
            continue
        assert values.shape == (40,)
        assert values.isfinite().all()
