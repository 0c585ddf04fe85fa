"""The Wan codec on a tiny randomly initialised AutoencoderKLWan."""

from __future__ import annotations

import json
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


def test_the_values_are_those_of_diffusers(tmp_path: Path) -> None:
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(write_vae(tmp_path)).eval()
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    codec = WanCodec(tmp_path)
    with torch.no_grad():
        latents = vae.encode(video).latent_dist.mode()
        assert torch.equal(codec.encode_group(video), latents)
        assert torch.equal(codec.decode_group(latents), vae.decode(latents).sample)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("base_dim", 10**9),
        ("base_dim", "8"),
        ("base_dim", True),
        ("num_res_blocks", 10**9),
        ("num_res_blocks", -1),
        ("decoder_base_dim", 0),
        ("dim_mult", [1, 1, 1, 10**9]),
        ("dim_mult", [1] * 100_000),
        ("dim_mult", 4),
        ("dim_mult", [1, 1, 1, 0]),
        ("dim_mult", [1, 1, 1, True]),
        ("dim_mult", [1, 1, 1, 1.0]),
        ("temperal_downsample", [2, 0, 0]),
        ("temperal_downsample", [0, 1, 1]),
        ("temperal_downsample", [True] * 4),
        ("temperal_downsample", ["a", "b", "c"]),
        ("z_dim", 10**9),
        ("z_dim", [16] * 1_000),
        ("_class_name", "AutoencoderKL"),
        ("_class_name", ["AutoencoderKLWan"]),
    ],
)
def test_nothing_is_built_by_a_settings_claim(tmp_path: Path, setting: str, value: object) -> None:
    folder = write_vae(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, setting: value}))
    with pytest.raises(ValueError, match=r"config\.json: ") as error:
        WanCodec(folder)
    assert len(str(error.value)) < 300 + len(str(tmp_path)) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\udcff"])
def test_settings_that_are_no_object(tmp_path: Path, text: str) -> None:
    folder = write_vae(tmp_path)
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"config\.json: is (no JSON|not of AutoencoderKLWan)"):
        WanCodec(folder)


class Calls:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> object:
        return open, (self.path, "w")


def test_a_folder_runs_no_code_and_no_pickle(tmp_path: Path) -> None:
    """Neither its Python files nor quantizers nor pickled weights are looked at."""
    marker, folder = tmp_path / "marker", write_vae(tmp_path / "vae")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "evil.Vae"}, "quantization_config": {"quant_method": "gguf"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    torch.save({"x": Calls(marker)}, folder / "diffusion_pytorch_model.bin")
    WanCodec(folder)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors: no such file"):
        WanCodec(folder)
    (folder / "diffusion_pytorch_model.bin").rename(folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match="its pickle names"):
        WanCodec(folder)
    assert not marker.exists()


def test_faults_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers", reason="diffusers is optional")
    with pytest.raises(ValueError, match=r"no config\.json"):
        WanCodec(tmp_path)
    other = write_vae(tmp_path / "other", z_dim=8, latents_mean=[0.0] * 8, latents_std=[1.0] * 8)
    with pytest.raises(ValueError, match=r"\(4, 8, 8\), megatv needs \(4, 8, 16\)"):
        WanCodec(other)
    whole = write_vae(tmp_path / "whole")
    weights = next(whole.glob("*.safetensors"))
    weights.write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors: neither safetensors"):
        WanCodec(whole)
    weights.unlink()
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors: no such file"):
        WanCodec(whole)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match="needs diffusers: `pip install"):
        WanCodec(other)
