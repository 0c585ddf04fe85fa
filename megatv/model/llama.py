"""Hugging Face Llama and our text tower: the same matrices under other names.

Both use the half-split rotary layout, so no matrix is permuted (Meta's own files are interleaved; convert
those to Hugging Face's first).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from megatv.config import ModelConfig
from megatv.model.llama_config import check_llama_config
from megatv.regular_file import read_bytes
from megatv.schema import short
from megatv.untrusted import parse_json, plain_name
from megatv.weights import is_finite, open_safetensors, read_tensors

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files of weights, or of `NAME.index.json` that names their parts; the first kind that is there is read."""
BIN = ".bin"
MAX_BIN_BYTES = 16 << 30
"""Of one file of torch.save, all in memory as tensors; parts are 10 GB by transformers' old default."""
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
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


class LlamaDirectory:
    """Read-only view of a Hugging Face Llama directory (config.json and weights) by our names.

    Weights are safetensors, of which headers alone are read until a tensor is asked for, or where there are
    none the `pytorch_model.bin` of older models, one part of which is in memory at a time. Files lie in the
    directory under plain names, but may be links to elsewhere, as the cache of Hugging Face has them. Raises
    ValueError when the directory is incomplete, is not the model that `model` describes, or holds weights
    that a text tower has no place for.
    """

    def __init__(self, path: str | Path, model: ModelConfig) -> None:
        self.path = Path(path)
        self.fields = _read_json(self.path / "config.json")
        self._names = llama_names(model)
        check_llama_config(self.fields, model, self.path / "config.json")
        self._part: tuple[Path | None, dict[str, Tensor]] = (None, {})
        self._files, self._shapes = self._read_headers()
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

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def name(self, name: str) -> str:
        """Hugging Face's name of the weight of our `name`."""
        return self._names[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the weight of our `name`, from the header."""
        return self._shapes[self._names[name]]

    def tensor(self, name: str) -> Tensor:
        """The whole weight of our `name`, in the file's dtype; ValueError for damage, NaN and infinity."""
        theirs = self._names[name]
        file = self.path / self._files[theirs]
        if file.suffix == BIN:
            weight = self._read_part(file)[theirs].contiguous()
        else:
            try:
                with open_safetensors(file) as tensors:
                    weight = tensors.get_tensor(theirs)
            except (OSError, SafetensorError) as error:
                raise ValueError(
                    f"{file}: cannot read {theirs} ({error}); download the model again"
                ) from None
        if not is_finite(weight):
            raise ValueError(f"{file}: {theirs} has numbers that are not finite; download the model again")
        return weight

    def _read_headers(self) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
        """(file, shape) of every tensor by Hugging Face's name; with an index, just those that it places."""
        single = next((name for name in WEIGHTS if _is_there(self.path, name)), None)
        if single is None:
            raise ValueError(
                f"{self.path}: holds no weights, neither {' nor '.join(WEIGHTS)}, nor an index of "
                "their parts; download the model again"
            )
        index = self.path / f"{single}.index.json"
        places = _read_places(index) if index.exists() else None
        parts = sorted(set(places.values())) if places else [single]
        shapes = {part: self._shapes_in(self.path / part) for part in parts}
        if places is None:
            places = dict.fromkeys(shapes[single], single)
        for name, part in places.items():
            if name not in shapes[part]:
                raise ValueError(
                    f"{self.path / part}: lacks {name[:100]}, which {index.name} places there; "
                    "download it again"
                )
        return places, {name: shapes[part][name] for name, part in places.items()}

    def _shapes_in(self, file: Path) -> dict[str, tuple[int, ...]]:
        if file.suffix == BIN:
            return {name: tuple(weight.shape) for name, weight in self._read_part(file).items()}
        try:
            with open_safetensors(file) as tensors:
                slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
                for name, part in slices.items():
                    _check_dtype(file, name, part.get_dtype())
                return {name: tuple(part.get_shape()) for name, part in slices.items()}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file}: cannot read it ({error}); download the model again") from None

    def _read_part(self, file: Path) -> dict[str, Tensor]:
        """The tensors of a file of torch.save. The last one's are kept, since neighbours lie together."""
        if self._part[0] != file:
            self._part = (None, {})  # no two parts in memory
            weights = read_tensors(file, MAX_BIN_BYTES)
            if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
                raise ValueError(f"{file}: holds other things than tensors by name; give a Llama's weights")
            for name, weight in weights.items():
                _check_dtype(file, name, _DTYPES.get(weight.dtype, str(weight.dtype)))
            self._part = (file, {str(name): weight for name, weight in weights.items()})
        return self._part[1]


def _is_there(folder: Path, weights: str) -> bool:
    return (folder / weights).exists() or (folder / f"{weights}.index.json").exists()


def _read_places(index: Path) -> dict[str, str]:
    """File by tensor, as an index has it."""
    places = _read_json(index).get("weight_map")
    if not (isinstance(places, dict) and all(isinstance(part, str) for part in places.values())):
        raise ValueError(f"{index}: has no weight_map of names; download it again")
    for part in set(places.values()):
        try:
            plain_name(part)
        except ValueError as error:
            raise ValueError(f"{index}: weight_map: {error}; download it again") from None
    return places


def _check_dtype(file: Path, name: str, dtype: str) -> None:
    if dtype not in _DTYPES.values():
        raise ValueError(
            f"{file}: {short(name)} is {dtype}, and weights are {', '.join(_DTYPES.values())}; give a model "
            "that is not quantised"
        )


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
