"""Parallelism: the process grid, tensor-parallel layers, pipeline stages."""
