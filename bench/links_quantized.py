"""Dense gradients of few bits an element; every rank is the owner of a part, and reduces it."""

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from links_peer import Peer, ranks

BUCKET = 512
LEVELS = 15  # of 4 bits


class Cgx(Peer):
    """torch_cgx at 4 bits, without error feedback, as it does without.

    Re-enacted: buckets of 512 elements, of each an fp32 minimum and step, elements rounded to the
    nearest of 16 values from its minimum to its maximum; parts go to their owners, who add them to
    their own, unrounded one; sums are quantized again and gathered. Left out: its small layers in
    fp32 and buckets that end with their layers, which change sizes by little, and its kernels,
    which are of a GPU alone.
    """

    def mean(self, bucket: dist.GradBucket) -> Tensor:
        flat, rank = bucket.buffer().div_(ranks()), dist.get_rank()
        parts = F.pad(flat, (0, -len(flat) % (BUCKET * ranks()))).view(ranks(), -1, BUCKET)
        messages = quantize(parts).view(ranks(), -1)
        size = messages.shape[1]
        theirs = self.swap(list(messages), [size] * ranks())
        total = parts[rank]
        for other in (each for r, each in enumerate(theirs) if r != rank):
            total += dequantize(other.view(-1, BUCKET // 2 + 8))
        every = self.gather(quantize(total))
        numel = total.numel()
        self.encoded(ranks() * numel, ranks() * size)
        return flat.copy_(torch.cat([dequantize(each).view(-1) for each in every])[: len(flat)])


def quantize(rows: Tensor) -> Tensor:
    """Bytes [... 264] of rows [... 512]: minimum, step, two elements a byte."""
    least, most = rows.aminmax(dim=-1, keepdim=True)
    step = (most - least).div_(LEVELS)
    codes = (rows - least).div_(step.clamp(min=1e-30)).round_().byte()
    low, high = codes.chunk(2, -1)
    return torch.cat([least.view(torch.uint8), step.view(torch.uint8), low | high << 4], -1)


def dequantize(message: Tensor) -> Tensor:
    """The rows [n 512] of bytes [n 264]."""
    least, step = message[:, :8].contiguous().view(torch.float32).chunk(2, -1)
    codes = message[:, 8:]
    return torch.cat([codes & 15, codes >> 4], -1).float().mul_(step).add_(least)


class OneBit(Peer):
    """The exchange of DeepSpeed's 1-bit Adam, with gradients for its momentum.

    Re-enacted: signs and one scale, the root of the mean square; error feedback of ranks and of
    owners; packed signs in an all-to-all, scales in an all-gather; the mean's signs and scales in
    two all-gathers; NumPy packs bits here as CuPy does there. Left out: Adam, and its dense start.
    """

    def __init__(self) -> None:
        super().__init__()
        self._errors: dict[int, tuple[Tensor, Tensor]] = {}  # of ranks, of owners

    def mean(self, bucket: dist.GradBucket) -> Tensor:
        flat = bucket.buffer()
        padded = F.pad(flat, (0, -len(flat) % (8 * ranks())))
        part = len(padded) // ranks()
        error, owner_error = self._errors.get(bucket.index(), (padded[:0],) * 2)
        if len(error) != len(padded):  # DDP has rebuilt its buckets
            error, owner_error = torch.zeros_like(padded), torch.zeros(part)
            self._errors[bucket.index()] = error, owner_error
        bits, scale = to_signs(padded, error)
        theirs = self.swap(list(bits.chunk(ranks())), [part // 8] * ranks())
        mean = torch.zeros(part)
        for signs, worth in zip(theirs, self.gather(scale), strict=True):
            mean += of_signs(signs, worth / ranks())
        bits, scale = to_signs(mean, owner_error)
        every = zip(self.gather(bits), self.gather(scale), strict=True)
        self.encoded(len(padded), len(padded) // 8 + 2 * scale.nbytes)
        return flat.copy_(torch.cat([of_signs(*each) for each in every])[: len(flat)])


def to_signs(values: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Signs, eight a byte, and a scale [1]; what they miss is left in `error`, and was added."""
    error += values
    scale = error.norm().div(len(error) ** 0.5).view(1)
    bits = error >= 0
    error -= torch.where(bits, scale, -scale)
    return torch.from_numpy(np.packbits(bits.numpy())), scale


def of_signs(bits: Tensor, scale: Tensor) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits.numpy())).float().mul_(2).sub_(1).mul_(scale)
