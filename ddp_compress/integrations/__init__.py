"""Compression as users of other frameworks would add it; each module needs its framework."""
