"""The only door to other ranks: collectives, frames, and a message's way through its phases."""
