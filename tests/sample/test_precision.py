"""Sampling in less than fp32: what is kept in which dtype, what it costs, what is refused."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from megatv_kernels import FP8
from torch import nn

from megatv.config import load_config
from megatv.model.mot import MoT
from megatv.model.precision import PRECISIONS, Fp8Linear, choose_precision, convert
from megatv.sample import Request, Sampler
from megatv.sample.context import Context

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
ERROR = {"fp32": (0.0, 0.0), "bf16": (1e-3, 1e-2), "fp8": (1e-2, 1e-1)}
"""Of logits, relative to their size: at least and at most."""


def outputs(sampler):
    """Logits and velocity of a noisy chunk after some text and a clean chunk."""
    context = Context.empty(sampler.model, 1, 40, sampler.precision.stored)
    tokens = sampler.tokenizer
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 16, 2, 4), np.float32))
    with torch.inference_mode():
        context.text([[tokens.bos, 5, 6, 7, tokens.bof]])
        context.write(x, context.chunk()[0])
        logits = context.text([[tokens.eof, 8, tokens.bof]])
        v = context.velocity(x.flip(3), 0.3, context.chunk()[1])
    assert logits.dtype == v.dtype == torch.float32
    assert context.cache.keys.dtype == context.cache.values.dtype == sampler.precision.stored
    return logits, v


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_checkpoint_in_every_precision(run_dir, name):
    sampler = Sampler.from_checkpoint(run_dir, CPU, precision=name)
    exact = Sampler.from_checkpoint(run_dir, CPU, precision="fp32")
    assert sampler.precision == PRECISIONS[name]
    for key, weight in sampler.model.named_parameters():
        tower = key.startswith("blocks.") and "norm" not in key
        assert weight.dtype == (sampler.precision.stored if tower else sampler.precision.dtype), key
    logits, velocity = (
        (found - expected).norm() / expected.norm()
        for found, expected in zip(outputs(sampler), outputs(exact), strict=True)
    )
    least, most = ERROR[name]
    assert least <= logits <= most and velocity <= most
    (result,) = sampler.generate([Request("(w).", seconds=1.0)])
    assert result.latents.dtype == np.float32 and np.isfinite(result.latents).all()


@pytest.mark.parametrize("name", ["bf16", "fp8"])
def test_the_device_never_holds_a_whole_model_in_fp32(run_dir, monkeypatch, name):
    held = []
    to_empty = nn.Module.to_empty

    def weigh(model, **options):
        held.append(sum(x.nbytes for x in (*model.parameters(), *model.buffers())))
        return to_empty(model, **options)

    monkeypatch.setattr(nn.Module, "to_empty", weigh)
    model = Sampler.from_checkpoint(run_dir, CPU, precision=name).model
    monkeypatch.undo()
    assert held == [sum(x.nbytes for x in (*model.parameters(), *model.buffers()))]
    matrices = sum(x.weight.numel() for x in model.modules() if isinstance(x, Fp8Linear))
    everything = sum(x.numel() for x in (*model.parameters(), *model.buffers()))
    scales = sum(x.numel() for x in model.buffers())
    assert held == [2 * everything - matrices + 2 * scales]
    assert matrices == (0 if name == "bf16" else 2 * 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48))


@pytest.mark.parametrize(("name", "gigabytes"), [("fp32", 61.1), ("bf16", 30.5), ("fp8", 16.6)])
def test_what_the_8b_model_takes(name, gigabytes):
    config = load_config(ROOT / "configs/8b_sports.yaml", ["model.init_text=null", "codec={kind: dct}"])
    with torch.device("meta"):
        model = MoT(config)
    convert(model, PRECISIONS[name])
    assert round(sum(x.nbytes for x in (*model.parameters(), *model.buffers())) / 1e9, 1) == gigabytes


def test_fp8_keeps_a_matrix_to_four_bits(run_dir):
    exact, small = (Sampler.from_checkpoint(run_dir, CPU, precision=name).model for name in ("fp32", "fp8"))
    matrix, kept = exact.blocks[1].video.down.weight, small.blocks[1].video.down
    assert isinstance(kept, Fp8Linear) and kept.weight.dtype == FP8
    allowed = torch.maximum(matrix.abs() * 2**-4, kept.scale * 2**-10)
    assert ((kept.weight.float() * kept.scale - matrix).abs() <= allowed * 1.001).all()


def test_what_fp8_cannot_multiply_is_named(make_sampler):
    config = make_sampler().config
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, ffn=40))
    with torch.device("meta"):
        model = MoT(config)
    with pytest.raises(ValueError, match=r"blocks\.0\.text\.gate is \[40, 32\].*multiples of 16.*bf16"):
        convert(model, PRECISIONS["fp8"])
    convert(model, PRECISIONS["bf16"])


@pytest.mark.parametrize(
    ("capability", "automatic"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")], ids=str
)
def test_what_a_gpu_gets(monkeypatch, capability, automatic):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    gpu = torch.device("cuda")
    assert choose_precision("auto", gpu).name == automatic and choose_precision("auto", CPU).name == "fp32"
    if capability >= (9, 0):
        assert choose_precision("fp8", gpu).stored == FP8
    else:
        with pytest.raises(ValueError, match=r"--precision fp8: Some GPU .*\d\.\d\) has no fp8"):
            choose_precision("fp8", gpu)


def test_an_unknown_precision_is_named(run_dir):
    with pytest.raises(ValueError, match="--precision int4: is unknown; use auto, fp32, bf16, fp8"):
        Sampler.from_checkpoint(run_dir, CPU, precision="int4")


TINY = ["model.layers=1", "model.width=32", "model.ffn=48", "model.unet_channels=[16, 16]"]


@pytest.mark.parametrize("source", ["checkpoint", "config"])
def test_the_comparison_goes_by_fp32(run_dir, tmp_path, monkeypatch, capsys, source):
    monkeypatch.syspath_prepend(ROOT / "tools")
    tool = importlib.import_module("compare_precisions")
    model = (
        ["--checkpoint", run_dir] if source == "checkpoint" else ["--config", ROOT / "configs/toy_world.yaml"]
    )
    changes = [] if source == "checkpoint" else ["codec={kind: dct}", *TINY]
    words = [*model, *changes, "--examples", 2, "--device", "cpu", "--out", tmp_path / "found.json"]
    monkeypatch.setattr(sys, "argv", ["compare_precisions.py", *map(str, words)])
    tool.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["fp32"]["velocity_error"], found["fp32"]["same_tokens"], found["chunks"]) == (0, 1, 26)
    weights = [found[name]["weight_bytes"] for name in PRECISIONS]
    assert weights[0] == 2 * weights[1] and weights[1] > weights[2]
    keys = [found[name]["cache_bytes_per_token"] for name in PRECISIONS]
    assert keys == [4 * keys[2], 2 * keys[2], keys[2]]
    printed = capsys.readouterr().out
    for name in ("bf16", "fp8"):
        assert 1e-4 < found[name]["velocity_error"] < ERROR[name][1]
        assert f"| {found[name]['velocity_error']:.2%} | {found[name]['same_tokens']:.1%} |" in printed
