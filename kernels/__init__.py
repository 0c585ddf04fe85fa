"""megatv_kernels: attention for packed interleaved text-and-video rows. Never imports megatv."""

from .attention import attention, cached_attention
from .record import AttentionRecord, Document, build_record
from .rope_cache import rotate, rotate_and_store, rotate_qk
from .swiglu import swiglu

__all__ = [
    "AttentionRecord",
    "Document",
    "attention",
    "build_record",
    "cached_attention",
    "rotate",
    "rotate_and_store",
    "rotate_qk",
    "swiglu",
]
