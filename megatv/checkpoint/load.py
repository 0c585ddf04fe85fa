"""A checkpoint as a model: what the sampler, the converter and the evaluation read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import torch

from megatv.checkpoint.meta import config_of
from megatv.checkpoint.store import CHECKPOINTS, Tensors, kind_of, latest, verify
from megatv.config import Config
from megatv.free_memory import require_memory
from megatv.log import say
from megatv.model.init import tp_slice
from megatv.model.mot import MoT
from megatv.model.precision import FP8, PRECISIONS, Precision, convert, set_weight
from megatv.parallel.mesh import Mesh


def find_checkpoint(path: str | Path) -> tuple[Path, dict[str, Any], Config]:
    """The directory, meta record and config of a checkpoint, or of a run's newest whole one.

    A newer one that is damaged is passed over, with a line that says why. Raises ValueError when there is
    none or the one named is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: does not exist; give a run or a checkpoint of one (a step_* directory)")
    if (path / CHECKPOINTS).is_dir():
        newest, skipped = latest(path)
        if newest is None:
            why = f" ({'; '.join(skipped)})" if skipped else ""
            raise ValueError(f"{path}: no whole checkpoint in {CHECKPOINTS}/{why}; train first")
        for why in skipped:
            say(f"checkpoint passed over: {why}")
        path = newest
    meta = verify(path)
    return path, meta, config_of(meta, path)


def load_model(
    path: Path,
    meta: dict[str, Any],
    config: Config,
    weights: Literal["ema", "model", "auto"] = "auto",
    device: torch.device | str = "cpu",
    precision: Precision = PRECISIONS["fp32"],
    mesh: Mesh | None = None,
) -> tuple[MoT, Config]:
    """Load a checkpoint, as `find_checkpoint` found it, as a MoT in eval mode, with the config that it has.

    config     the checkpoint's, in which places may be others (`megatv.checkpoint.trust`)
    weights    `ema` for the averaged weights, `model` for the trained ones, `auto`: averaged if saved
    precision  what the weights become on their way to the device, one after the other: it never holds more
               than the model in this precision and one whole tensor
    mesh       a grid without pipelines: every tensor-parallel sibling loads its share of the matrices, and
               the config's `parallel` becomes the mesh's; without one the model is whole
    Raises ValueError when the checkpoint is damaged, its tensors do not fit its config, its weights do not
    fit into the free memory, or the precision or the grid does not fit the model.
    """
    tensors = Tensors(path, choose_weights(meta, weights))
    with torch.device("meta"):
        model = MoT(config)
    check_shapes(tensors, model)
    tp, tp_rank = 1, 0
    if mesh is not None:
        if precision.stored == FP8:
            raise ValueError("--precision fp8 does not go with --tp, whose matrices are Megatron's: use bf16")
        # previews, which a training run makes with whole models only, would not go with its grid
        log = dataclasses.replace(config.log, preview_every=0)
        config = dataclasses.replace(config, parallel=mesh.parallel, log=log)
        tp, tp_rank = mesh.tp, mesh.tp_rank
        with torch.device("meta"):
            model = MoT(config, mesh.layers())
    convert(model, precision)
    need = sum(x.nbytes for x in (*model.parameters(), *model.buffers()))
    require_memory(need, torch.device(device), f"{path}: the model's weights", "load it on a larger machine")
    model = model.to_empty(device=device)
    model.tie_embeddings()
    for name, _ in model.named_parameters():
        set_weight(model, name, tp_slice(tensors[name], name, tp, tp_rank))
    return model.eval(), config


def choose_weights(meta: dict[str, Any], weights: Literal["ema", "model", "auto"]) -> str:
    """The kind of tensor to read: `auto` takes the averaged weights where a checkpoint has them."""
    if weights != "auto":
        return weights
    return "ema" if "ema" in map(kind_of, meta["files"]) else "model"


def check_shapes(tensors: Tensors, model: MoT) -> None:
    """Refuse (ValueError) tensors that are not the whole `model`'s, which may be on the meta device."""
    tensors.require({name: tuple(p.shape) for name, p in model.named_parameters()})
