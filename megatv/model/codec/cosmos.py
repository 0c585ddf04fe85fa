"""Cosmos-Tokenize1-CV4x8x8-360p from its TorchScript files, the codec that TV2TV used.

Facts from NVIDIA's cosmos-predict1 (`cosmos_predict1/tokenizer`): an autoencoder without a KL term, so
nothing is sampled; input [B, 3, T, H, W] in [-1, 1], bf16; `encoder(x)` returns a tuple whose first entry
is the latent; first frame alone; trained on 49-frame clips. The user brings the weights (NVIDIA Open Model
License).
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import torch
from torch import Tensor

from megatv.config import LATENT_CHANNELS, SPATIAL_FACTOR, TEMPORAL_FACTOR
from megatv.model.codec.base import Codec

log = logging.getLogger(__name__)

MD5 = {
    "encoder.jit": "fe3a7193defcb2db0b849b6df480b5e6",
    "decoder.jit": "7573744ec14cb1b2abdf9c80318b7224",
}
"""cosmos-predict1 `scripts/download_tokenizer_checkpoints.py`, entry CV4x8x8-360p."""


class CosmosCodec(Codec):
    """`path` holds `encoder.jit` and `decoder.jit`; bf16 on a GPU, fp32 on CPU unless `dtype` says otherwise.

    Raises ValueError when a file is missing, is not TorchScript or does not code 4 x 8 x 8 into 16 channels.
    """

    def __init__(
        self, path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(device)
        self.dtype = dtype or (torch.float32 if self.device.type == "cpu" else torch.bfloat16)
        self.encoder = self._load(Path(path) / "encoder.jit")
        self.decoder = self._load(Path(path) / "decoder.jit")
        self._try_out(Path(path))

    def encode_group(self, video: Tensor) -> Tensor:
        return self.encoder(video.to(self.dtype))[0]

    def decode_group(self, latents: Tensor) -> Tensor:
        return self.decoder(latents.to(self.dtype))

    def _load(self, file: Path) -> torch.jit.ScriptModule:
        if not file.is_file():
            raise ValueError(
                f"{file}: not found; codec.path must be a folder with encoder.jit and decoder.jit of "
                "Cosmos-Tokenize1-CV4x8x8-360p"
            )
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "md5").hexdigest()
        if digest != MD5[file.name]:
            log.warning("%s: md5 %s is not that of Cosmos-Tokenize1-CV4x8x8-360p", file, digest)
        try:
            module = torch.jit.load(str(file), map_location=self.device)
        except RuntimeError as error:
            raise ValueError(f"{file}: not a TorchScript file ({str(error).splitlines()[0]})") from None
        return module.eval().to(self.dtype)

    @torch.no_grad()
    def _try_out(self, path: Path) -> None:
        """Code five grey 64 x 64 frames: two latents must come out and five frames come back."""
        side, frames = 64, 1 + TEMPORAL_FACTOR
        latent = (1, LATENT_CHANNELS, 2, side // SPATIAL_FACTOR, side // SPATIAL_FACTOR)
        video = torch.zeros(1, 3, frames, side, side, device=self.device)
        try:
            latents = self.encode_group(video)
            shapes = tuple(latents.shape), tuple(self.decode_group(latents).shape)
        except (RuntimeError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"{path}: cannot code a video: {str(error).strip().splitlines()[-1]}") from None
        if shapes != (latent, tuple(video.shape)):
            raise ValueError(
                f"{path}: {list(video.shape)} became {list(shapes[0])} and {list(shapes[1])}, expected "
                f"{list(latent)} and {list(video.shape)}; give the CV4x8x8 tokenizer"
            )
