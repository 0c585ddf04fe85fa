"""megatv: the open, megascale trainer for interleaved text-and-video models (TV2TV)."""

__version__ = "0.1.0"
