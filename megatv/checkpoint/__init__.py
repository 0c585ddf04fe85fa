"""Checkpoints: atomic, verified state; conversion to and from other formats."""
