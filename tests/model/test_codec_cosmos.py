"""The Cosmos codec: weights in our network, and TorchScript of the same signature when it is trusted."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from megatv.config import CodecConfig
from megatv.model.codec import cosmos, load_codec
from megatv.model.codec.cosmos import CosmosCodec
from megatv.model.codec.cosmos_network import CosmosNetwork
from megatv.weights import Published

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
    codec = load_codec(CodecConfig("cosmos", str(write_stand_in(tmp_path))), trust=True)
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
    exact = CosmosCodec(folder, trust=True).encode(frames)
    half = CosmosCodec(folder, dtype=torch.bfloat16, trust=True).encode(frames)
    assert exact.dtype == half.dtype == torch.float32
    assert torch.equal(half, half.bfloat16().float()) and not torch.equal(exact, exact.bfloat16().float())
    torch.testing.assert_close(half, exact, rtol=0, atol=0.03)


def test_torchscript_without_trust_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_stand_in(tmp_path)
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("loaded"))
    reason = r"TorchScript can run any code.*no SHA-256 is published \(its MD5 is not .*--trust-codec"
    with pytest.raises(ValueError, match=rf"encoder\.jit: {reason}"):
        load_codec(CodecConfig("cosmos", str(folder)))
    data = (folder / "encoder.jit").read_bytes()
    published = Published(md5=hashlib.md5(data).hexdigest())
    monkeypatch.setitem(cosmos.TORCHSCRIPT, "encoder.jit", published)  # MD5 alone opens nothing
    with pytest.raises(ValueError, match=r"its MD5 is the published.*--trust-codec"):
        CosmosCodec(folder)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> CosmosNetwork:
    """A narrow network with random weights; files of weights are read into others like it."""
    torch.manual_seed(0)
    monkeypatch.setattr(cosmos, "CosmosNetwork", partial(CosmosNetwork, 4))
    return CosmosNetwork(4).eval().requires_grad_(False)


def test_weights_need_no_torchscript_in_all_their_spellings(tmp_path: Path, network: CosmosNetwork) -> None:
    frames = torch.randint(0, 256, (2, 49 + 5, 16, 24, 3), dtype=torch.uint8)
    state = network.state_dict()
    zeros = {f"network.{name}": torch.zeros_like(value) for name, value in state.items()}
    wavelet = {"encoder.patcher3d.wavelets": torch.ones(2), "decoder.unpatcher3d._arange": torch.arange(2)}
    average = {f"ema.network-{name.replace('.', '-')}": value for name, value in state.items()}
    found = []
    for number, written in enumerate(
        [
            state,
            {**state, **wavelet},
            {f"network.{name}": value for name, value in state.items()},
            {"model": {**zeros, **average}, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        torch.save(written, folder / "model.pt")
        found.append(load_codec(CodecConfig("cosmos", str(folder))).encode(frames))
    assert all(torch.equal(latents, found[0]) for latents in found)
    video = frames[:, 49:].permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    torch.testing.assert_close(found[0][:, 13:], network.encode(video).transpose(1, 2), rtol=1e-4, atol=1e-5)

    (tmp_path / "0" / "encoder.jit").write_bytes(b"TorchScript beside weights is not looked at")
    save_file(state, tmp_path / "0" / "model.safetensors")
    (tmp_path / "0" / "model.pt").write_bytes(b"nor is model.pt beside safetensors")
    codec = CosmosCodec(tmp_path / "0")
    assert torch.equal(codec.encode(frames), found[0])
    assert codec.decode(found[0]).shape == frames.shape
    assert CosmosCodec(tmp_path / "0", dtype=torch.bfloat16).encode(frames).isfinite().all()


def test_other_weights_are_refused(tmp_path: Path, network: CosmosNetwork) -> None:
    def refused(state: object, reason: str) -> None:
        torch.save(state, tmp_path / "model.pt")
        with pytest.raises(ValueError, match=reason) as error:
            CosmosCodec(tmp_path)
        assert "\n" not in str(error.value)

    state = network.state_dict()
    name = "decoder.up.1.block.0.norm1.norm.bias"
    refused([1], r"model\.pt: 'encoder\.conv_in\.0\.conv3d\.weight' is missing")
    refused({"model": 3}, "is missing")
    refused({k: v for k, v in state.items() if k != name}, f"'{name}' is missing instead of")
    refused({**state, name: torch.zeros(17)}, rf"'{name}' is torch\.float32 \[17\] instead of floats \[16\]")
    refused({**state, name: torch.full((16,), torch.nan)}, f"'{name}' has numbers that are not finite")
    refused({**state, name: torch.full((16,), 3e38)}, r"a grey video becomes numbers that are not finite")
    refused(CosmosNetwork(8).state_dict(), r"\[8, 24, 1, 3, 3\] instead of floats \[4, 24, 1, 3, 3\]")
    write_stand_in(tmp_path)
    (tmp_path / "encoder.jit").rename(tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt: TorchScript, which is a program"):
        CosmosCodec(tmp_path, trust=True)


class Calls:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> object:
        return open, (self.path, "w")


def test_a_pickle_in_model_pt_writes_nothing(tmp_path: Path, network: CosmosNetwork) -> None:
    torch.save({**network.state_dict(), "more": Calls(tmp_path / "marker")}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt: its pickle names (io|_io|__builtin__) open"):
        CosmosCodec(tmp_path)
    assert not (tmp_path / "marker").exists()


def test_missing_file(tmp_path: Path) -> None:
    write_stand_in(tmp_path)
    (tmp_path / "decoder.jit").unlink()
    with pytest.raises(ValueError, match=r"decoder\.jit: not found; codec\.path must be a folder"):
        CosmosCodec(tmp_path, trust=True)


def test_file_that_is_no_torchscript(tmp_path: Path) -> None:
    write_stand_in(tmp_path)
    (tmp_path / "encoder.jit").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match=r"encoder\.jit: not a TorchScript file"):
        CosmosCodec(tmp_path, trust=True)


def test_other_geometry(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the CV4x8x8 tokenizer"):
        CosmosCodec(write_stand_in(tmp_path, channels=8), trust=True)


def test_wrong_signature(tmp_path: Path) -> None:
    write_stand_in(tmp_path)
    torch.jit.script(nn.Linear(3, 3)).save(str(tmp_path / "encoder.jit"))
    with pytest.raises(ValueError, match="cannot code a video"):
        CosmosCodec(tmp_path, trust=True)
