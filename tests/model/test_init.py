"""Initial weights: one function of seed and name on every grid; Llama's where asked for."""

import dataclasses
from pathlib import Path

import pytest
import torch

from megatv.config import load_config
from megatv.data.tokenizer import load_tokenizer
from megatv.model.init import initial_weight, initialize, tp_slice, tp_slice_dim
from megatv.model.mot import MoT

TOY = load_config(Path(__file__).parents[2] / "configs/toy_world.yaml")


def with_model(**changes):
    small = {"layers": 2, "width": 32, "ffn": 48, "kv_heads": 2, "unet_channels": (16, 32)}
    return dataclasses.replace(TOY, model=dataclasses.replace(TOY.model, **small | changes))


def weights(config):
    model = MoT(config)
    initialize(model.named_parameters(), config)
    return {name: p.detach() for name, p in model.named_parameters()}


def test_weights_depend_on_seed_and_name_alone():
    config = with_model()
    first = weights(config)
    torch.manual_seed(123)
    again = weights(config)
    assert all(torch.equal(first[name], again[name]) for name in first)
    deeper = weights(with_model(layers=3))
    assert torch.equal(first["blocks.1.text.wq.weight"], deeper["blocks.1.text.wq.weight"])
    other = weights(dataclasses.replace(config, run=dataclasses.replace(config.run, seed=1)))
    drawn = [name for name in first if first[name].std() > 0]
    assert len(drawn) > 40
    assert not any(torch.equal(first[name], other[name]) for name in drawn)
    assert len({first[name].flatten()[0].item() for name in drawn}) == len(drawn)


def test_law_of_every_kind_of_weight():
    found = weights(with_model(width=256, ffn=512, layers=8))
    small = (2 / (5 * 256)) ** 0.5
    for name, std in {
        "embed.text.weight": small,
        "head.text.weight": small,
        "embed.position": 0.2,
        "blocks.0.text.wq.weight": small,
        "blocks.7.video.up.weight": small,
        "blocks.0.text.wo.weight": small / 4,
        "blocks.7.video.down.weight": small / 4,
        "embed.down.full_blocks.0.conv1.weight": (16 * 9) ** -0.5,
        "head.up.upsample.weight": 32**-0.5,
        "head.up.to_velocity.weight": (16 * 9) ** -0.5,
        "embed.down.to_tokens.weight": 0.3 * 32**-0.5,
        "embed.down.time.0.weight": 256**-0.5,
    }.items():
        assert found[name].std().item() == pytest.approx(std, rel=0.06), name
        assert abs(found[name].mean()) < std / 4, name
    for name, value in found.items():
        if name.endswith("bias") or "conv2" in name:
            assert (value == 0).all(), name
        elif "norm" in name:
            assert (value == 1).all(), name


def test_video_tower_copies_the_text_tower_or_not():
    copied, drawn = (weights(with_model(init_video=mode)) for mode in ("copy", "random"))
    for name in copied:
        if name.startswith("blocks.") and ".video." in name:
            text = name.replace(".video.", ".text.")
            assert torch.equal(copied[name], copied[text])
            assert "norm" in name or not torch.equal(drawn[name], drawn[text])
    assert torch.equal(copied["blocks.0.text.wq.weight"], drawn["blocks.0.text.wq.weight"])


@pytest.mark.parametrize("tp", [2, 4])
def test_slices_of_all_ranks_make_the_whole(tp):
    config = with_model(kv_heads=4)
    whole = weights(config)
    for name, full in whole.items():
        parts = []
        for rank in range(tp):
            part = torch.empty_like(tp_slice(full, name, tp, rank).contiguous())
            initialize([(name, part)], config, tp=tp, tp_rank=rank)
            parts.append(part)
        dim = tp_slice_dim(name)
        if dim is None:
            assert all(torch.equal(part, full) for part in parts)
        else:
            assert torch.equal(torch.cat(parts, dim), full)


def test_only_matrices_of_towers_and_tables_are_split():
    split = {name: tp_slice_dim(name) for name in weights(with_model(layers=1))}
    assert {name for name, dim in split.items() if dim == 1} == {
        f"blocks.0.{side}.{matrix}.weight" for side in ("text", "video") for matrix in ("wo", "down")
    }
    assert {name for name, dim in split.items() if dim == 0} == {"embed.text.weight", "head.text.weight"} | {
        f"blocks.0.{side}.{matrix}.weight"
        for side in ("text", "video")
        for matrix in ("wq", "wk", "wv", "gate", "up")
    }


def test_the_way_up_starts_from_the_tokens_alone():
    """At first a velocity is the tokens' own, and nothing of the noisy copy's skips reaches it."""
    config = with_model()
    model = MoT(config)
    model.load_state_dict(weights(config))
    width = model.embed.video(torch.randn(2, 16, 4, 4), torch.rand(2))[1].shape[1]
    hidden, skips, other = torch.randn(2, 4, 32), torch.randn(2, width), torch.randn(2, width)
    velocity = model.head.velocity(hidden, skips)
    assert velocity.std() > 0.1 and torch.equal(velocity, model.head.velocity(hidden, other))
    assert not torch.allclose(velocity, model.head.velocity(hidden.flip(0), skips))


def test_markers_are_reset_in_llamas_tables(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = load_tokenizer("toy_world")
    config = with_model(vocab=tokenizer.vocab_size, init_text=str(tmp_path))
    from megatv.model.llama import LlamaDirectory
    from megatv.model.llama_config import llama_config

    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama_config(config.model)))
    theirs.save_pretrained(tmp_path)
    llama = LlamaDirectory(tmp_path, config.model)
    for name, table in {
        "embed.text.weight": theirs.model.embed_tokens.weight,
        "head.text.weight": theirs.lm_head.weight,
    }.items():
        found = initial_weight(name, table.shape, config, llama)
        changed = (found != table).any(1).nonzero().flatten().tolist()
        assert changed == [tokenizer.bof, tokenizer.eof]
        offset = found[changed] - table.mean(0)
        assert offset.std().item() == pytest.approx(0.1 * table.std().item(), rel=0.3)
