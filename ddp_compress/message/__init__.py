"""What travels: where every parameter lies, its entries, and what is known of them."""

from ddp_compress.message.context import Context
from ddp_compress.message.entries import Entries
from ddp_compress.message.selection import Selection

__all__ = ["Context", "Entries", "Selection"]
