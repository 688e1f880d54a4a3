"""How positions travel: one idea a file."""

from ddp_compress.codec.elias_fano import EliasFano
from ddp_compress.codec.everything import Everything
from ddp_compress.codec.golomb import Golomb
from ddp_compress.codec.raw import Raw

__all__ = ["CODECS", "EliasFano", "Everything", "Golomb", "Raw", "by_name"]

CODECS: dict[str, EliasFano | Golomb | Raw] = {
    "elias_fano": EliasFano(),
    "golomb": Golomb(),
    "raw": Raw(),
}


def by_name(name: str) -> EliasFano | Golomb | Raw:
    """The codec that recipes call by this name.

    Args:
        name: a key of `CODECS`.

    Raises:
        ValueError: there is no such codec.

    Example:
        >>> by_name("golomb")
        Golomb()
    """
    if name not in CODECS:
        raise ValueError(f"codec must be one of {', '.join(CODECS)}; got {name!r}")
    return CODECS[name]
