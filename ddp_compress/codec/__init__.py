"""How positions travel: one idea a file."""

from ddp_compress.checks import check_one_of
from ddp_compress.codec.elias_fano import EliasFano as EliasFano
from ddp_compress.codec.golomb import Golomb as Golomb
from ddp_compress.codec.implicit import Implicit as Implicit
from ddp_compress.codec.raw import Raw as Raw

CODECS: dict[str, EliasFano | Golomb | Raw] = {
    "elias_fano": EliasFano(),
    "golomb": Golomb(),
    "raw": Raw(),
}


def codec_by_name(name: str) -> EliasFano | Golomb | Raw:
    """The codec that recipes call by this name.

    Args:
        name: a key of `CODECS`.

    Raises:
        TypeError: the name is no string.
        ValueError: there is no such codec.

    Example:
        >>> codec_by_name("golomb")
        Golomb()
    """
    check_one_of("codec", name, CODECS)
    return CODECS[name]
