"""What travels: flat gradients, where their parameters lie, and the entries that are sent."""
