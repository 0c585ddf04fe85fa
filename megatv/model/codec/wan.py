"""Wan2.1's video VAE from a local diffusers folder (`AutoencoderKLWan`, Apache-2.0).

Same geometry: 4 x 8 x 8, 16 channels, causal, first frame alone. Wan itself codes a video without restarts;
here every 49-frame group is coded by itself, as by the other codecs, and the posterior's mode is taken, so
coding is deterministic. Latents stay raw: megatv normalises with its own statistics, not with Wan's
`latents_mean`. diffusers gives the network only: settings and weights are read here, as data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatv.config import LATENT_CHANNELS, SPATIAL_FACTOR, TEMPORAL_FACTOR
from megatv.model.codec.base import Codec
from megatv.regular_file import read_bytes
from megatv.untrusted import parse_json
from megatv.weights import read_tensors, take

WEIGHTS = "diffusion_pytorch_model.safetensors"
SIZES: dict[str, tuple[int | None, int]] = {
    "base_dim": (96, 1024),
    "decoder_base_dim": (None, 1024),
    "num_res_blocks": (2, 8),
}
"""Settings that may differ: default of diffusers, and the most that is built."""
HALVINGS: dict[str, tuple[list[Any], tuple[Any, ...]]] = {
    "dim_mult": ([1, 2, 4, 4], tuple(range(1, 17))),
    "temperal_downsample": ([False, True, True], (False, True)),
}
"""Widths of the levels, and which of the three halvings of rows and columns halve time too: default of
diffusers, and what each entry may be."""


class WanCodec(Codec):
    """`path` holds `config.json` and the safetensors; bf16 on a GPU, fp32 on CPU.

    Raises ValueError when diffusers is missing, the folder does not load or the geometry is another one.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        super().__init__(device)
        try:
            from diffusers import AutoencoderKLWan
        except ImportError:
            raise ValueError(
                "codec.kind wan needs diffusers: `pip install --no-deps --require-hashes --only-binary :all: "
                "-r launch/lock/data.txt`"
            ) from None
        settings = _settings(Path(path))
        self.dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        with torch.device("meta"):
            vae = AutoencoderKLWan(**settings)
        file = Path(path) / WEIGHTS
        vae.load_state_dict(take(read_tensors(file), vae.state_dict(), file), assign=True)
        self.vae = vae.to(self.device, self.dtype).eval().requires_grad_(False)

    def encode_group(self, video: Tensor) -> Tensor:
        return self.vae.encode(video.to(self.dtype)).latent_dist.mode()

    def decode_group(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents.to(self.dtype)).sample


def _settings(folder: Path) -> dict[str, Any]:
    """The settings of the network in `config.json`. Raises ValueError when they are those of another."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder}: no config.json; give a diffusers folder of AutoencoderKLWan")
    try:
        config = parse_json(read_bytes(file, links=True))
    except ValueError as error:
        raise ValueError(
            f"{file}: is no JSON ({error}); give a diffusers folder of AutoencoderKLWan"
        ) from None
    if not isinstance(config, dict) or config.get("_class_name", "AutoencoderKLWan") != "AutoencoderKLWan":
        raise ValueError(f"{file}: is not of AutoencoderKLWan; give a diffusers folder of it")
    settings: dict[str, Any] = {name: config.get(name, default) for name, (default, _) in SIZES.items()}
    for name, value in settings.items():
        most = SIZES[name][1]
        if value != SIZES[name][0] and not (type(value) is int and 1 <= value <= most):
            raise ValueError(f"{file}: {name} is {repr(value)[:80]}; it must be a number from 1 to {most}")
    for name, (default, allowed) in HALVINGS.items():
        value = settings[name] = config.get(name, default)
        entries = value if isinstance(value, list) else []
        sound = all(type(entry) is type(allowed[0]) and entry in allowed for entry in entries)
        if len(entries) != len(default) or not sound:
            raise ValueError(f"{file}: {name} is {repr(value)[:80]}; it must be a list like {default}")
    channels, needed = config.get("z_dim", 16), (TEMPORAL_FACTOR, SPATIAL_FACTOR, LATENT_CHANNELS)
    time, space = (2 ** sum(settings["temperal_downsample"]), 2 ** (len(settings["dim_mult"]) - 1))
    if (time, space, channels) != needed:
        found = repr((time, space, channels))[:80]
        raise ValueError(f"{file}: codes (frames, pixels, channels) = {found}, megatv needs {needed}")
    return settings
