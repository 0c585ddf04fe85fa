"""The codec interface, the cosine-transform codec and the learned one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from megatv.config import CodecConfig
from megatv.model.codec import Codec, frames_to_latents, latents_to_frames, learned, load_codec
from megatv.model.codec.dct import CHUNK_BASIS, PICTURE_BASIS, DCTCodec
from megatv.model.codec.learned import FORMAT, ChunkAutoencoder, LearnedCodec

CLIPS = Path(__file__).parents[2] / "../shared/clips"
CODECS: dict[str, Callable[[], Codec]] = {
    "dct": DCTCodec,
    "learned": lambda: LearnedCodec(trained_a_little()),
}


def trained_a_little() -> ChunkAutoencoder:
    """Random weights whose batch norm has seen data, so that latents are of order one."""
    torch.manual_seed(0)
    network = ChunkAutoencoder(width=16)
    for _ in range(20):
        network(torch.rand(16, 12, 16, 16) * 2 - 1)
    return network


def moving_picture(frames: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """uint8 [1, F, H, W, 3]: smooth colour waves that drift."""
    rng = np.random.default_rng(seed)
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    waves = [np.sin(x * a + y * b + t * c + d) for a, b, c, d in rng.uniform(-0.2, 0.2, (3, 4))]
    return torch.from_numpy((127.5 + 100 * np.stack(waves, -1)).astype(np.uint8))[None]


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(255**2 / (a.float() - b.float()).square().mean()))


@given(st.integers(1, 40))
def test_frame_and_latent_counts_invert_each_other(latents: int) -> None:
    frames = latents_to_frames(latents)
    assert frames_to_latents(frames) == latents
    assert [latents_to_frames(n) for n in (1, 2, 13, 14, 15, 26)] == [1, 5, 49, 50, 54, 98]


@pytest.mark.parametrize("frames", [0, 2, 4, 48, 51, 97])
def test_frames_that_fill_no_latent_are_refused(frames: int) -> None:
    with pytest.raises(ValueError, match=f"{frames} frames do not fill whole latents"):
        frames_to_latents(frames)


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("size", [(16, 24), (192, 320)])
def test_shapes_and_types(kind: str, size: tuple[int, int]) -> None:
    codec, frames = CODECS[kind](), moving_picture(54, *size)
    latents = codec.encode(frames)
    assert latents.shape == (1, 15, 16, size[0] // 8, size[1] // 8) and latents.dtype == torch.float32
    decoded = codec.decode(latents)
    assert decoded.shape == frames.shape and decoded.dtype == torch.uint8
    assert not latents.requires_grad and not latents.is_inference()


@pytest.mark.parametrize("kind", CODECS)
@settings(max_examples=10, deadline=None)
@given(prefix=st.integers(1, 16), batch=st.integers(1, 2))
def test_a_prefix_of_latents_is_a_prefix_of_frames(kind: str, prefix: int, batch: int) -> None:
    codec = CODECS[kind]()
    frames = torch.cat([moving_picture(58, 16, 16, seed) for seed in range(batch)])
    latents = codec.encode(frames)
    start = latents_to_frames(prefix)
    torch.testing.assert_close(codec.encode(frames[:, :start]), latents[:, :prefix], rtol=0, atol=1e-4)
    part, whole = codec.decode(latents[:, :prefix]), codec.decode(latents)[:, :start]
    assert (part.int() - whole.int()).abs().max() <= 1  # a float may round to either side of a half


@pytest.mark.parametrize("kind", CODECS)
def test_groups_are_independent_and_alike(kind: str) -> None:
    codec, frames = CODECS[kind](), moving_picture(49, 16, 16)
    latents = codec.encode(frames.repeat(1, 2, 1, 1, 1))
    torch.testing.assert_close(latents[:, :13], latents[:, 13:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", CODECS)
def test_a_change_reaches_its_own_chunk_only(kind: str) -> None:
    codec, frames = CODECS[kind](), moving_picture(13, 16, 16)
    changed = frames.clone()
    changed[:, 5:9] = 255 - changed[:, 5:9]
    same = torch.isclose(codec.encode(frames), codec.encode(changed), atol=1e-5).flatten(2).all(2)[0]
    assert same.tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(1, 5, 16, 20, 3, dtype=torch.uint8), "20x16 pixels"),
        (torch.zeros(1, 5, 16, 16, 3), "float32"),
        (torch.zeros(5, 16, 16, 3, dtype=torch.uint8), r"\[5, 16, 16, 3\]"),
        (torch.zeros(1, 6, 16, 16, 3, dtype=torch.uint8), "6 frames"),
    ],
)
def test_frames_that_do_not_fit_are_refused(frames: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DCTCodec().encode(frames)


def test_latents_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[1, 16, 8, 4, 4\]"):
        DCTCodec().decode(torch.zeros(1, 16, 8, 4, 4))


@pytest.mark.parametrize(("basis", "frames"), [(PICTURE_BASIS, 1), (CHUNK_BASIS, 4)])
def test_dct_projects_orthogonally(basis: tuple, frames: int) -> None:
    """Decoding then encoding changes no latent, and a grey picture lies in the first channel alone."""
    assert len(set(basis)) == 16
    codec = DCTCodec()
    latents = torch.randn(1, 16, 5, 3, 3)
    torch.testing.assert_close(codec.encode_group(codec.decode_group(latents)), latents, atol=1e-5, rtol=0)
    grey = torch.full((1, 3, 1 + 4, 8, 8), 0.5)
    energy = codec.encode_group(grey).square().sum((3, 4))[0]
    torch.testing.assert_close(energy[0], torch.tensor([0.25 * 192, 0.25 * 768]), rtol=1e-4, atol=0)
    assert energy[1:].max() < 1e-6


@pytest.mark.parametrize("channel", range(16))
def test_dct_matches_its_definition(channel: int) -> None:
    """One coefficient of one block: sum of pixels times cosines along time, rows, columns and colours."""
    video = torch.rand(1, 3, 5, 8, 8, dtype=torch.float64) * 2 - 1
    for latent, basis, start in ((0, PICTURE_BASIS, 0), (1, CHUNK_BASIS, 1)):
        block = video[0, :, start : start + (4 if latent else 1)].numpy()  # colour, time, row, column
        t, y, x, m = basis[channel]
        weights = 1.0
        for axis, frequency in enumerate((m, t, y, x)):
            n = block.shape[axis]
            wave = np.cos(np.pi * frequency * (np.arange(n) + 0.5) / n) * np.sqrt((2 if frequency else 1) / n)
            weights = weights * wave.reshape([-1 if i == axis else 1 for i in range(4)])
        found = DCTCodec().encode_group(video.float())[0, channel, latent, 0, 0].item()
        assert found == pytest.approx((block * weights).sum(), abs=1e-5)


@pytest.mark.parametrize(
    ("clip", "least"), [("arm_wrestling", 24.1), ("basketball", 26.8), ("still_face", 37.5)]
)
def test_dct_on_real_clips(clip: str, least: float) -> None:
    from megatv.data.video import decode_video

    path = CLIPS / f"{clip}.mp4"
    if not path.exists():
        pytest.skip("the real clips are not beside this checkout")
    frames = torch.from_numpy(decode_video(path, width=320, height=192, frames=49))[None]
    codec = DCTCodec()
    assert psnr(codec.decode(codec.encode(frames)), frames) > least


def test_learned_round_trip_through_a_file(tmp_path: Path) -> None:
    codec, frames = CODECS["learned"](), moving_picture(9, 16, 16)
    assert isinstance(codec, LearnedCodec)
    codec.save(tmp_path / "deep" / "codec.safetensors")
    again = load_codec(CodecConfig("learned", str(tmp_path / "deep" / "codec.safetensors")))
    torch.testing.assert_close(again.encode(frames), codec.encode(frames), rtol=0, atol=0)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["codec.safetensors"]


def test_files_that_are_no_learned_codec_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    with pytest.raises(ValueError, match="no such codec"):
        load_codec(CodecConfig("learned", str(path)))
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match="not a readable safetensors"):
        load_codec(CodecConfig("learned", str(path)))
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not a megatv-learned-codec"):
        load_codec(CodecConfig("learned", str(path)))


@pytest.mark.parametrize(
    "claim",
    [
        '{"width": 9}',
        '{"width": 1000000000000}',
        '{"width": -8}',
        '{"width": 8.0}',
        '{"width": true}',
        '{"width": "8"}',
        '{"width": null}',
        '{"breadth": 8}',
        "[8]",
        "8",
        "{",
        "[" * 100_000,
        "1" * 5_000,
        None,
    ],
)
def test_a_learned_codec_allocates_nothing_by_its_own_claims(tmp_path: Path, claim: str | None) -> None:
    path = tmp_path / "codec.safetensors"
    metadata = {"format": FORMAT} | ({"hyper_parameters": claim} if claim is not None else {})
    save_file(ChunkAutoencoder(8).state_dict(), path, metadata)
    with pytest.raises(ValueError, match=r"'hyper_parameters' of its metadata must be") as error:
        load_codec(CodecConfig("learned", str(path)))
    assert "\n" not in str(error.value)


def test_a_learned_codec_has_all_its_tensors_in_their_shapes(tmp_path: Path) -> None:
    path, state = tmp_path / "codec.safetensors", ChunkAutoencoder(8).state_dict()
    metadata = {"format": FORMAT, "hyper_parameters": '{"width": 8}'}

    def refused(changed: dict[str, torch.Tensor], reason: str) -> None:
        save_file(changed, path, metadata)
        with pytest.raises(ValueError, match=reason):
            load_codec(CodecConfig("learned", str(path)))

    name = "decoder.2.weight"
    refused({k: v for k, v in state.items() if k != name}, f"'{name}' is missing instead of")
    refused({**state, name: torch.zeros(8, 8)}, rf"'{name}' is torch\.float32 \[8, 8\] instead of floats")
    refused({k: v for k, v in state.items() if k != "encoder.1.weight"}, "must be")
    refused({**state, "encoder.6.num_batches_tracked": torch.zeros(())}, r"instead of torch\.int64")


@pytest.mark.parametrize("kind", ["float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_weights_of_a_learned_codec_become_float32(tmp_path: Path, kind: str) -> None:
    path, codec = tmp_path / "codec.safetensors", LearnedCodec(trained_a_little())
    codec.save(path)
    with safe_open(path, "pt") as file:
        metadata, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    saved = {n: v.to(getattr(torch, kind)) if v.is_floating_point() else v for n, v in state.items()}
    save_file(saved, path, metadata)
    again = LearnedCodec.load(path)
    assert all(v.dtype in (torch.float32, torch.int64) for v in again.network.state_dict().values())
    frames = moving_picture(9, 16, 16)
    assert again.decode(again.encode(frames)).shape == frames.shape


@pytest.mark.parametrize(
    ("name", "number", "reason"),
    [
        ("encoder.1.weight", torch.nan, "has numbers that are not finite"),
        ("decoder.4.bias", torch.inf, "has numbers that are not finite"),
        ("encoder.6.running_var", -1.0, "is below zero"),
    ],
)
def test_weights_that_code_to_no_numbers_are_refused(
    tmp_path: Path, name: str, number: float, reason: str
) -> None:
    path, network = tmp_path / "codec.safetensors", trained_a_little()
    with torch.no_grad():
        network.state_dict()[name].view(-1)[0] = number
    LearnedCodec(network).save(path)
    with pytest.raises(ValueError, match=rf"codec\.safetensors: '{name}' {reason}"):
        load_codec(CodecConfig("learned", str(path)))


def test_a_codec_that_needs_a_path_says_so() -> None:
    with pytest.raises(ValueError, match=r"needs codec\.path"):
        load_codec(CodecConfig("cosmos"))


def test_a_learned_codec_is_bounded_before_its_tensors_are_read(tmp_path: Path) -> None:
    """A file with holes takes its author nothing: 4 KB on the disk once took gigabytes of memory."""
    path, state = tmp_path / "codec.safetensors", ChunkAutoencoder(8).state_dict()
    save_file(state, path, {"format": FORMAT, "hyper_parameters": '{"width": 8}'})
    with path.open("r+b") as file:
        file.truncate(learned.MAX_BYTES + 1)
    with pytest.raises(ValueError, match=r"bytes and may have"):
        load_codec(CodecConfig("learned", str(path)))

    width = learned.MAX_WIDTH + 1
    state["encoder.1.weight"] = torch.zeros(width, 1)
    save_file(state, path, {"format": FORMAT, "hyper_parameters": json.dumps({"width": width})})
    with pytest.raises(ValueError, match=r"and at most 2048"):
        load_codec(CodecConfig("learned", str(path)))


def test_the_widest_learned_codec_fits_into_its_bound() -> None:
    with torch.device("meta"):
        widest = ChunkAutoencoder(learned.MAX_WIDTH)
    assert sum(8 * x.numel() for x in widest.state_dict().values()) < learned.MAX_BYTES
