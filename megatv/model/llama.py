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
from megatv.regular_file import open_regular, read_bytes
from megatv.schema import short
from megatv.untrusted import parse_json, plain_name

_DTYPES = ("F32", "BF16", "F16")
# Tensors that some directories hold and that carry no weights of their own: rotary tables, a tied head.
_REDUNDANT = ("rotary_emb.inv_freq", "lm_head.weight")
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

    Only headers are read until a tensor is asked for. Files lie in the directory under plain names, but may
    be links to elsewhere, as the cache of Hugging Face has them. Raises ValueError when the directory is
    incomplete, is not the model that `model` describes, or holds weights that a text tower has no place for.
    """

    def __init__(self, path: str | Path, model: ModelConfig) -> None:
        self.path = Path(path)
        self.fields = _read_json(self.path / "config.json")
        self._names = llama_names(model)
        self._check_config(model)
        self._files, self._shapes = _read_headers(self.path)
        for theirs in self._names.values():
            if theirs not in self._files:
                raise ValueError(f"{self.path}: has no entry for {theirs}; download the model again")
        strangers = sorted(self._files.keys() - set(self._names.values()))
        strangers = [name for name in strangers if not name.endswith(_REDUNDANT)]
        if strangers:
            raise ValueError(
                f"{self.path}: holds {strangers[0][:100]}, for which a text tower has no place; give the "
                "directory of a plain LlamaForCausalLM"
            )

    def _check_config(self, model: ModelConfig) -> None:
        where = self.path / "config.json"
        if self.fields.get("model_type") != "llama":
            kind = self.fields.get("model_type")
            raise ValueError(f"{where}: model_type is {short(kind)}; a text tower takes a Llama only")
        for key in ("attention_bias", "mlp_bias"):
            if self.fields.get(key):
                raise ValueError(f"{where}: {key} is true; a text tower has no biases")
        for key, wanted in llama_config(model).items():
            if self.fields.get(key) != wanted:
                raise ValueError(
                    f"{where}: {key} is {short(self.fields.get(key))}, but the run's `model` section says "
                    f"{wanted!r}; make the two agree"
                )

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the weight of our `name`, from the header."""
        return self._shapes[self._names[name]]

    def tensor(self, name: str) -> Tensor:
        """The whole weight of our `name`, in the file's dtype."""
        theirs = self._names[name]
        file = self.path / self._files[theirs]
        try:
            with safe_open(file, framework="pt") as tensors:
                return tensors.get_tensor(theirs)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file}: cannot read {theirs} ({error}); download the model again") from None


def _read_headers(path: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """(file, shape) of every tensor by Hugging Face's name; with an index, exactly those that it places."""
    index, single = path / "model.safetensors.index.json", "model.safetensors"
    places = _read_json(index).get("weight_map") if index.exists() else None
    if index.exists() and not (
        isinstance(places, dict) and all(isinstance(part, str) for part in places.values())
    ):
        raise ValueError(f"{index}: has no weight_map of names; download it again")
    for part in set(places.values()) if places else ():
        try:
            plain_name(part)
        except ValueError as error:
            raise ValueError(f"{index}: weight_map: {error}; download it again") from None
    shapes = {part: _read_header(path / part) for part in (set(places.values()) if places else [single])}
    if places is None:
        places = dict.fromkeys(shapes[single], single)
    for name, part in places.items():
        if name not in shapes[part]:
            raise ValueError(
                f"{path / part}: lacks {name[:100]}, which {index.name} places there; download it again"
            )
    return places, {name: shapes[part][name] for name, part in places.items()}


def _read_header(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        open_regular(file, links=True).close()  # the library would wait for a pipe
        with safe_open(file, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            for name, part in slices.items():
                if part.get_dtype() not in _DTYPES:
                    raise ValueError(
                        f"{file}: {short(name)} is {part.get_dtype()}, and weights are {', '.join(_DTYPES)}; "
                        "give a model that is not quantised"
                    )
            return {name: tuple(part.get_shape()) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: cannot read it ({error}); download the model again") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = parse_json(read_bytes(path, links=True))
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); give a Hugging Face Llama directory"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); download it again") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: holds no fields; download it again")
    return tree
