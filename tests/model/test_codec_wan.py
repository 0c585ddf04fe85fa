"""The Wan codec on a tiny randomly initialised AutoencoderKLWan."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from megatv.config import CodecConfig
from megatv.model.codec import load_codec
from megatv.model.codec.wan import WanCodec

TINY = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}


def write_vae(folder: Path, **changes: object) -> Path:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is optional")
    torch.manual_seed(0)
    diffusers.AutoencoderKLWan(**{**TINY, **changes}).save_pretrained(folder)
    return folder


def test_geometry_groups_and_determinism(tmp_path: Path) -> None:
    codec = load_codec(CodecConfig("wan", str(write_vae(tmp_path))))
    frames = torch.randint(0, 256, (1, 49 + 5, 16, 16, 3), dtype=torch.uint8)
    latents = codec.encode(frames)
    assert latents.shape == (1, 15, 16, 2, 2) and latents.dtype == torch.float32
    torch.testing.assert_close(codec.encode(frames[:, 49:]), latents[:, 13:], rtol=0, atol=1e-5)
    torch.testing.assert_close(codec.encode(frames), latents, rtol=0, atol=0)
    decoded = codec.decode(latents)
    assert decoded.shape == frames.shape and decoded.dtype == torch.uint8
    assert (codec.decode(latents[:, :2]).int() - decoded[:, :5].int()).abs().max() <= 1


def test_faults_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers", reason="diffusers is optional")
    with pytest.raises(ValueError, match=r"no config\.json"):
        WanCodec(tmp_path)
    other = write_vae(tmp_path / "other", z_dim=8, latents_mean=[0.0] * 8, latents_std=[1.0] * 8)
    with pytest.raises(ValueError, match=r"\(4, 8, 8\), megatv needs \(4, 8, 16\)"):
        WanCodec(other)
    weights = next(other.glob("*.safetensors"))
    weights.write_bytes(b"garbage")
    with pytest.raises(ValueError, match="not a diffusers AutoencoderKLWan"):
        WanCodec(other)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match="pip install 'diffusers"):
        WanCodec(other)
