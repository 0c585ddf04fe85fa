"""A converted Llama's checkpoint, which has weights and no moments, starts a run."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megatv.checkpoint import store
from megatv.checkpoint.convert import from_llama
from megatv.config import load_config
from megatv.model.llama_config import llama_config

TIMID = ["optim.lr=1e-9", "optim.min_lr=0", "optim.warmup_steps=0", "run.steps=1", "optim.ema=0.9"]


@pytest.mark.slow
def test_training_goes_on_from_converted_weights(tmp_path, config_file, train):
    run = tmp_path / "run"
    config = load_config(config_file, [f"run.dir={run}", *TIMID])
    llama = LlamaForCausalLM(LlamaConfig(**llama_config(config.model), initializer_range=0.1))
    llama.save_pretrained(tmp_path / "llama")
    from_llama(tmp_path / "llama", config, tmp_path / "start")
    train(1, run, *TIMID, "--resume", tmp_path / "start")
    after = run / "checkpoints/step_00000001"
    assert store.verify(after)["step"] == 1
    before = store.Tensors(tmp_path / "start", "model")
    for kind in ("model", "ema"):
        found = store.Tensors(after, kind)
        assert found.names() == before.names()
        for name in before.names():  # one AdamW step moves a weight by about lr
            torch.testing.assert_close(found[name], before[name], rtol=0, atol=3e-9, msg=f"{kind} {name}")
    moments = store.Tensors(after, "exp_avg")
    assert moments["blocks.0.text.wq.weight"].any()
