"""A small codec that `tools/train_codec.py` trains on one's own videos in minutes.

Every chunk of four frames (a first frame is repeated four times) is coded by itself, so the codec is causal
and exact on prefixes. All convolutions run at latent resolution, between a linear map of whole 4 x 8 x 8
pixel blocks and its counterpart: on CPUs that learned faster than the pyramids tried. Videos of any size
that is a multiple of 8 can be coded.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from megatv.config import LATENT_CHANNELS, SPATIAL_FACTOR, TEMPORAL_FACTOR
from megatv.model.codec.base import Codec
from megatv.untrusted import parse_json
from megatv.weights import check_size, take

FORMAT = "megatv-learned-codec-1"
MAX_WIDTH = 2048
"""Most channels inside a network that is read, sixteen times the default: 320 MB of weights."""
MAX_BYTES = 2 * 4 * (18 * MAX_WIDTH**2 + 2000 * MAX_WIDTH)
"""Most of a file: the weights of the widest network (two 3 x 3 convolutions, and the ends) in float64."""
CHUNK_CHANNELS = 3 * TEMPORAL_FACTOR
"""A chunk is a picture of 12 channels: colours, times the four frames."""


class ChunkAutoencoder(nn.Module):
    """Chunks [n, 12, H, W] in [-1, 1] to latents [n, C, h, w] and back; `width` channels inside.

    The latents pass a batch norm without scale and shift: every channel has zero mean and unit variance over
    the training data, so noise of a given size means the same everywhere and cannot be outgrown.
    """

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.width = width
        block = CHUNK_CHANNELS * SPATIAL_FACTOR**2
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(SPATIAL_FACTOR),
            nn.Conv2d(block, width, 1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, LATENT_CHANNELS, 1),
            nn.BatchNorm2d(LATENT_CHANNELS, affine=False, momentum=0.02),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(LATENT_CHANNELS, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, block, 1),
            nn.PixelShuffle(SPATIAL_FACTOR),
        )

    def forward(self, chunks: Tensor, noise: float = 0.0) -> Tensor:
        """Reconstruct chunks through latents with Gaussian noise of standard deviation `noise` added."""
        latents = self.encoder(chunks)
        return self.decoder(latents + noise * torch.randn_like(latents))


class LearnedCodec(Codec):
    """A trained ChunkAutoencoder behind the codec interface."""

    reach = 0

    def __init__(self, network: ChunkAutoencoder, device: torch.device | str = "cpu") -> None:
        super().__init__(device)
        self.network = network.to(self.device).eval()

    def encode_group(self, video: Tensor) -> Tensor:
        chunks = video_to_chunks(video)
        latents = self.network.encoder(chunks.flatten(0, 1))
        return latents.unflatten(0, chunks.shape[:2]).transpose(1, 2)

    def decode_group(self, latents: Tensor) -> Tensor:
        latents = latents.transpose(1, 2)
        chunks = self.network.decoder(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])
        frames = chunks.unflatten(2, (3, TEMPORAL_FACTOR)).permute(0, 2, 1, 3, 4, 5)
        return torch.cat([frames[:, :, 0].mean(2, keepdim=True), frames[:, :, 1:].flatten(2, 3)], dim=2)

    def save(self, path: str | Path) -> None:
        """Write weights and width as one safetensors file, atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"format": FORMAT, "hyper_parameters": json.dumps({"width": self.network.width})}
        temporary = path.with_name(path.name + ".tmp")
        state = {name: value.contiguous() for name, value in self.network.state_dict().items()}
        temporary.write_bytes(save(state, metadata))  # save_file would close the file to other users
        temporary.replace(path)

    @staticmethod
    def load(path: str | Path, device: torch.device | str = "cpu") -> LearnedCodec:
        """Read what `save` wrote. Raises ValueError when the file is missing, damaged or of another kind."""
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such codec; train one with tools/train_codec.py --out {path}")
        try:
            check_size(Path(path), MAX_BYTES)
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path}: not a readable safetensors file ({error}); train the codec again"
            ) from None
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path}: not a {FORMAT} file; train one with tools/train_codec.py")
        with torch.device("meta"):
            network = ChunkAutoencoder(_width(metadata, state, Path(path)))
        found = take(state, network.state_dict(), Path(path))
        found = {name: value.float() if value.is_floating_point() else value for name, value in found.items()}
        if (found["encoder.6.running_var"] < 0).any():
            raise ValueError(f"{path}: 'encoder.6.running_var' is below zero; train the codec again")
        network.load_state_dict(found, assign=True)
        return LearnedCodec(network, device)


def _width(metadata: dict[str, str], state: dict[str, Tensor], path: Path) -> int:
    """The width that the metadata name, when the weights have it too: a claim alone allocates nothing."""
    try:
        width = parse_json(metadata.get("hyper_parameters", ""))["width"]
    except (ValueError, TypeError, KeyError):
        width = None
    first = state.get("encoder.1.weight")
    if (
        type(width) is not int
        or first is None
        or first.ndim == 0
        or first.shape[0] != width
        or not 0 < width <= MAX_WIDTH
    ):
        raise ValueError(
            f"{path}: 'hyper_parameters' of its metadata must be {{\"width\": N}}, N the number of rows of "
            f"'encoder.1.weight' and at most {MAX_WIDTH}; train the codec again"
        )
    return width


def video_to_chunks(video: Tensor) -> Tensor:
    """One group [B, 3, 1 + 4k, H, W] as chunks [B, 1 + k, 12, H, W], the first frame repeated four times."""
    first = video[:, :, :1].expand(-1, -1, TEMPORAL_FACTOR, -1, -1)
    frames = torch.cat([first, video[:, :, 1:]], dim=2).unflatten(2, (-1, TEMPORAL_FACTOR))
    return frames.transpose(1, 2).flatten(2, 3)
