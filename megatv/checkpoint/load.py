"""A checkpoint as a model: what the sampler, the converter and the evaluation read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from megatv.checkpoint.store import CHECKPOINTS, Tensors, latest, verify
from megatv.config import Config, config_from_dict
from megatv.model.mot import MoT
from megatv.model.precision import PRECISIONS, Precision, convert, set_weight


def find_checkpoint(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint directory and its meta record, from a checkpoint or from a run (its newest whole one).

    Raises ValueError when there is none or the one named is damaged.
    """
    path = Path(path)
    if (path / CHECKPOINTS).is_dir():
        newest, skipped = latest(path)
        if newest is None:
            why = f" ({'; '.join(skipped)})" if skipped else ""
            raise ValueError(f"{path}: no whole checkpoint in {CHECKPOINTS}/{why}; train first")
        path = newest
    return path, verify(path)


def load_model(
    path: str | Path,
    weights: Literal["ema", "model", "auto"] = "auto",
    device: torch.device | str = "cpu",
    precision: Precision = PRECISIONS["fp32"],
) -> tuple[MoT, Config, dict[str, Any]]:
    """Load a checkpoint (or a run's newest) as a MoT in eval mode, with its config and meta record.

    weights    `ema` for the averaged weights, `model` for the trained ones, `auto`: averaged if saved
    precision  what the weights become on their way to the device, one after the other: it never holds more
               than the model in this precision and one whole tensor
    Raises ValueError when the checkpoint is damaged, its tensors do not fit its config, or the precision
    does not fit the model.
    """
    path, meta = find_checkpoint(path)
    config = config_from_dict(meta["config"])
    tensors = Tensors(path, choose_weights(meta, weights))
    with torch.device("meta"):
        model = MoT(config)
    convert(model, precision)
    check_shapes(tensors, model, path)
    model = model.to_empty(device=device)
    model.tie_embeddings()
    for name, _ in model.named_parameters():
        set_weight(model, name, tensors[name])
    return model.eval(), config, meta


def choose_weights(meta: dict[str, Any], weights: Literal["ema", "model", "auto"]) -> str:
    """The kind of tensor to read: `auto` takes the averaged weights where a checkpoint has them."""
    if weights != "auto":
        return weights
    return "ema" if any(name.startswith("ema") for name in meta["files"]) else "model"


def check_shapes(tensors: Tensors, model: MoT, path: Path) -> None:
    """Refuse (ValueError) tensors that are not the whole `model`'s, which may be on the meta device."""
    remedy = "the checkpoint is of another model: use the config beside it"
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    missing = sorted(shapes.keys() - tensors.names())
    if missing:
        raise ValueError(f"{path}: lacks {missing[0]} and {len(missing) - 1} more tensors; {remedy}")
    for name, shape in shapes.items():
        found = tensors.shape(name)
        if found != shape:
            raise ValueError(f"{path}: {name} is {list(found)}, the model needs {list(shape)}; {remedy}")
