"""megatv_kernels: attention for packed interleaved text-and-video rows. Never imports megatv."""

from .attention import attention, cached_attention
from .record import AttentionRecord, Document, build_record

__all__ = ["AttentionRecord", "Document", "attention", "build_record", "cached_attention"]
