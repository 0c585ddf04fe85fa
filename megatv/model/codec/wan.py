"""Wan2.1's video VAE from a local diffusers folder (`AutoencoderKLWan`, Apache-2.0).

Same geometry: 4 x 8 x 8, 16 channels, causal, first frame alone. Wan itself codes a video without restarts;
here every 49-frame group is coded by itself, as by the other codecs, and the posterior's mode is taken, so
coding is deterministic. Latents stay raw: megatv normalises with its own statistics, not with Wan's
`latents_mean`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from megatv.config import LATENT_CHANNELS, SPATIAL_FACTOR, TEMPORAL_FACTOR
from megatv.model.codec.base import Codec


class WanCodec(Codec):
    """`path` holds `config.json` and the safetensors; bf16 on a GPU, fp32 on CPU.

    Raises ValueError when diffusers is missing, the folder does not load or the geometry is another one.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        super().__init__(device)
        try:
            from diffusers import AutoencoderKLWan
        except ImportError:
            raise ValueError("codec.kind wan needs diffusers: pip install 'diffusers>=0.35'") from None
        if not (Path(path) / "config.json").is_file():
            raise ValueError(f"{path}: no config.json; give a diffusers folder of AutoencoderKLWan")
        self.dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        try:
            vae = AutoencoderKLWan.from_pretrained(
                path, torch_dtype=self.dtype, local_files_only=True, low_cpu_mem_usage=False
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{path}: not a diffusers AutoencoderKLWan ({str(error).splitlines()[0]})"
            ) from None
        self.vae = vae.to(self.device).eval()
        channels, needed = vae.config.z_dim, (TEMPORAL_FACTOR, SPATIAL_FACTOR, LATENT_CHANNELS)
        time, space = (2 ** sum(vae.config.temperal_downsample), 2 ** (len(vae.config.dim_mult) - 1))
        if (time, space, channels) != needed:
            raise ValueError(
                f"{path}: codes (frames, pixels, channels) = {(time, space, channels)}, megatv needs {needed}"
            )

    def encode_group(self, video: Tensor) -> Tensor:
        return self.vae.encode(video.to(self.dtype)).latent_dist.mode()

    def decode_group(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents.to(self.dtype)).sample
