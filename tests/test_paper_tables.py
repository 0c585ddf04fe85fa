"""The big configurations against tables 6 and 7 of TV2TV, typed from the paper row by row."""

from pathlib import Path

import pytest
import torch

from megatv.config import RopeScaling, load_config
from megatv.model.cost import parameter_counts
from megatv.model.mot import MoT

CONFIGS = Path(__file__).parents[1] / "configs"

TABLE_6 = {
    "Layers": 28,
    "Model Dimension": 3072,
    "FFN Dimension": 8192,
    "Attention Heads": 24,
    "Key/Value Heads": 8,
    "Activation Function": "SwiGLU",
    "Vocabulary Size": "128K",
    "Positional Embeddings - Interleaved Sequence": "1D RoPE",
    "Positional Embeddings - Video Only": "2D APE",
    "Training Steps": "50K",
    "Batch Size": 128,
    "Learning rate": 3e-4,
    "Max Context Length": 15360,
    "Tokens per Frame Chunk": 240,
    "Timestep t": "logistic(N(0, 1.96))",
    "Text Dropout Rate": 0,
    "Clean Video Flip Rate": 0.5,
    "Text Sampling Temperature": 0.7,
    "ODE Sampler": "Euler",
    "ODE Sampling Steps": 50,
}
TABLE_7 = {
    "Layers": 32,
    "Model Dimension": 4096,
    "FFN Dimension": 14336,
    "Attention Heads": 32,
    "Key/Value Heads": 8,
    "Activation Function": "SwiGLU",
    "Vocabulary Size": "128K",
    "Positional Embeddings - Interleaved Sequence": "1D RoPE",
    "Positional Embeddings - Video Only": "2D APE",
    "Training Steps": "250K",
    "Batch Size": 512,
    "Learning rate": 3e-4,
    "Max Context Length": 13056,
    "Tokens per Frame Chunk": 240,
    "Timestep t": "logistic(N(0, 1.96))",
    "Text Dropout Rate": 0.05,
    "Clean Video Flip Rate": 0.2,
    "Text Sampling Temperature": 0.7,
    "ODE Sampler": "Euler",
    "ODE Sampling Steps": 50,
}
# Rows that no key holds: the code knows one kind only, and other tests check it (SwiGLU and RoPE by the
# logits of Llama, Euler by the sampler's).
FIXED = {"Activation Function", "Positional Embeddings - Interleaved Sequence", "ODE Sampler"}

RUNS = [("3b_csgo.yaml", TABLE_6), ("8b_sports.yaml", TABLE_7)]


def as_table(config):
    """The table's rows, read off a config and the model built from it."""
    seq, model, sample = config.sequence, config.model, config.sample
    with torch.device("meta"):
        position = dict(MoT(config).named_parameters())["embed.position"]
    grid = (config.latent_height // 2, config.latent_width // 2)
    return {
        "Layers": model.layers,
        "Model Dimension": model.width,
        "FFN Dimension": model.ffn,
        "Attention Heads": model.heads,
        "Key/Value Heads": model.kv_heads,
        "Vocabulary Size": f"{model.vocab // 1000}K",
        "Positional Embeddings - Video Only": "2D APE" if position.numel() == 240 * model.width else grid,
        "Training Steps": f"{config.run.steps // 1000}K",
        "Batch Size": config.batch.examples,
        "Learning rate": config.optim.lr,
        "Max Context Length": seq.context_tokens,
        "Tokens per Frame Chunk": config.tokens_per_chunk,
        "Timestep t": f"logistic(N({seq.timestep_mean:g}, {seq.timestep_std**2:g}))",
        "Text Dropout Rate": seq.text_dropout,
        "Clean Video Flip Rate": seq.clean_flip,
        "Text Sampling Temperature": sample.temperature,
        "ODE Sampling Steps": sample.steps,
    }


@pytest.mark.parametrize(("file", "table"), RUNS)
def test_config_says_what_the_table_says(file, table):
    wanted = {row: value for row, value in table.items() if row not in FIXED}
    assert as_table(load_config(CONFIGS / file)) == wanted


@pytest.mark.parametrize(
    ("file", "factor", "tied"), [("3b_csgo.yaml", 32.0, True), ("8b_sports.yaml", 8.0, False)]
)
def test_towers_are_llama(file, factor, tied):
    """Llama-3.2-3B and Llama-3.1-8B: config.json of the released models."""
    model = load_config(CONFIGS / file).model
    assert model.rope_scaling == RopeScaling(factor, 1.0, 4.0, 8192)
    assert (model.rope_theta, model.norm_eps, model.vocab) == (500000.0, 1e-5, 128256)
    assert (model.tied_embeddings, model.head_dim) == (tied, 128)


@pytest.mark.parametrize("file", ["3b_csgo.yaml", "8b_sports.yaml"])
def test_geometry_and_training(file):
    """Sections 3.1 and 4.1: 320x192 at 16 fps, 98 frames in two groups of 49, bf16 on 8 GPUs or more."""
    config = load_config(CONFIGS / file)
    assert (config.video.width, config.video.height, config.latents) == (320, 192, 26)
    assert config.precision == "bf16"
    assert config.sequence.mode == "tv2tv"
    config.accumulation(8)


@pytest.mark.parametrize(
    ("file", "video_tower", "total"),
    [("3b_csgo.yaml", 2.819e9, 6.28e9), ("8b_sports.yaml", 6.980e9, 15.26e9)],
)
def test_sizes(file, video_tower, total):
    """Arithmetic on the tables: two equal towers, one vocabulary (two when untied), 0.25 B of U-Net."""
    counts = parameter_counts(load_config(CONFIGS / file))
    assert counts["video_tower"] == pytest.approx(video_tower, rel=1e-3)
    assert sum(counts.values()) == pytest.approx(total, rel=3e-3)
