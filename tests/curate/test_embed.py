"""Embedders give unit vectors, the same each time; local models load without a network or are refused."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("cv2", reason="OpenCV is not installed")

from megatv.curate import embed
from megatv.curate.settings import EmbedSettings
from megatv.data.video import write_video

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 48, 80, 3), dtype=np.uint8)
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PICTURE = {"image_size": 32, "patch_size": 16}


def unit(vectors):
    return vectors.dtype == np.float32 and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_the_default_tells_colours_edges_and_places_apart():
    grey = np.full((32, 32, 3), 128, np.uint8)
    red = grey.copy()
    red[..., 1:] = 0
    left, right = grey.copy(), grey.copy()
    left[:, :16], right[:, 16:] = 0, 0
    stripes, beams = grey.copy(), grey.copy()
    stripes[:, ::4], beams[::4] = 140, 140
    vectors = embed.colour_gradient_histogram(np.stack([grey, red, left, right, stripes, beams]))
    assert unit(vectors)
    similar = vectors @ vectors.T
    assert np.all(similar >= 0)
    assert np.all(similar[~np.eye(6, dtype=bool)] < 0.9)
    assert np.array_equal(vectors[:2], embed.colour_gradient_histogram(np.stack([grey, red])))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Random tiny models with their preprocessing, saved as transformers saves them."""
    transformers = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("models")
    vit = transformers.ViTConfig(**TINY, **PICTURE)
    clip = transformers.CLIPConfig(
        text_config={**TINY, "vocab_size": 50}, vision_config={**TINY, **PICTURE}, projection_dim=12
    )
    dino = transformers.Dinov2Config(**{**TINY, "mlp_ratio": 2}, **PICTURE)
    for name, model in {
        "clip": transformers.CLIPModel(clip),
        "clip_vision": transformers.CLIPVisionModelWithProjection(clip.vision_config),
        "dinov2": transformers.Dinov2Model(dino),
        "vit": transformers.ViTModel(vit),
        "classifier": transformers.ViTForImageClassification(vit),
    }.items():
        model.save_pretrained(root / name)
        is_clip = name.startswith("clip")
        kind = transformers.CLIPImageProcessor if is_clip else transformers.ViTImageProcessor
        size = {"size": {"shortest_edge": 32}, "crop_size": 32} if is_clip else {"size": 32}
        kind(**size).save_pretrained(root / name)
    return root


@pytest.mark.parametrize(
    ("name", "width"), [("clip", 12), ("clip_vision", 16), ("dinov2", 16), ("vit", 16), ("classifier", 16)]
)
def test_a_local_model_embeds(models, name, width):
    """A classifier has no pooler: the one that transformers makes up at random must not be used."""
    settings = EmbedSettings(model=str(models / name))
    vectors = embed.load_embedder(settings)(FRAMES)
    assert vectors.shape == (5, width) and unit(vectors)
    again = embed.load_embedder(settings)(FRAMES[2:4])
    assert np.allclose(again, vectors[2:4], atol=1e-5)


def test_image_features_are_those_of_the_model(models):
    import torch
    from transformers import CLIPImageProcessor, CLIPModel

    model = CLIPModel.from_pretrained(models / "clip").eval()
    pixels = CLIPImageProcessor.from_pretrained(models / "clip")(list(FRAMES), return_tensors="pt")
    with torch.no_grad():
        expected = model.get_image_features(**pixels).numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(
        embed.load_embedder(EmbedSettings(model=str(models / "clip")))(FRAMES), expected, atol=1e-5
    )


def test_a_directory_that_is_no_model_is_refused(tmp_path, models):
    with pytest.raises(ValueError, match="is no directory: name a local model directory"):
        embed.load_embedder(EmbedSettings(model="facebook/some-model"))
    with pytest.raises(ValueError, match=r"does not load .*preprocessor_config.json"):
        embed.load_embedder(EmbedSettings(model=str(tmp_path)))


def test_the_folder_of_another_library_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is in open_clip's format.*convert"):
        embed.load_embedder(EmbedSettings(model=str(tmp_path)))
    if importlib.util.find_spec("timm") is None:
        (tmp_path / "config.json").write_text('{"architecture": "vit_pe", "pretrained_cfg": {}}')
        with pytest.raises(ValueError, match=r"a model of timm's: `pip install --no-deps timm"):
            embed.load_embedder(EmbedSettings(model=str(tmp_path)))


def test_a_folder_of_open_clips_is_embedded(tmp_path):
    open_clip = pytest.importorskip("open_clip", reason="open_clip and torchvision are not installed")
    from safetensors.torch import save_model

    vision = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.CLIP(16, vision, text).eval()
    described = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": described, "preprocess_cfg": preprocess})
    )
    save_model(model, str(tmp_path / "open_clip_model.safetensors"))
    frames = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)
    vectors = embed.load_embedder(EmbedSettings(model=str(tmp_path)))(frames)
    pixels = (torch.from_numpy(frames).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    expected = torch.nn.functional.normalize(model.encode_image(pixels), dim=1)
    np.testing.assert_allclose(vectors, expected.detach(), atol=1e-5)


def test_lost_weights_are_refused(tmp_path, models):
    from safetensors.numpy import load_file, save_file

    for file in (models / "vit").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.0.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"describes encoder.layer.0.* which the safetensors do not have"):
        embed.load_embedder(EmbedSettings(model=str(tmp_path)))


def test_a_span_of_a_video_is_embedded_at_its_times(tmp_path):
    path = Path(tmp_path) / "grows.mp4"
    write_video(path, np.repeat(np.arange(0, 240, 5, dtype=np.uint8), 64 * 64 * 3).reshape(48, 64, 64, 3))
    settings = EmbedSettings(frames_per_second=4, batch_frames=3, width_pixels=64, height_pixels=64)
    sizes = []

    def brightness(frames):
        sizes.append(len(frames))
        return frames.mean(axis=(1, 2, 3), dtype=np.float32)[:, None]

    times, vectors = embed.embed_span(path, (0.5, 2.5), brightness, settings)
    assert times.tolist() == [0.5 + k / 4 for k in range(8)]
    assert sizes == [3, 3, 2]
    assert np.allclose(vectors[:, 0], 5 * 16 * times, atol=8)
