"""Local steps on every rank, then a round in which their weights meet."""
