"""Checkpoints with random weights, for what reads, compares and converts them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatv.checkpoint import store
from megatv.checkpoint.convert import model_shapes
from megatv.config import Config, config_to_dict


@pytest.fixture(scope="session")
def save_checkpoint() -> Callable[..., Path]:
    """save_checkpoint(path, config, kinds=("model",), seed=0): at step 7; every kind has its own values.

    scale  of all values; NaN and infinity make every one such a number
    """

    def save(
        path: Path, config: Config, kinds: tuple[str, ...] = ("model",), seed: int = 0, scale: float = 1.0
    ) -> Path:
        shapes = model_shapes(config)
        temporary = store.begin(path)
        files = {}
        for number, kind in enumerate(kinds):
            generator = torch.Generator().manual_seed(seed + number)
            tensors = (scale * torch.randn(shape, generator=generator) for shape in shapes.values())
            file = store.part_name(kind, 0, 1)
            files[file] = store.write_tensors(temporary / file, shapes, tensors)
        meta = {"step": 7, "updates": 7, "skipped": 0, "config": config_to_dict(config), "latent_stats": None}
        store.commit(temporary, path, meta, files)
        return path

    return save
