"""What a checkpoint must be, where it is kept, and how it goes on with another number of ranks."""

from ddp_compress.checkpoints.folder import load, save

__all__ = ["load", "save"]
