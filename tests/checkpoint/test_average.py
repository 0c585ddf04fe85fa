"""The mean of checkpoints: against float64, exact for equal ones, and of one model only."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatv.checkpoint import store
from megatv.checkpoint.compare import faults
from megatv.checkpoint.convert import average, export
from megatv.checkpoint.load import find_checkpoint, load_model
from megatv.checkpoint.meta import read_meta
from megatv.config import Config, load_config

KINDS = ("model", "exp_avg", "exp_avg_sq", "ema")


def tiny(**model: Any) -> Config:
    toy = load_config(Path(__file__).parents[2] / "configs/toy_world.yaml")
    sizes: dict[str, Any] = {"layers": 1, "width": 32, "ffn": 32, "heads": 2, "kv_heads": 2, **model}
    return dataclasses.replace(toy, model=dataclasses.replace(toy.model, **sizes))


@pytest.mark.parametrize("weights", ["model", "ema"])
def test_mean_of_three(weights: str, tmp_path: Path, save_checkpoint: Callable) -> None:
    paths = [save_checkpoint(tmp_path / f"step_{n}", tiny(), KINDS, seed=10 * n) for n in range(3)]
    average(paths, tmp_path / "out", weights=weights)  # type: ignore[arg-type]
    sources = [store.Tensors(path, weights) for path in paths]
    found = store.Tensors(tmp_path / "out", "model")
    assert found.names() == sources[0].names()
    for name in found.names():
        mean = torch.stack([source[name].double() for source in sources]).mean(0)
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name].double(), mean, rtol=1e-6, atol=1e-6)
    meta = read_meta(tmp_path / "out")
    assert (meta["step"], meta["updates"]) == (0, 0)
    assert meta["average_of"] == ["step_0", "step_1", "step_2"]
    assert list(faults(tmp_path / "out")) == []
    load_model(*find_checkpoint(tmp_path / "out"))


def test_equal_checkpoints_are_their_own_mean(tmp_path: Path, save_checkpoint: Callable) -> None:
    path = save_checkpoint(tmp_path / "a", tiny())
    average([path] * 3, tmp_path / "out", weights="model")
    before, after = store.Tensors(path, "model"), store.Tensors(tmp_path / "out", "model")
    assert all(torch.equal(before[name], after[name]) for name in before.names())


def test_exports_in_bfloat16_are_averaged_in_float32(tmp_path: Path, save_checkpoint: Callable) -> None:
    paths = []
    for seed in range(2):
        checkpoint = save_checkpoint(tmp_path / f"full{seed}", tiny(), seed=seed)
        paths.append(tmp_path / f"export{seed}")
        export(checkpoint, paths[-1], weights="auto", dtype="bfloat16", part_bytes=20_000)
    average(paths, tmp_path / "out", weights="model")
    name = "embed.text.weight"
    a, b = (store.Tensors(path, "model")[name].float() for path in paths)
    assert torch.equal(store.Tensors(tmp_path / "out", "model")[name], a + (b - a) / 2)


def test_only_checkpoints_of_one_model(tmp_path: Path, save_checkpoint: Callable) -> None:
    ours = save_checkpoint(tmp_path / "ours", tiny())
    others = {"rope": tiny(rope_theta=5.0), "wide": tiny(width=64)}
    for name, config in others.items():
        with pytest.raises(ValueError, match=f"{name}: the config's `model` is not that of .*ours"):
            average([ours, save_checkpoint(tmp_path / name, config)], tmp_path / "out", weights="model")
    moved = save_checkpoint(tmp_path / "moved", tiny(init_text="/elsewhere"))
    meta = json.loads((moved / "meta.json").read_text())
    (moved / "meta.json").write_text(json.dumps({**meta, "latent_stats": {"mean": 1}}))
    with pytest.raises(ValueError, match="moved: was trained with other latent statistics"):
        average([ours, moved], tmp_path / "out", weights="model")
    with pytest.raises(ValueError, match="give two or more"):
        average([ours], tmp_path / "out", weights="model")
    with pytest.raises(ValueError, match="holds no `ema` tensors"):
        average([ours, ours], tmp_path / "out", weights="ema")
    assert not (tmp_path / "out").exists()
