"""The planner's state against the tensors that the real engine holds, in a grid that is only rehearsed."""

import json
import sys

import pytest

SCRIPT = """
import gc, json, os, sys, torch
from megatv.parallel.environment import prepare
prepare()
from dataclasses import replace
from megatv.config import ParallelConfig, load_config
from megatv.engine import Engine
from megatv.parallel.mesh import Mesh, rehearsal
from megatv.plan.footprint import gradients, state
from megatv.plan.shapes import stage_shapes

TOY = load_config("configs/toy_world.yaml",
                  ["log.preview_every=0", "batch.examples=64", "model.width=64", "model.ffn=96"])

def held(config, world):
    before = {t.untyped_storage()._cdata: t for t in tensors()}
    with rehearsal(world, 0):
        engine = Engine(config, Mesh(config.parallel), torch.device("cpu"), None)
        found = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors()}
    return sum(size for key, size in found.items() if key not in before)

def tensors():
    gc.collect()
    return [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and t.device.type == "cpu"]

for world, tp, zero, precision, ema in json.loads(sys.argv[1]):
    if os.fork():
        os.wait()
        continue
    config = replace(TOY, precision=precision, parallel=ParallelConfig(tp=tp, zero=zero),
                     optim=replace(TOY.optim, ema=ema))
    dp, (shape,) = world // tp, stage_shapes(config)
    grads = gradients(config, shape, dp)
    # of the gradients, these are there from the start
    early = 4 * dp * -(-shape.parameters // dp) if (zero, precision) == (1, "bf16") else 0
    early += grads["gradients"] + 2 * shape.parameters if zero == 3 else 0
    planned = sum(state(config, shape, dp).values()) + early
    print("held", json.dumps([planned, held(config, world)]), flush=True)
    os._exit(0)
"""
CASES = [
    (4, 1, 0, "fp32", None),
    (4, 1, 1, "fp32", None),
    (4, 1, 1, "bf16", 0.99),
    (4, 2, 1, "bf16", None),
    (4, 1, 2, "bf16", None),
    (2, 1, 3, "bf16", None),
]


@pytest.mark.slow
def test_the_engine_holds_what_is_planned(command):
    """Weights, masters, moments, average and the gradients that are made at start, to 1 %."""
    lines = command(sys.executable, "-c", SCRIPT, json.dumps(CASES)).stdout.splitlines()
    found = [json.loads(line[5:]) for line in lines if line.startswith("held ")]
    assert len(found) == len(CASES)
    for case, (planned, held) in zip(CASES, found, strict=True):
        assert held == pytest.approx(planned, rel=0.01), case
