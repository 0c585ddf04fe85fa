"""Hugging Face Llama and our text tower: the same matrices under other names.

Both use the half-split rotary layout, so no matrix is permuted (Meta's own files are interleaved; convert
those to Hugging Face's first).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatv.config import ModelConfig

_TOP = {
    "embed.text.weight": "model.embed_tokens.weight",
    "head.text_norm.weight": "model.norm.weight",
    "head.text.weight": "lm_head.weight",
}
_BLOCK = {
    "attention_norm": "input_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def llama_names(model: ModelConfig) -> dict[str, str]:
    """Our name -> Hugging Face's name of every matrix of the text tower (no head when tied)."""
    names = dict(_TOP)
    if model.tied_embeddings:
        del names["head.text.weight"]
    for layer in range(model.layers):
        for ours, theirs in _BLOCK.items():
            names[f"blocks.{layer}.text.{ours}.weight"] = f"model.layers.{layer}.{theirs}.weight"
    return names


def llama_config(model: ModelConfig) -> dict[str, Any]:
    """The fields of Hugging Face's config.json that the text tower determines."""
    rule = model.rope_scaling
    return {
        "hidden_size": model.width,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "vocab_size": model.vocab,
        "tie_word_embeddings": model.tied_embeddings,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "rope_scaling": rule
        and {
            "rope_type": "llama3",
            "factor": rule.factor,
            "low_freq_factor": rule.low_freq_factor,
            "high_freq_factor": rule.high_freq_factor,
            "original_max_position_embeddings": rule.original_context,
        },
    }


class LlamaDirectory:
    """Read-only view of a Hugging Face Llama directory (config.json and safetensors) by our names.

    Raises ValueError when it is incomplete or is not the model that `model` describes.
    """

    def __init__(self, path: str | Path, model: ModelConfig) -> None:
        self.path = Path(path)
        self._names = llama_names(model)
        found = _read_json(self.path / "config.json")
        for key, wanted in llama_config(model).items():
            if found.get(key) != wanted:
                raise ValueError(
                    f"{self.path / 'config.json'}: {key} is {found.get(key)!r}, but the run's `model` "
                    f"section says {wanted!r}; make the two agree"
                )
        index = self.path / "model.safetensors.index.json"
        self._files = _read_json(index)["weight_map"] if index.exists() else {}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def tensor(self, name: str) -> Tensor:
        """The whole weight of our `name`, in the file's dtype."""
        theirs = self._names[name]
        file = self.path / self._files.get(theirs, "model.safetensors")
        try:
            with safe_open(file, framework="pt") as tensors:
                return tensors.get_tensor(theirs)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file}: cannot read {theirs} ({error}); download the model again") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); give a Hugging Face Llama directory"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); download it again") from None
