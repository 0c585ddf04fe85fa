"""Whether a folder's weights are those of the model that its settings describe, before memory is asked for.

Settings are only numbers, and a file with holes takes its author nothing: what counts are the tensors in the
headers of the very files that will be loaded.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from megatv.free_memory import require_memory
from megatv.weights import open_safetensors

SLACK = 1 << 20
"""Numbers that a model may have beyond twice those of its files: a pooler and tables that are not stored."""
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def check_weights(files: list[Path], model: nn.Module, prefix: str) -> None:
    """Refuse (ValueError) safetensors that are not the weights of `model`, which lies on the meta device.

    Every weight of the model, but for those of a pooler, must be there with its shape; names may begin with
    `prefix`, the name of the model within one that has a head. The whole model must fit into memory.
    """
    stored: dict[str, tuple[int, ...]] = {}
    for file in files:
        stored |= {_name(name, prefix): shape for name, shape in _read_header(file).items()}
    for name, weight in model.named_parameters():
        if "pooler" not in name and stored.get(_name(name, prefix)) != tuple(weight.shape):
            raise ValueError(
                f"config.json describes {name} of {list(weight.shape)}, which the safetensors do not have"
            )
    tensors = [*model.parameters(), *model.buffers()]
    size, found = sum(tensor.numel() for tensor in tensors), sum(map(math.prod, stored.values()))
    if size > 2 * found + SLACK:
        raise ValueError(f"config.json describes {size:,} numbers, the safetensors have {found:,}")
    need = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    require_memory(need, torch.device("cpu"), "its weights", "take a smaller model")


def _name(name: str, prefix: str) -> str:
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    return name.removeprefix(f"{prefix}.")


def _read_header(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the floating-point tensors of a file."""
    try:
        with open_safetensors(file) as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 (not a dict)
            return {n: tuple(s.get_shape()) for n, s in slices.items() if "F" in s.get_dtype()}
    except SafetensorError as error:
        raise ValueError(f"{file}: is no safetensors file, or damaged ({str(error)[:200]})") from None
