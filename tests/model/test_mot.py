"""The model: its size, its packing, and its cached path against its training path."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from megatv_kernels import rotate

from megatv.config import LATENT_CHANNELS, Config, RopeScaling, load_config
from megatv.data.packing import pack
from megatv.data.sequence import build_sequence
from megatv.data.tokenizer import load_tokenizer
from megatv.model.init import initialize
from megatv.model.mot import MoT
from megatv.types import Caption, Example

TOY = load_config(Path(__file__).parents[2] / "configs/toy_world.yaml")
TOKENIZER = load_tokenizer("toy_world")


def small_config(examples_per_row=1, patch="unet", text=80) -> Config:
    """13 chunks of P = 2 tokens an example, two layers, two query heads to a key head."""
    return dataclasses.replace(
        TOY,
        video=dataclasses.replace(TOY.video, width=32, height=16),
        sequence=dataclasses.replace(
            TOY.sequence,
            examples_per_row=examples_per_row,
            context_tokens=examples_per_row * (2 * 13 * 2 + text),
        ),
        model=dataclasses.replace(
            TOY.model,
            layers=2,
            width=32,
            ffn=48,
            kv_heads=2,
            vocab=TOKENIZER.vocab_size,
            unet_channels=(16, 32),
            patch=patch,
            rope_scaling=RopeScaling(factor=8.0, original_context=64),
        ),
    )


def sequence(config, name, words, valid=13):
    rng = np.random.default_rng(len(name))
    shape = (config.latents, LATENT_CHANNELS, config.latent_height, config.latent_width)
    captions = tuple(Caption(i * 0.7, w) for i, w in enumerate(words))
    example = Example(name, rng.standard_normal(shape, np.float32), captions, "a game", "", valid, True)
    return build_sequence(example, TOKENIZER, config, seed=0, epoch=0, train=False)


def random_model(config):
    torch.manual_seed(0)
    model = MoT(config).double().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.15)
    return model


def paper_config(width, layers, ffn, heads, tied):
    return dataclasses.replace(
        TOY,
        video=dataclasses.replace(TOY.video, width=320, height=192, groups=2),
        sequence=dataclasses.replace(TOY.sequence, context_tokens=15_360, examples_per_row=1),
        model=dataclasses.replace(
            TOY.model,
            layers=layers,
            width=width,
            ffn=ffn,
            heads=heads,
            kv_heads=8,
            vocab=128_256,
            tied_embeddings=tied,
            unet_channels=(512, 1280),
        ),
    )


@pytest.mark.parametrize(
    ("sizes", "tower_billions", "total_billions", "unet"),
    [
        ((3072, 28, 8192, 24, True), 2.819, 6.03, 249_464_080),
        ((4096, 32, 14336, 32, False), 6.980, 15.01, 252_086_544),
    ],
    ids=["3B", "8B"],
)
def test_size_of_the_papers_models_on_the_meta_device(sizes, tower_billions, total_billions, unet):
    """A tower is its blocks; two towers and the vocabulary's tables make the 6.03 B and 15.01 B."""
    width, layers, ffn, heads, tied = sizes
    with torch.device("meta"):
        model = MoT(paper_config(*sizes))
    count = {name: p.numel() for name, p in model.named_parameters()}
    key_value = width // heads * 8
    block = 2 * width * width + 2 * width * key_value + 3 * width * ffn + 2 * width
    tables = (1 if tied else 2) * 128_256 * width
    for modality in ("text", "video"):
        tower = sum(n for name, n in count.items() if f".{modality}." in name and name.startswith("blocks."))
        assert tower == layers * block
        assert abs(tower / 1e9 - tower_billions) < 1e-3
    assert abs((2 * layers * block + tables) / 1e9 - total_billions) < 0.01
    positions, final_norms = 240 * width, 2 * width
    assert sum(count.values()) == 2 * layers * block + tables + unet + positions + final_norms
    assert all(p.is_meta for p in model.parameters())


def test_tied_embeddings_share_one_parameter_and_survive_to_empty():
    config = small_config()
    tied = dataclasses.replace(config, model=dataclasses.replace(config.model, tied_embeddings=True))
    with torch.device("meta"):
        model = MoT(tied)
    assert "head.text.weight" not in dict(model.named_parameters())
    model.to_empty(device="cpu")
    model.tie_embeddings()
    initialize(model.named_parameters(), tied)
    assert model.head.text.weight is model.embed.text.weight
    assert "head.text.weight" in dict(MoT(config).named_parameters())


@pytest.mark.parametrize("patch", ["unet", "linear"])
def test_documents_packed_together_equal_documents_alone(patch):
    config, alone = small_config(2, patch), small_config(1, patch)
    model, single = random_model(config), random_model(alone)
    single.load_state_dict(model.state_dict())
    sequences = [
        sequence(alone, "one", ["(w). 2, 0, 1, 0.", "(.). 0, 0, 0, 0."]),
        sequence(alone, "three", ["go"], valid=5),
    ]
    packed = model(pack(sequences, config))
    text = chunk = 0
    for item in sequences:
        own = single(pack([item], alone))
        rows, chunks = len(item.text_ids), len(item.clean)
        for found, expected in (
            (packed.text_logits[text : text + rows], own.text_logits[:rows]),
            (packed.velocity[chunk : chunk + chunks], own.velocity[:chunks]),
        ):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        text, chunk = text + rows, chunk + chunks
    assert packed.text_logits.isfinite().all()
    assert packed.velocity.isfinite().all()


class PlainCache:
    """Whole keys and values, written at each sequence's own length."""

    def __init__(self, config, rows, slots=200):
        model = config.model
        shape = (model.layers, rows, slots, model.kv_heads, model.head_dim)
        self.k, self.v = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        self.lengths = torch.zeros(rows, dtype=torch.int64)

    def update(self, layer, q, k, v, rope):
        k = rotate(k, rope)
        for row, start in enumerate(self.lengths.tolist()):
            self.k[layer, row, start : start + k.shape[1]] = k[row]
            self.v[layer, row, start : start + k.shape[1]] = v[row]
        return rotate(q, rope), self.k[layer], self.v[layer]


def generate(model, cache, item, rows=1):
    """Feed a sequence through the cached path in order of time, `rows` copies of it at once.

    The text before a chunk goes in one call (Q > 1) in even runs and token by token in odd ones.
    """
    logits, velocities, done = [], [], 0
    ends = [*item.chunk_sees_text.tolist(), len(item.text_ids)]
    for run, end in enumerate(ends):
        for lo, hi in [(done, end)] if run % 2 == 0 else [(i, i + 1) for i in range(done, end)]:
            ids, places = (
                torch.from_numpy(x[lo:hi]).expand(rows, -1) for x in (item.text_ids, item.text_positions)
            )
            logits.append(model.text_step(ids, places, cache))
            cache.lengths += hi - lo
        done = end
        if run == len(item.clean):
            break
        step = lambda copy, run=run: model.chunk_step(  # noqa: E731
            torch.from_numpy(getattr(item, copy)[run]).expand(rows, -1, -1, -1),
            torch.full((rows,), float(getattr(item, f"{copy}_t")[run])),
            torch.from_numpy(getattr(item, f"{copy}_positions")[run]).expand(rows, -1),
            cache,
        )
        velocities.append(step("noisy"))  # leaves nothing behind: its slots are overwritten
        step("clean")
        cache.lengths += item.clean_positions.shape[1]
    return torch.cat(logits, 1), torch.stack(velocities, 1)


@pytest.mark.parametrize("patch", ["unet", "linear"])
def test_cached_equals_uncached(patch):
    config = small_config(patch=patch)
    model = random_model(config)
    item = sequence(config, "one", ["(w). 2, 0, 1, 0.", "(.). 0, 0, 0, 0.", "go on"])
    whole = model(pack([item], config))
    logits, velocity = generate(model, PlainCache(config, 2), item, rows=2)
    for row in range(2):
        torch.testing.assert_close(logits[row], whole.text_logits[: len(item.text_ids)], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(velocity[row], whole.velocity, rtol=1e-9, atol=1e-9)


def test_rows_of_a_cache_have_their_own_lengths():
    config = small_config()
    model = random_model(config)
    items = [sequence(config, "one", ["(w). 2, 0, 1, 0."], 3), sequence(config, "three", ["go"], 5)]
    alone = []
    both = PlainCache(config, 2)
    for row, item in enumerate(items):
        cache = PlainCache(config, 1)
        generate(model, cache, item)
        both.k[:, row], both.v[:, row] = cache.k[:, 0], cache.v[:, 0]
        both.lengths[row] = cache.lengths[0]
        alone.append(cache)
    assert both.lengths[0] != both.lengths[1]
    ids, positions = torch.tensor([[7, 8], [9, 10]]), torch.tensor([[40, 41], [70, 71]])
    x, t = torch.randn(2, 16, 2, 4), torch.rand(2)
    words, picture = model.text_step(ids, positions, both), model.chunk_step(x, t, positions, both)
    for row, cache in enumerate(alone):
        own = slice(row, row + 1)
        expected = model.text_step(ids[own], positions[own], cache)
        torch.testing.assert_close(words[own], expected, rtol=1e-9, atol=1e-9)
        expected = model.chunk_step(x[own], t[own], positions[own], cache)
        torch.testing.assert_close(picture[own], expected, rtol=1e-9, atol=1e-9)


def test_bf16_weights_take_fp32_batches():
    config = small_config()
    model = random_model(config)
    batch = pack([sequence(config, "one", ["go"])], config)
    exact = model(batch)
    rough = model.bfloat16()(batch)
    assert rough.text_logits.dtype == rough.velocity.dtype == torch.bfloat16
    error = (rough.velocity.double() - exact.velocity).square().mean() / exact.velocity.square().mean()
    assert error < 0.01


def test_every_norm_has_the_configs_eps():
    """On rows as small as eps each norm must show it; the default would hide another one's."""
    config = small_config()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, norm_eps=0.3))
    model = MoT(config).double()
    norms = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.RMSNorm)}
    towers = {f"{tower}.{norm}" for tower in ("text", "video") for norm in ("attention_norm", "ffn_norm")}
    in_blocks = {f"blocks.{i}.{name}" for i in range(2) for name in towers}
    assert norms.keys() == in_blocks | {"head.text_norm", "head.video_norm"}
    x = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.3
    for name, norm in norms.items():
        expected = x / (x.square().mean(-1, keepdim=True) + 0.3).sqrt() * norm.weight
        torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("patch", ["unet", "linear"])
def test_every_token_of_a_chunk_knows_its_place(patch):
    """Cached and uncached forward would agree without the positions, too."""
    model = random_model(small_config(patch=patch))
    x, t = torch.randn(3, 16, 2, 4, dtype=torch.float64), torch.rand(3)
    tokens, _ = model.embed.video(x, t)
    plain, _ = model.embed.down(x, t)
    assert model.embed.position.shape == (2, 32)
    torch.testing.assert_close(tokens - plain, model.embed.position.expand(3, 2, 32))
