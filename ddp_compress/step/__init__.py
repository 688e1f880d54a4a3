"""One step of training: what a rank carries, and how all of it is committed or none."""
