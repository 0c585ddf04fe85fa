"""Cosmos-Tokenize1-CV4x8x8-360p, the codec that TV2TV used, from weights that the user brings.

An autoencoder without a KL term, so nothing is sampled; input [B, 3, T, H, W] in [-1, 1], bf16; first frame
alone; trained on 49-frame clips. NVIDIA publishes it (NVIDIA Open Model License) as `model.pt`, a training
state with the weights by name, and as TorchScript, `encoder.jit` and `decoder.jit`. The first is data and
runs in the network of this project; TorchScript is a program, and is loaded only when the user trusts it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from megatv.config import LATENT_CHANNELS, SPATIAL_FACTOR, TEMPORAL_FACTOR
from megatv.model.codec.base import Codec
from megatv.model.codec.cosmos_network import CosmosNetwork
from megatv.weights import Published, load_torchscript, read_tensors, take

WEIGHTS = ("model.safetensors", "model.pt")
"""Weights without code, the first that is there."""
TORCHSCRIPT = {
    "encoder.jit": Published(md5="fe3a7193defcb2db0b849b6df480b5e6"),
    "decoder.jit": Published(md5="7573744ec14cb1b2abdf9c80318b7224"),
}
"""cosmos-predict1 `scripts/download_tokenizer_checkpoints.py`, entry CV4x8x8-360p; no SHA-256 was found."""


class CosmosCodec(Codec):
    """`path` holds `model.safetensors`, `model.pt`, or with `trust` both TorchScript files.

    Runs in bf16 on a GPU and in fp32 on a CPU unless `dtype` says otherwise. Raises ValueError when a file is
    missing, holds something else, does not code 4 x 8 x 8 into 16 channels, or is TorchScript without trust.
    """

    def __init__(
        self,
        path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        *,
        trust: bool = False,
    ) -> None:
        super().__init__(device)
        self.dtype = dtype or (torch.float32 if self.device.type == "cpu" else torch.bfloat16)
        folder = Path(path)
        self._encode: Callable[[Tensor], Tensor]
        self._decode: Callable[[Tensor], Tensor]
        if weights := [folder / name for name in WEIGHTS if (folder / name).is_file()]:
            network = load_network(weights[0]).to(self.device, self.dtype)
            self._encode, self._decode = network.encode, network.decode
        else:
            encoder, decoder = (self._torchscript(folder / name, trust) for name in TORCHSCRIPT)
            self._encode, self._decode = lambda video: encoder(video)[0], decoder
        self._try_out(folder)

    def encode_group(self, video: Tensor) -> Tensor:
        return self._encode(video.to(self.dtype))

    def decode_group(self, latents: Tensor) -> Tensor:
        return self._decode(latents.to(self.dtype))

    def _torchscript(self, file: Path, trust: bool) -> torch.jit.ScriptModule:
        if not file.is_file():
            raise ValueError(
                f"{file}: not found; codec.path must be a folder with model.pt of "
                "Cosmos-Tokenize1-CV4x8x8-360p (or model.safetensors, or encoder.jit and decoder.jit)"
            )
        published = TORCHSCRIPT[file.name]
        module = load_torchscript(file, self.device, published, trust=trust, option="--trust-codec")
        return module.to(self.dtype)

    @torch.no_grad()
    def _try_out(self, path: Path) -> None:
        """Code five grey 64 x 64 frames: two latents must come out and five frames come back."""
        side, frames = 64, 1 + TEMPORAL_FACTOR
        latent = (1, LATENT_CHANNELS, 2, side // SPATIAL_FACTOR, side // SPATIAL_FACTOR)
        video = torch.zeros(1, 3, frames, side, side, device=self.device)
        try:
            latents = self.encode_group(video)
            decoded = self.decode_group(latents)
            shapes = tuple(latents.shape), tuple(decoded.shape)
        except (RuntimeError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"{path}: cannot code a video: {str(error).strip().splitlines()[-1]}") from None
        if shapes != (latent, tuple(video.shape)):
            raise ValueError(
                f"{path}: {list(video.shape)} became {list(shapes[0])} and {list(shapes[1])}, expected "
                f"{list(latent)} and {list(video.shape)}; give the CV4x8x8 tokenizer"
            )
        if not decoded.isfinite().all():
            raise ValueError(
                f"{path}: a grey video becomes numbers that are not finite; copy the weights again"
            )


def load_network(file: Path) -> CosmosNetwork:
    """The network with the weights of a file, on the CPU, in the file's own precision.

    Names are those of cosmos-predict1's module, bare or as its trainer writes them: below `model`, with
    `network.` before them, and the moving average, from which NVIDIA exports, as `ema.network-...`. To keep
    the weights alone: `safetensors.torch.save_file(load_network(FILE).state_dict(), "model.safetensors")`.
    Raises ValueError when the file holds other tensors.
    """
    state = read_tensors(file)
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    with torch.device("meta"):
        network = CosmosNetwork()
    wanted = network.state_dict()
    first = next(iter(wanted))
    for spell in (_average, "network.{}".format, "{}".format):
        if isinstance(state, dict) and spell(first) in state:
            break
    found = take(state, {spell(name): value for name, value in wanted.items()}, file)
    network.load_state_dict({name: found[spell(name)] for name in wanted}, assign=True)
    return network.eval().requires_grad_(False)


def _average(name: str) -> str:
    return "ema.network-" + name.replace(".", "-")
