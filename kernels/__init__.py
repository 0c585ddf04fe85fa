"""megatv_kernels: attention for packed interleaved text-and-video rows. Never imports megatv."""

from .attention import attention, cached_attention
from .fp8 import FP8, fp8_linear, quantize_rows
from .record import AttentionRecord, Document, build_record
from .rope_cache import rotate, rotate_and_store, rotate_qk
from .swiglu import swiglu

__all__ = [
    "FP8",
    "AttentionRecord",
    "Document",
    "attention",
    "build_record",
    "cached_attention",
    "fp8_linear",
    "quantize_rows",
    "rotate",
    "rotate_and_store",
    "rotate_qk",
    "swiglu",
]
