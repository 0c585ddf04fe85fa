"""Initial weights: each a function of (seed, global name) alone, so that every process grid starts alike.

A weight is drawn whole, on the CPU, from a generator of its own, and then sliced for tensor parallelism.

    weight                                      law
    norms                                       1 (bias 0)
    biases                                      0
    conv2 of the U-Net's blocks                 0: every block starts as the identity (ADM's `zero_module`)
    other U-Net and linear-patch matrices       N(0, 1 / fan_in), which keeps the size of what passes
    to_tokens                                   N(0, 0.3^2 / fan_in): noise must not drown what attention adds
    position                                    N(0, 0.2^2): a place must show beside a token's content
    wo, down (they write to the residual)       N(0, 2 / (5 D)) / sqrt(2 layers)
    everything else, D = model width            N(0, 2 / (5 D)), "small init" (Nguyen & Salazar 2019)

`to_velocity` is drawn like the others, not zero as is the custom: from zero it first grows along the few
directions that the noisy copy explains, and until it has others no gradient tells the towers about the past.

With `init_text` the text tower is Llama's instead. With `init_video: copy` the video tower starts as a copy
of the text tower, as in LMFusion, whichever way that began.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable

import torch
from torch import Tensor

from megatv.config import Config
from megatv.data.tokenizer import load_tokenizer
from megatv.model.llama import LlamaDirectory

_SPLIT = (
    (re.compile(r"blocks\.\d+\.(text|video)\.(wq|wk|wv|gate|up)\.weight"), 0),
    (re.compile(r"blocks\.\d+\.(text|video)\.(wo|down)\.weight"), 1),
    (re.compile(r"(embed|head)\.text\.weight"), 0),
)


def tp_slice_dim(name: str) -> int | None:
    """Dimension along which the weight of this global name is split over tp ranks; None: whole on each."""
    return next((dim for pattern, dim in _SPLIT if pattern.fullmatch(name)), None)


def tp_slice(full: Tensor, name: str, tp: int, tp_rank: int) -> Tensor:
    """The part of a whole weight that belongs to one tensor-parallel rank (a view)."""
    dim = tp_slice_dim(name)
    return full if dim is None else full.chunk(tp, dim)[tp_rank]


def initialize(
    parameters: Iterable[tuple[str, Tensor]], config: Config, *, tp: int = 1, tp_rank: int = 0
) -> None:
    """Fill (global name, parameter) pairs, such as `model.named_parameters()` or those of one stage."""
    llama = LlamaDirectory(config.model.init_text, config.model) if config.model.init_text else None
    with torch.no_grad():
        for name, parameter in parameters:
            shape = list(parameter.shape)
            if (dim := tp_slice_dim(name)) is not None:
                shape[dim] *= tp
            full = initial_weight(name, shape, config, llama)
            parameter.copy_(tp_slice(full, name, tp, tp_rank))


def initial_weight(
    name: str, shape: Iterable[int], config: Config, llama: LlamaDirectory | None = None
) -> Tensor:
    """The whole float32 weight of a global name. Raises ValueError where Llama's has another shape."""
    shape = tuple(shape)
    if config.model.init_video == "copy":
        name = re.sub(r"^(blocks\.\d+\.|head\.)video", r"\1text", name)
    if llama is None or name not in llama:
        return _drawn(name, shape, config)
    weight = llama.tensor(name).float()
    if weight.shape != shape:
        raise ValueError(
            f"{llama.path}: {name} has shape {tuple(weight.shape)}, the run needs {shape}; "
            "the files do not belong to their config.json"
        )
    return _with_markers(weight, name, config) if name.endswith("text.weight") else weight


def _with_markers(table: Tensor, name: str, config: Config) -> Tensor:
    """BOF and EOF stand on rows that Llama reserved and never trained: put them near the mean row."""
    tokenizer = load_tokenizer(config.tokenizer.path, config.model.vocab)
    mean, spread = table.mean(0), 0.1 * table.std()
    for row in (tokenizer.bof, tokenizer.eof):
        table[row] = mean + spread * torch.randn(mean.shape, generator=_generator(f"{name}[{row}]", config))
    return table


def _drawn(name: str, shape: tuple[int, ...], config: Config) -> Tensor:
    *_, module, kind = name.split(".")
    if "norm" in module:
        return torch.full(shape, 1.0 if kind == "weight" else 0.0)
    if kind == "bias" or module == "conv2":
        return torch.zeros(shape)
    if name.startswith(("embed.down.", "head.up.")):
        # transposed convolutions are stored as [in, out, ..], and ours do not overlap
        fan_in = shape[0] if module == "upsample" else math.prod(shape[1:])
        std = (0.3 if module == "to_tokens" else 1) / math.sqrt(fan_in)
    elif kind == "position":
        std = 0.2
    else:
        std = math.sqrt(2 / (5 * config.model.width))
        if module in ("wo", "down"):
            std /= math.sqrt(2 * config.model.layers)
    return torch.randn(shape, generator=_generator(name, config)) * std


def _generator(key: str, config: Config) -> torch.Generator:
    digest = hashlib.sha256(f"{config.run.seed}:{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
