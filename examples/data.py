"""Training data that needs no network: text for the language model, images for the classifier."""

import sysconfig
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

CONTEXT = 64  # bytes in one window
BLOCK = 256  # windows in one block; every 20th block is held out
HOLD_OUT = 20
VALIDATION_WINDOWS = 2048

Samples = TensorDataset | Subset[tuple[Tensor, ...]]
Images = tuple[np.ndarray, np.ndarray]  # uint8 pixels (n, channels, height, width), and labels


class Split(NamedTuple):
    """Samples to train on and samples held out; both are (input, target) pairs."""

    train: Samples
    validation: Samples


class TextWindows(Dataset[tuple[Tensor, ...]]):
    """The text cut into windows; each target is the byte after its input."""

    def __init__(self, text: bytes) -> None:
        self.text = torch.frombuffer(bytearray(text), dtype=torch.uint8)

    def __len__(self) -> int:
        return (self.text.numel() - 1) // CONTEXT

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        start = index * CONTEXT
        window = self.text[start : start + CONTEXT + 1].long()
        return window[:-1], window[1:]


def text_task(path: Path | None) -> Split:
    """Training and validation windows of ``path``, or of Python's own standard library."""
    text = path.read_bytes() if path else standard_library()
    if len(text) < 2 * BLOCK * CONTEXT:
        raise ValueError(
            f"{path or 'the standard library'} holds {len(text)} bytes of text; "
            f"at least {2 * BLOCK * CONTEXT} are needed"
        )
    windows = TextWindows(text)
    # A short text still holds out its last block.
    every = min(HOLD_OUT, len(windows) // BLOCK)
    held_out = [i // BLOCK % every == every - 1 for i in range(len(windows))]
    train = [i for i, held in enumerate(held_out) if not held]
    validation = [i for i, held in enumerate(held_out) if held]
    stride = max(1, len(validation) // VALIDATION_WINDOWS)
    return Split(Subset(windows, train), Subset(windows, validation[::stride]))


def standard_library() -> bytes:
    """All Python sources of the standard library but its tests, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    skip = {"site-packages", "dist-packages", "test", "tests"}
    files = sorted(
        path for path in root.rglob("*.py") if skip.isdisjoint(path.relative_to(root).parts)
    )
    return b"".join(path.read_bytes() for path in files)


def image_task(folder: Path | None) -> Split:
    """Training and validation images of CIFAR-10 in ``folder``, or of scikit-learn's digits."""
    train, validation = map(partial(cifar10, folder), (True, False)) if folder else digits()
    return Split(_dataset(train), _dataset(validation))


def cifar10(folder: Path, train: bool) -> Images:
    """Of a folder with ``cifar-10-batches-py`` in it, as torchvision reads that."""
    from torchvision.datasets import CIFAR10

    read = CIFAR10(folder, train)
    return read.data.transpose(0, 3, 1, 2), np.array(read.targets)


def digits() -> tuple[Images, Images]:
    """1797 handwritten digits of 8 × 8; every fifth is held out."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    pixels = (pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    held_out = np.arange(len(labels)) % 5 == 4
    return (pixels[~held_out], labels[~held_out]), (pixels[held_out], labels[held_out])


def _dataset(images: Images) -> TensorDataset:
    pixels, labels = images
    return TensorDataset(torch.from_numpy(pixels), torch.from_numpy(labels))
