"""Frames to unit vectors whose cosine distance tells how much the picture changed (TV2TV section 4.1).

TV2TV uses the Perception Encoder; any image model in a local directory will do here. transformers opens its
own and, where timm is installed, timm's (the Perception Encoder is one of them: vit_pe_core_*); open_clip, if
installed, opens its own. Nothing is downloaded, and no code or pickle of the directory is run: weights are
safetensors, settings are checked first (`megatv.curate.model_folder`). The default embedder needs no weights
and is named for what it is: it sees colours and edges, not meaning.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from PIL import Image

from megatv.curate.model_folder import check_open_clip_folder, check_transformers_folder
from megatv.curate.model_weights import check_weights
from megatv.curate.settings import EmbedSettings, Span
from megatv.data.video import iterate_video
from megatv.regular_file import read_bytes

GRID = 4
COLOUR_BINS = 4
GRADIENT_BINS = 8
HISTOGRAM = "colour-gradient-histogram"
OPEN_CLIP = "open_clip_config.json"
"""By this file, where no config.json lies beside it, a directory is known to be open_clip's."""


class Embedder(Protocol):
    """Anything that turns frames uint8 [N, H, W, 3] (RGB) into unit vectors float32 [N, D]."""

    def __call__(self, frames: np.ndarray) -> np.ndarray: ...


def load_embedder(settings: EmbedSettings) -> Embedder:
    """The embedder that `settings.model` names; load it once a process.

    Raises ValueError when the directory is missing, holds no image model, or lacks weights.
    """
    if settings.model == HISTOGRAM:
        return colour_gradient_histogram
    if (Path(settings.model) / OPEN_CLIP).is_file() and not (Path(settings.model) / "config.json").is_file():
        return OpenClipEmbedder(settings.model, settings.device)
    return ModelEmbedder(settings.model, settings.device)


def embed_span(
    source: str | Path | bytes, span: Span, embedder: Embedder, settings: EmbedSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Times float64 [N] (seconds of the video) and unit vectors float32 [N, D] of the frames of a shot.

    Frames are taken from the span's start on, `frames_per_second` of them a second, `batch_frames` at once.
    """
    start, end = span
    fps = settings.frames_per_second
    count = max(1, int(np.ceil((end - start) * fps - 1e-6)))
    frames = iterate_video(
        source, width=settings.width_pixels, height=settings.height_pixels, start_seconds=start, fps=fps
    )
    parts = [embedder(batch) for batch in _batches(itertools.islice(frames, count), settings.batch_frames)]
    vectors = np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
    return start + np.arange(len(vectors)) / fps, vectors


def colour_gradient_histogram(frames: np.ndarray) -> np.ndarray:
    """float32 [N, 4 * 4 * (64 + 8)]: colours and edge directions in each cell of a 4 x 4 grid.

    frames: uint8 [N, H, W, 3] (RGB). A frame's colour histograms (4 x 4 x 4 bins of Lab) together sum to one
    half, and so do its gradient histograms (8 directions, weighted by magnitude); a picture without edges has
    equal gradients everywhere. The vector is their square root: a unit vector, and the cosine of two is the
    Bhattacharyya coefficient.
    """
    return np.stack([_histogram(frame) for frame in frames])


class ModelEmbedder:
    """An image model from a local directory, with the preprocessing that the directory describes.

    Image features of two-tower models (CLIP, SigLIP), else the pooled output, else the mean over patches.
    """

    def __init__(self, directory: str, device: str = "cpu") -> None:
        if not Path(directory).is_dir():
            raise ValueError(
                f"embed.model '{directory}' is no directory: name a local model directory, or {HISTOGRAM}"
            )
        _refuse_timm_without_timm(Path(directory))
        try:
            files = check_transformers_folder(Path(directory))
            self.processor, model, report = _open_with_transformers(directory, files)
        except Exception as error:  # wrong settings can make transformers raise anything
            raise ValueError(
                f"embed.model '{directory}' does not load ({_first_line(error)}): it needs config.json, "
                "preprocessor_config.json and the weights of an image model as safetensors"
            ) from error
        # A classifier's checkpoint has no pooler: transformers makes one up at random, differently each time.
        missing = set(report["missing_keys"])
        self.pooled = not any("pooler" in key for key in missing)
        if lost := sorted(key for key in missing if "pooler" not in key):
            raise ValueError(f"embed.model '{directory}' lacks weights, such as {lost[0]}: copy it again")
        self.model: Any = model.eval().to(device)
        self.device = device

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Unit vectors float32 [N, D] of frames uint8 [N, H, W, 3]."""
        pixels = self.processor(images=list(frames), return_tensors="pt")["pixel_values"].to(self.device)
        if hasattr(self.model, "get_image_features"):
            features = self.model.get_image_features(pixel_values=pixels)
        else:
            output = self.model(pixel_values=pixels)
            pooled = getattr(output, "pooler_output", None) if self.pooled else None
            features = output.last_hidden_state.mean(dim=1) if pooled is None else pooled
        features = features.flatten(1).float()  # some convolutional models pool to [N, D, 1, 1]
        return torch.nn.functional.normalize(features, dim=1).cpu().numpy()


class OpenClipEmbedder:
    """The image tower of a model in open_clip's format: open_clip_config.json and open_clip's weights."""

    def __init__(self, directory: str, device: str = "cpu") -> None:
        try:
            check_open_clip_folder(Path(directory))
            import open_clip

            model, self.preprocess = open_clip.create_model_from_pretrained(
                f"local-dir:{directory}", device=device, weights_only=True
            )
        except Exception as error:  # wrong settings can make open_clip raise anything
            raise ValueError(
                f"embed.model '{directory}' is in open_clip's format and does not load "
                f"({_first_line(error)}): `pip install --no-deps open_clip_torch timm ftfy wcwidth "
                "torchvision`, in versions that fit torch; or convert it with transformers' "
                "convert_clip_original_pytorch_to_hf.py"
            ) from error
        self.model: Any = model.eval()
        self.device = device

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Unit vectors float32 [N, D] of frames uint8 [N, H, W, 3]."""
        pixels = torch.stack([self.preprocess(Image.fromarray(frame)) for frame in frames]).to(self.device)
        return self.model.encode_image(pixels, normalize=True).float().cpu().numpy()


def _open_with_transformers(directory: str, files: list[Path]) -> tuple[Any, Any, dict[str, Any]]:
    """Preprocessor, model and what its files lacked, of the folder's settings and these safetensors alone."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    own: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    processor = AutoImageProcessor.from_pretrained(directory, use_fast=False, **own)
    config = AutoConfig.from_pretrained(directory, **own)
    if config.model_type != "timm_wrapper":  # whose architecture has a name, and its size with it
        with torch.device("meta"):
            described = AutoModel.from_config(config)
        check_weights(files, described, described.base_model_prefix)
    model, report = AutoModel.from_pretrained(
        directory, config=config, use_safetensors=True, output_loading_info=True, **own
    )
    return processor, model, report


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _refuse_timm_without_timm(directory: Path) -> None:
    """ValueError with the way out for a folder of timm's, of which transformers says little without it."""
    config = directory / "config.json"
    if config.is_file() and b'"pretrained_cfg"' in read_bytes(config, links=True):
        lacking = [name for name in ("timm", "torchvision") if importlib.util.find_spec(name) is None]
        if lacking:
            raise ValueError(
                f"embed.model '{directory}' is a model of timm's: `pip install --no-deps "
                f"{' '.join(lacking)}`, in versions that fit torch"
            )


def _batches(frames: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    while batch := list(itertools.islice(frames, size)):
        yield np.stack(batch)


def _histogram(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    rows = np.arange(height) * GRID // height
    columns = np.arange(width) * GRID // width
    cell = rows[:, None] * GRID + columns
    lab = cv2.cvtColor(frame, cv2.COLOR_RGB2LAB).astype(np.int64) * COLOUR_BINS // 256
    colour = (lab[..., 0] * COLOUR_BINS + lab[..., 1]) * COLOUR_BINS + lab[..., 2]
    colours = np.bincount((cell * COLOUR_BINS**3 + colour).ravel(), minlength=GRID**2 * COLOUR_BINS**3)

    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    dx = cv2.Sobel(grey, cv2.CV_32F, 1, 0)
    dy = cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    magnitude, angle = cv2.cartToPolar(dx, dy)
    direction = (angle * (GRADIENT_BINS / (2 * np.pi))).astype(np.int64) % GRADIENT_BINS
    size = GRID**2 * GRADIENT_BINS
    edges: np.ndarray = cell * GRADIENT_BINS + direction
    gradients: np.ndarray = np.bincount(edges.ravel(), magnitude.ravel(), size)
    if not gradients.any():
        gradients = np.ones(size, gradients.dtype)
    halves = np.concatenate([colours / colours.sum(), gradients / gradients.sum()]) / 2
    return np.sqrt(halves).astype(np.float32)
