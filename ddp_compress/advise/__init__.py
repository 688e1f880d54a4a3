"""Does it pay? Measure the ranks' link and every method's work, and say what a step would take."""

from ddp_compress.advise.advice import Advice
from ddp_compress.advise.advising import advise
from ddp_compress.advise.link import Link

__all__ = ["Advice", "Link", "advise"]
