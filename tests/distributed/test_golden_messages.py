"""Law 5 for whole messages: their bytes do not change.

The golden table holds, for every recipe and step, how many bytes of bodies all ranks sent, in every
phase, and a hash of them. Write it anew where bodies are meant to change, and say so in CHANGELOG:

PYTHONPATH=. python -m tests.distributed.test_golden_messages > tests/distributed/golden.json
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ddp_compress import CompressionState, recipes
from ddp_compress.transport.frame import ANNOUNCED, HEADER_BYTES, unseal
from tests.distributed.harness import Ranks
from tests.table import OPTIONS, RECIPES, ROWS, Row

GOLDEN = Path(__file__).with_name("golden.json")
STEPS = 3
DEFAULTS = {f"{name}()": Row(getattr(recipes, name)()) for name in recipes.__all__}
EVERY = RECIPES | OPTIONS | ROWS | DEFAULTS


def small_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(24, 40), nn.Linear(40, 5))


def gradient(like: Tensor, seed: int) -> Tensor:
    """Numbers with long tails, by integers alone: the same whatever PyTorch's generators do."""
    words = torch.arange(like.numel()) + 7919 * seed
    for factor in (0x45D9F3B, 0x119DE1F):
        words = words * factor % 2**32
        words ^= words >> 15
    centred = (words >> 16) - 2**15
    return (centred**3 * 2.0**-40).float().view(like.shape)


class Recorder:
    """What this rank sends after ranks have met: bodies, and the first header."""

    def __init__(self) -> None:
        self.header = b""
        self.bodies: list[bytes] = []
        self._frame = b""

    def collective(self, sent: Tensor, lengths: list[int]) -> None:
        parts = sent.split(lengths)
        try:
            _, body = unseal(parts[0])
        except ValueError:  # no frame: parts of a body that differ from rank to rank
            self._drop_manifest(lengths)
            self.bodies.append(bytes(sent.tolist()))
        else:
            self._add(bytes(parts[0][: HEADER_BYTES + len(body)].tolist()))

    def _add(self, frame: bytes) -> None:
        """A frame, unless it comes later or came already: capacities are no matter of bodies."""
        self.header = self.header or frame[:HEADER_BYTES]
        if frame[HEADER_BYTES - 1] & ANNOUNCED or frame == self._frame:
            return
        self._frame = frame
        self.bodies.append(frame[HEADER_BYTES:])

    def _drop_manifest(self, lengths: list[int]) -> None:
        """It holds checksums of what is recorded itself."""
        if self.bodies and len(self.bodies[-1]) == 8 * len(lengths):
            words = torch.frombuffer(bytearray(self.bodies[-1]), dtype=torch.int32)
            if words[::2].tolist() == lengths:
                self.bodies.pop()


@contextmanager
def recorded() -> Iterator[Recorder]:
    recorder, to_all = Recorder(), dist.all_to_all_single

    def recording(into: Tensor, sent: Tensor, *sizes: list[int], **options: Any) -> Any:
        if options.get("async_op"):  # else ranks compare, by words, what they were told
            recorder.collective(sent, sizes[1])
        return to_all(into, sent, *sizes, **options)

    with patch.object(dist, "all_to_all_single", recording):
        yield recorder


def bodies_and_header(row: Row) -> tuple[list[list[bytes]], bytes]:
    """What this rank sends at every step; the first header."""
    model = small_model()
    state = CompressionState(model, row.recipe, min_numel=row.min_numel)
    recorders = []
    for step in range(STEPS):
        with recorded() as recorder:
            state.reduce(
                {
                    name: gradient(parameter, 100 * step + 10 * number + dist.get_rank())
                    for number, (name, parameter) in enumerate(model.named_parameters())
                }
            )
        recorders.append(recorder)
    state.close()
    return [each.bodies for each in recorders], recorders[0].header


def bodies_of_every_row() -> dict[str, list[list[bytes]]]:
    return {name: bodies_and_header(row)[0] for name, row in EVERY.items()}


def digests(ranks: Ranks, world_size: int) -> dict[str, str]:
    """Of every row, for every step: the bytes of all ranks' bodies, and their hash."""
    every = ranks.run(world_size, bodies_of_every_row)
    return {
        name: ", ".join(
            digest([body for rank in every for body in rank[name][step]]) for step in range(STEPS)
        )
        for name in EVERY
    }


def digest(bodies: list[bytes]) -> str:
    total = hashlib.sha256()
    for body in bodies:
        total.update(len(body).to_bytes(8, "little") + body)
    return f"{sum(map(len, bodies))} #{total.hexdigest()[:16]}"


def header(ranks: Ranks) -> str:
    """Length, density, step, version and flags. A fingerprint is of the names of parts, too."""
    (_, found), _ = ranks.run(2, bodies_and_header, ROWS["topk"])
    return (found[4:12] + found[14:]).hex()


def golden(key: str) -> Any:
    return json.loads(GOLDEN.read_text())[key]


@pytest.mark.parametrize("world_size", [2, 3])
def test_law_5_bodies_do_not_change(ranks, world_size):
    assert digests(ranks, world_size) == golden(f"bodies of {world_size} ranks")


def test_law_5_headers_do_not_change(ranks):
    assert header(ranks) == golden("header")


if __name__ == "__main__":
    with Ranks(3) as workers:
        bodies = {f"bodies of {size} ranks": digests(workers, size) for size in (2, 3)}
        print(json.dumps({"header": header(workers), **bodies}, indent=1))
