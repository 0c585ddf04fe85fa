"""The Cosmos codec, on TorchScript files of the same signature, geometry and causality."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from megatv.config import CodecConfig
from megatv.model.codec import load_codec
from megatv.model.codec.cosmos import CosmosCodec

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Encoder(nn.Module):
    """[B, 3, 1 + 4k, H, W] to a tuple whose first entry is [B, 16, 1 + k, H/8, W/8]; sees no later frame."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, channels, (4, 8, 8), stride=(4, 8, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert x.abs().max() <= 1
        first = x[:, :, :1].repeat(1, 1, 3, 1, 1)
        return self.conv(torch.cat([first, x], dim=2)), x.new_zeros(1)


class Decoder(nn.Module):
    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose3d(channels, 3, (4, 8, 8), stride=(4, 8, 8))

    def forward(self, z: Tensor) -> Tensor:
        return 40 * self.conv(z)[:, :, 3:]  # beyond [-1, 1]: the codec must clamp


def write_stand_in(folder: Path, channels: int = 16, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    torch.jit.script(Encoder(channels).to(dtype)).save(str(folder / "encoder.jit"))
    torch.jit.script(Decoder(channels).to(dtype)).save(str(folder / "decoder.jit"))
    return folder


def test_range_groups_and_clamp(tmp_path: Path) -> None:
    codec = load_codec(CodecConfig("cosmos", str(write_stand_in(tmp_path))))
    frames = torch.randint(0, 256, (2, 98 + 5, 16, 24, 3), dtype=torch.uint8)
    latents = codec.encode(frames)
    assert latents.shape == (2, 28, 16, 2, 3) and latents.dtype == torch.float32
    second = (
        2 * frames[:, 49:98].permute(0, 4, 1, 2, 3).float() / 255 - 1
    )  # groups know nothing of each other
    expected = torch.jit.load(str(tmp_path / "encoder.jit"))(second)[0].transpose(1, 2)
    torch.testing.assert_close(latents[:, 13:26], expected)

    decoded = codec.decode(latents)
    assert decoded.shape == frames.shape
    assert decoded.min() == 0 and decoded.max() == 255
    pictures = torch.jit.load(str(tmp_path / "decoder.jit"))(latents[:, 13:26].transpose(1, 2))
    expected = ((pictures.clamp(-1, 1) + 1) / 2 * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 4, 1)
    assert (decoded[:, 49:98].int() - expected.int()).abs().max() <= 1
    assert (codec.decode(latents[:, :15]).int() - decoded[:, :54].int()).abs().max() <= 1


def test_bf16_weights_run_in_bf16_when_asked_and_in_fp32_on_cpu(tmp_path: Path) -> None:
    folder = write_stand_in(tmp_path, dtype=torch.bfloat16)
    frames = torch.randint(0, 256, (1, 5, 16, 16, 3), dtype=torch.uint8)
    exact, half = CosmosCodec(folder).encode(frames), CosmosCodec(folder, dtype=torch.bfloat16).encode(frames)
    assert exact.dtype == half.dtype == torch.float32
    assert torch.equal(half, half.bfloat16().float()) and not torch.equal(exact, exact.bfloat16().float())
    torch.testing.assert_close(half, exact, rtol=0, atol=0.03)


def test_unknown_weights_are_used_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        CosmosCodec(write_stand_in(tmp_path))
    assert [r.message.split(":")[0].rsplit("/", 1)[-1] for r in caplog.records] == [
        "encoder.jit",
        "decoder.jit",
    ]


def test_missing_file(tmp_path: Path) -> None:
    write_stand_in(tmp_path)
    (tmp_path / "decoder.jit").unlink()
    with pytest.raises(ValueError, match=r"decoder\.jit: not found; codec\.path must be a folder"):
        CosmosCodec(tmp_path)


def test_file_that_is_no_torchscript(tmp_path: Path) -> None:
    write_stand_in(tmp_path)
    (tmp_path / "encoder.jit").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match=r"encoder\.jit: not a TorchScript file"):
        CosmosCodec(tmp_path)


def test_other_geometry(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the CV4x8x8 tokenizer"):
        CosmosCodec(write_stand_in(tmp_path, channels=8))


def test_wrong_signature(tmp_path: Path) -> None:
    write_stand_in(tmp_path)
    torch.jit.script(nn.Linear(3, 3)).save(str(tmp_path / "encoder.jit"))
    with pytest.raises(ValueError, match="cannot code a video"):
        CosmosCodec(tmp_path)
