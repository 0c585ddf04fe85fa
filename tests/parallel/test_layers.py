"""Megatron-core's layers against plain torch: same names, same numbers, same gradients."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from megatv.config import LATENT_CHANNELS, load_config
from megatv.data.packing import pack
from megatv.data.sequence import build_sequence
from megatv.data.tokenizer import load_tokenizer
from megatv.model.init import initialize, tp_slice
from megatv.model.mot import MoT
from megatv.objective.pretrain import pretrain_loss, weighted
from megatv.parallel.layers import Layers, megatron_layers
from megatv.types import IGNORE, Caption, Example

TOY = load_config(Path(__file__).parents[2] / "configs/toy_world.yaml")


def small_config(tied):
    return dataclasses.replace(
        TOY,
        video=dataclasses.replace(TOY.video, width=32, height=16),
        sequence=dataclasses.replace(TOY.sequence, examples_per_row=1, context_tokens=2 * 13 * 2 + 60),
        model=dataclasses.replace(
            TOY.model, layers=2, width=32, ffn=48, kv_heads=2, unet_channels=(16, 32), tied_embeddings=tied
        ),
    )


def batch_of(config):
    shape = (config.latents, LATENT_CHANNELS, config.latent_height, config.latent_width)
    latents = np.random.default_rng(0).standard_normal(shape, np.float32)
    words = (Caption(0.0, "(w). 2, 0, 1, 0."), Caption(1.0, "(.). 0, 0, 0, 0."))
    example = Example("one", latents, words, "a game", "", 13, True)
    return pack([build_sequence(example, load_tokenizer("toy_world"), config, seed=0, epoch=0)], config)


def loss_and_gradients(config, layers, tp, rank):
    model = MoT(config, layers)
    initialize(model.named_parameters(), config, tp=tp, tp_rank=rank)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("conv2.weight"):  # not the zero start, which would hide its block's gradients
            torch.nn.init.normal_(parameter, std=0.1)
    batch = batch_of(config)
    output = model(batch)
    loss = pretrain_loss(output, batch, layers)
    before = output.text_logits.detach().clone()
    weighted(loss, batch.counts(), config.objective).backward()
    assert torch.equal(output.text_logits, before), "the loss must not overwrite the logits"
    return loss, before, {name: p.grad for name, p in model.named_parameters()}


def compare_with_plain(tp, rank):
    """This rank's slice of the logits and of every gradient equals the unsharded model's."""
    for tied, sequence_parallel in ((False, False), (True, False), (False, True)):
        config = small_config(tied)
        expected_loss, logits, expected = loss_and_gradients(config, Layers(), 1, 0)
        layers = megatron_layers(tp, sequence_parallel=sequence_parallel)
        found_loss, found_logits, found = loss_and_gradients(config, layers, tp, rank)
        torch.testing.assert_close(found_loss.text_sum, expected_loss.text_sum, rtol=1e-5, atol=0)
        torch.testing.assert_close(found_loss.video_sum, expected_loss.video_sum, rtol=1e-5, atol=0)
        torch.testing.assert_close(found_logits, logits.chunk(tp, 1)[rank], rtol=1e-5, atol=1e-5)
        assert list(found) == list(expected)
        for name, gradient in expected.items():
            own = tp_slice(gradient, name, tp, rank)
            assert own.abs().max() > 0, name
            torch.testing.assert_close(
                found[name], own, rtol=1e-4, atol=1e-6, msg=f"{name}, tied={tied}, sp={sequence_parallel}"
            )


def compare_cross_entropy(tp, rank):
    """Rows with and without a target, targets in every rank's part of the vocabulary."""
    torch.manual_seed(0)
    logits, targets = 10 * torch.randn(6, 8), torch.tensor([0, 7, IGNORE, 3, 4, IGNORE])
    whole = logits.clone().requires_grad_()
    expected = F.cross_entropy(whole, targets, ignore_index=IGNORE, reduction="none")
    expected.sum().backward()
    part = logits.chunk(tp, 1)[rank].clone().requires_grad_()
    found = megatron_layers(tp).vocab_cross_entropy(part, targets)
    found.sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(part.grad, whole.grad.chunk(tp, 1)[rank], rtol=1e-5, atol=1e-6)
    assert (found[targets == IGNORE] == 0).all()
    assert (part.grad[targets == IGNORE] == 0).all()


def run_rank(rank, tp, store):
    """Everything one rank of a tensor-parallel group has to show."""
    from megatron.core import parallel_state

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=tp)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tp)
    try:
        compare_cross_entropy(tp, rank)
        compare_with_plain(tp, rank)
        with torch.device("meta"):
            model = MoT(small_config(False), megatron_layers(tp))
        assert all(p.is_meta for p in model.parameters())
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def test_plain_cross_entropy_ignores_rows_and_sums_in_fp32():
    logits, targets = torch.randn(3, 8).bfloat16(), torch.tensor([1, IGNORE, 5])
    nll = Layers().vocab_cross_entropy(logits, targets)
    assert nll.dtype == torch.float32
    assert nll[1] == 0
    assert Layers().vocab_cross_entropy(logits.double(), targets).dtype == torch.float64


def test_megatron_alone_equals_plain(tmp_path):
    run_rank(0, 1, tmp_path / "store")


@pytest.mark.slow
def test_tensor_parallel_gradients_equal_plain(tmp_path):
    """Two processes run this file."""
    tp = 2
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tp), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(tp)
    ]
    try:
        for process in ranks:
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output[-4000:]
    finally:
        for process in ranks:
            process.kill()


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
