"""FVD (Unterthiner et al. 2018): the Frechet distance between two sets of videos in the features of an I3D.

The I3D is a TorchScript file, called with one video float32 [1, 3, F, 224, 224] in [-1, 1]: the widespread
`i3d_torchscript.pt`, known by its SHA-256, or another that the user trusts: TorchScript can run any code.
Published figures use thousands of videos of 16 frames and the logits of a network trained on Kinetics-400:
compare only figures from the same file, the same number of videos and the same length.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from megatv.eval.bootstrap import Estimate, estimate
from megatv.eval.frechet import frechet_distance
from megatv.eval.local_weights import REFUSALS, TRUST, last_line
from megatv.eval.lpips import pictures
from megatv.weights import Published, is_torchscript, load_torchscript

Features = Callable[[np.ndarray], np.ndarray]
"""A video, uint8 [F, H, W, 3], to its features float64 [D]."""
SIZE = 224
DRAWS = 100
"""Of the bootstrap: each takes the roots of two covariances."""
I3D = Published(sha256="bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2")
"""`i3d_torchscript.pt`, 51,235,320 bytes, of StyleGAN-V's and many later evaluations (Hugging Face:
flateon/FVD-I3D-torchscript)."""
SWITCHES = {"rescale": False, "resize": False, "return_features": True}
"""Arguments that a widespread I3D file has: no scaling of its own, and logits, not probabilities."""


def load_i3d(file: Path | None, device: str = "cpu", *, trust: bool = False) -> Features:
    """The features that a file of weights defines. ValueError when it is absent or of another kind.

    trust  run a TorchScript file other than the published one (`--trust-weights`)
    """
    if file is None:
        raise ValueError(
            "fvd needs weights and nothing is downloaded: give --i3d FILE, the TorchScript of an I3D that "
            f"takes a video [1, 3, frames, {SIZE}, {SIZE}] in [-1, 1]"
        )
    if not file.is_file():
        raise ValueError(f"--i3d {file}: is no file; nothing is downloaded, so give a local one")
    if not is_torchscript(file):
        raise ValueError(f"--i3d {file}: is no TorchScript; give a file that torch.jit.save wrote")
    network: Any = load_torchscript(file, device, I3D, trust=trust, option=TRUST)
    known = {argument.name for argument in network.forward.schema.arguments}
    switches = {name: value for name, value in SWITCHES.items() if name in known}

    @torch.inference_mode()
    def features(frames: np.ndarray) -> np.ndarray:
        x = F.interpolate(pictures(frames, device), (SIZE, SIZE), mode="bilinear", align_corners=False)
        video = x.transpose(0, 1)[None]
        try:
            found = network(video, **switches).double().cpu().numpy()
        except REFUSALS as error:
            raise ValueError(
                f"--i3d {file}: cannot read a video {tuple(video.shape)}, float32 in [-1, 1] "
                f"({last_line(error)}); give an I3D's TorchScript, or longer videos"
            ) from None
        if found.ndim != 2 or len(found) != 1 or not np.isfinite(found).all():
            raise ValueError(f"--i3d {file}: answers {found.shape} for one video; it must be [1, features]")
        return found[0]

    return features


def fvd(ours: np.ndarray, theirs: np.ndarray) -> Estimate:
    """FVD of features [V, D] of videos and of their references, and its interval over pairs of videos."""
    if len(ours) < 2:
        raise ValueError("fvd compares sets: give at least 2 videos, better hundreds")
    return estimate(
        lambda rows: frechet_distance(ours[rows], theirs[rows]), len(ours), draws=DRAWS, basic=True
    )
