"""Sampling: KV cache, sampler and the command line `python -m megatv.sample`."""
