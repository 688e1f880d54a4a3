"""What a checkpoint must be, and how it goes on with another number of ranks."""
