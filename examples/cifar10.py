"""Read CIFAR-10 from a local folder, as published: binary records or Python pickles.

https://www.cs.toronto.edu/~kriz/cifar.html
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
CLASSES = 10

Images = tuple[np.ndarray, np.ndarray]  # uint8 pixels (n, 3, 32, 32) and int64 labels (n,)


def load_cifar10(folder: Path) -> tuple[Images, Images]:
    """Training and test images; ``ValueError`` says what is missing or malformed."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    for suffix, read in ((".bin", read_binary), ("", read_pickle)):
        batches = sorted(folder.glob(f"data_batch_[1-5]{suffix}"))
        test = folder / f"test_batch{suffix}"
        if batches and test.is_file():
            parts = [read(path) for path in batches]
            pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            return (pixels, labels), read(test)
    raise ValueError(
        f"{folder} does not hold CIFAR-10: expected data_batch_1.bin … data_batch_5.bin and "
        "test_batch.bin, or the Python version's data_batch_1 … data_batch_5 and test_batch"
    )


def read_binary(path: Path) -> Images:
    """Records of one label byte and 3072 pixel bytes."""
    raw = np.fromfile(path, dtype=np.uint8)
    if raw.size == 0 or raw.size % (1 + PIXELS):
        raise ValueError(f"{path}: {raw.size} bytes are not whole records of {1 + PIXELS}")
    records = raw.reshape(-1, 1 + PIXELS)
    return _checked(path, records[:, 1:], records[:, 0])


def read_pickle(path: Path) -> Images:
    """A pickled dict with ``data`` (n, 3072) and ``labels`` (n)."""
    try:
        with path.open("rb") as file:
            batch = NumpyUnpickler(file, encoding="bytes").load()
        return _checked(path, batch[b"data"], np.asarray(batch[b"labels"]))
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path} is not a CIFAR-10 batch: {error!r}") from error


def latin1(text: str, encoding: str) -> bytes:
    """How protocol 2 pickles of Python 3 hold bytes: as text to encode."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refused to encode as {encoding}")
    return text.encode("latin1")


# Pickled arrays name one function to rebuild them; NumPy 1 and 2 keep it in different modules.
RECONSTRUCT = np.empty(0).__reduce__()[0]
ALLOWED = {
    ("_codecs", "encode"): latin1,
    ("numpy.core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class NumpyUnpickler(pickle.Unpickler):
    """Rebuilds NumPy arrays and plain values; refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        """Look ``module.name`` up among the allowed."""
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}") from None


def _checked(path: Path, pixels: np.ndarray, labels: np.ndarray) -> Images:
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), PIXELS):
        raise ValueError(
            f"{path}: expected uint8 pixels of shape ({len(labels)}, {PIXELS}), "
            f"got {pixels.dtype} {pixels.shape}"
        )
    if labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < CLASSES:
        raise ValueError(f"{path}: labels must be integers from 0 to {CLASSES - 1}")
    return pixels.reshape(-1, *SHAPE), labels.astype(np.int64)
