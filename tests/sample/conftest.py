"""A tiny random model and everything else that a sampler needs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from megatv.checkpoint import store
from megatv.config import CodecConfig, DataConfig, TokenizerConfig, config_to_dict, load_config, save_config
from megatv.data.shards import DatasetInfo, ShardWriter
from megatv.data.stats import LatentStats
from megatv.data.tokenizer import load_tokenizer
from megatv.model.codec import load_codec
from megatv.model.mot import MoT
from megatv.sample.sampler import Sampler
from megatv.types import Caption

TOY = load_config(Path(__file__).parents[2] / "configs/toy_world.yaml")


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What commands add to the launcher's environment is not the next test's."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


class Letters:
    """A token is a letter, so that what the model says encodes back to the same tokens."""

    words = "abcdefghij .\n"
    bos, eos, bof, eof = range(len(words), len(words) + 4)
    vocab_size = len(words) + 4

    def encode(self, text: str) -> list[int]:
        return [self.words.index(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.words[i] for i in ids)


@pytest.fixture(scope="session")
def make_sampler() -> Callable[..., Sampler]:
    return _make_sampler


def _make_sampler(
    mode="tv2tv",
    groups=1,
    text_rows=90,
    bof_bias=1.2,
    newline_bias=0.0,
    eos=False,
    tokenizer=None,
    dtype=torch.float32,
    device="cpu",
    **sequence,
) -> Sampler:
    """2 tokens a chunk, two layers, two query heads to a key head; it says BOF more often than any letter.

    `eos`: whether it may end a sequence of its own accord.
    """
    tokenizer = tokenizer or Letters()
    config = dataclasses.replace(
        TOY,
        video=dataclasses.replace(TOY.video, width=32, height=16, groups=groups),
        codec=CodecConfig("dct"),
        sequence=dataclasses.replace(
            TOY.sequence,
            mode=mode,
            examples_per_row=1,
            context_tokens=2 * 13 * groups * 2 + text_rows,
            clean_flip=0.0,
            **sequence,
        ),
        model=dataclasses.replace(
            TOY.model,
            layers=2,
            width=32,
            ffn=48,
            kv_heads=2,
            vocab=max(20, tokenizer.vocab_size),
            unet_channels=(16, 32),
        ),
        sample=dataclasses.replace(TOY.sample, steps=2, temperature=1.0),
    )
    torch.manual_seed(0)
    model = MoT(config).to(dtype).requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.15)
    head = model.head.text
    bias = torch.zeros(config.model.vocab)
    bias[tokenizer.bof] = bof_bias
    bias[tokenizer.encode("\n")] = newline_bias
    bias[tokenizer.eos] = 0.0 if eos else -torch.inf
    model, bias = model.to(device), bias.to(device)
    head.register_forward_hook(lambda _module, _args, logits: logits + bias.to(logits))
    # of first latents and of the rest, unlike each other: one taken for the other must show
    mean, std = (np.repeat(np.array(rows, np.float32)[:, None], 16, 1) for rows in ((0.1, -0.4), (0.7, 1.1)))
    stats = LatentStats(mean, std)
    return Sampler(model, config, tokenizer, load_codec(config.codec, device), stats)


@pytest.fixture(scope="session")
def run_dir(make_sampler, tmp_path_factory) -> Path:
    """A run with one checkpoint of a tiny random model, a real tokenizer and two held-out examples."""
    root = tmp_path_factory.mktemp("run")
    sampler = make_sampler(bof_bias=0.0)
    info = DatasetInfo(width=32, height=16, groups=1, codec={"kind": "dct"})
    rng = np.random.default_rng(0)
    with ShardWriter(root / "val", info) as writer:
        for i in range(2):
            writer.write(
                f"example-{i}",
                rng.standard_normal((13, 16, 2, 4)).astype(np.float32),
                captions=(Caption(0.0, "(s). 0, 0, 0, 0."),),
                meta_caption="A player jumps and shoots among pillars.",
                detailed_caption="",
                valid_latents=13,
                ends_clip=False,
                source={},
            )
        writer.finish(sampler.stats)
    tokenizer = load_tokenizer("toy_world")
    config = dataclasses.replace(
        sampler.config,
        data=DataConfig(train="nowhere", val=str(root / "val")),
        tokenizer=TokenizerConfig("toy_world"),
        model=dataclasses.replace(sampler.config.model, vocab=tokenizer.vocab_size),
    )
    torch.manual_seed(1)
    model = MoT(config)
    weights = {name: torch.randn(p.shape) * 0.15 for name, p in model.named_parameters()}
    final = store.checkpoint_dir(root, 7)
    temporary = store.begin(final)
    name = store.part_name("model", 0, 1)
    shapes = {key: tuple(weight.shape) for key, weight in weights.items()}
    files = {name: store.write_tensors(temporary / name, shapes, weights.values())}
    meta = {"step": 7, "config": config_to_dict(config), "latent_stats": sampler.stats.to_dict()}
    store.commit(temporary, final, meta, files)
    save_config(config, root / "config.yaml")
    return root
