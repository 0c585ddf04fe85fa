"""R4: on every grid, every parameter's gradient is the single process's, and so are the losses after it.

The reference is a plain loop over the whole model, written here. Both start from a checkpoint of step 0 whose
`conv2` is not zero as it is initially, or the U-Net's blocks would have no gradients. The engine's gradients
are read from its moments after the first step: from zero AdamW makes exp_avg = (1 - beta1) * gradient.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from megatv.checkpoint import store
from megatv.checkpoint.store import checkpoint_dir
from megatv.config import Config, config_to_dict, load_config
from megatv.data.loader import Loader
from megatv.data.shards import Shards
from megatv.data.tokenizer import load_tokenizer
from megatv.model.init import initialize
from megatv.model.mot import MoT
from megatv.optim import learning_rate, parameter_groups

ROOT = Path(__file__).parents[2]
STEPS = 20
GRIDS = {
    "dp2-zero0": 2,
    "dp2-zero1": 2,
    "dp2-zero2": 2,
    "dp2-zero3": 2,
    "tp2": 2,
    "tp2-sp": 2,
    "pp2": 2,
    "cp2": 2,
    "selective": 1,
    "dp2-offloaded": 2,
    "pp4": 4,
    "cp4-zero3": 4,
    "dp2-cp2-zero1-full": 4,
    "tp2-dp2-zero2": 4,
    "pp2-tp2-zero1-selective": 4,
    "pp2-dp2-zero1-full": 4,
    "tp2-sp-cp2-zero1": 4,
    "tp2-cp2-zero3-offloaded": 4,
    "tp2-sp-dp2-cp2-zero2": 8,
    "pp2-tp2-sp-cp2-zero1-full": 8,
}
"""Grids and their processes. Of the two KV heads, cp 4 and tp 2 with cp 2 have fewer than ranks to attend."""
CLIPPED = ("dp2-zero0", "tp2-sp", "tp2-dp2-zero2", "pp2-tp2-zero1-selective", "cp2")
"""Clipping by the global norm, on one grid of each kind."""
TIED = ("pp2", "pp2-dp2-zero1-full", "tp2-sp")
"""One matrix for embedding and head, which lie on two stages of a pipeline."""


def overrides(grid: str) -> list[str]:
    """A grid's name as the config's keys; ZeRO stage 0 where it names none."""
    found = {"zero": "0"}
    for word in grid.split("-"):
        if word == "sp":
            found["sequence_parallel"] = "true"
        elif word[-1].isdigit():
            found[word[:-1]] = word[-1]
        else:
            found["activation_checkpointing"] = word
    return [f"parallel.{key}={value}" for key, value in found.items()]


@dataclass
class Reference:
    """What a plain loop computes: gradients of the first step, losses and gradient norms of every step."""

    start: Path
    gradients: dict[str, torch.Tensor]
    losses: list[float]
    norms: list[float]
    clip: float
    arguments: list[str]


@pytest.fixture(scope="module")
def reference(
    config_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[float, bool], Reference]:
    """reference(clip, tied), which is computed once."""
    return functools.cache(
        lambda clip, tied: train_alone(config_file, clip, tied, tmp_path_factory.mktemp("start"))
    )


def train_alone(config_file: Path, clip: float, tied: bool, folder: Path) -> Reference:
    """One process, no engine: sums over all rows, divided by their counts, torch's own AdamW and clipping."""
    arguments = [
        f"run.steps={STEPS}",
        f"optim.clip={clip}",
        "model.layers=4",
        f"model.tied_embeddings={tied}",
    ]
    config = load_config(config_file, arguments)
    model = MoT(config)
    initialize(model.named_parameters(), config)
    for name, parameter in model.named_parameters():
        if name.endswith("conv2.weight"):
            torch.nn.init.normal_(parameter, std=0.1)
    start = checkpoint_dir(folder, 0)
    save_start(start, model, config)
    loader = Loader(Shards(config.data.train), load_tokenizer("toy_world"), config, dp_rank=0, dp_size=1)
    optim = config.optim
    groups = parameter_groups(model.named_parameters(), optim)
    optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)
    result = Reference(start, {}, [], [], clip, arguments)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, optim)
        text, video, tokens, values = torch.zeros(()), torch.zeros(()), 0, 0
        for batch in loader.step(step):
            output = model(batch)
            text += F.cross_entropy(output.text_logits, batch.text_targets, reduction="sum")
            error = (output.velocity - batch.velocity)[batch.chunk_loss] ** 2
            video += error.sum()
            tokens += int((batch.text_targets != -100).sum())
            values += error.numel()
        loss = config.objective.text_weight * text / tokens + config.objective.video_weight * video / values
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            result.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        result.losses.append(loss.item())
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        result.norms.append(norm.item())
        optimizer.step()
    return result


def save_start(path: Path, model: MoT, config: Config) -> None:
    """A checkpoint of step 0: the model's weights and zero moments."""
    weights = {n: p.detach() for n, p in model.named_parameters()}
    shapes = {n: tuple(w.shape) for n, w in weights.items()}
    temporary = store.begin(path)
    files = {}
    for kind in ("model", "exp_avg", "exp_avg_sq"):
        name = store.part_name(kind, 0, 1)
        tensors = (w if kind == "model" else torch.zeros_like(w) for w in weights.values())
        files[name] = store.write_tensors(temporary / name, shapes, tensors)
    meta = {"step": 0, "updates": 0, "skipped": 0, "config": config_to_dict(config)}
    store.commit(temporary, path, meta, files)


PROBE = """
import runpy, torch
from megatv.engine import Engine
whole = Engine.step
def step(self, *arguments):
    result = whole(self, *arguments)
    tensors = {{n: t.clone() for n, t in zip(self.shapes, self.full("exp_avg"))}}
    if self.mesh.replica_rank == self.mesh.tp_rank == 0:
        torch.save(tensors, f"{folder}/moments-{{self.mesh.pp_rank}}.pt")
    Engine.step = whole
    return result
Engine.step = step
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "clip", "tied"),
    [
        *(pytest.param(grid, 1e9, False, id=grid) for grid in GRIDS),
        *(pytest.param(grid, 0.5, False, id=f"{grid}-clipped") for grid in CLIPPED),
        *(pytest.param(grid, 1e9, True, id=f"{grid}-tied") for grid in TIED),
    ],
)
def test_gradients_equal_the_single_process(
    grid: str, clip: float, tied: bool, reference: Callable, train: Callable, tmp_path: Path
) -> None:
    alone = reference(clip, tied)
    script = tmp_path / "probe.py"
    script.write_text(PROBE.format(folder=str(tmp_path), script=str(ROOT / "launch/train.py")))
    keys = ["--resume", str(alone.start), *alone.arguments, *overrides(grid)]
    train(GRIDS[grid], tmp_path / "run", *keys, script=script)
    beta1 = 0.9
    found: dict[str, torch.Tensor] = {}
    for stage in tmp_path.glob("moments-*.pt"):
        found |= torch.load(stage)
    scale = min(1.0, alone.clip / alone.norms[0])
    assert found.keys() == alone.gradients.keys()
    wrong = {}
    for name, gradient in alone.gradients.items():
        expected = gradient * scale
        error = (found[name] / (1 - beta1) - expected).abs().max() / expected.abs().max()
        if not error < 2e-6:  # 1e-6 of the gradient, and the rounding of the division by 0.1
            wrong[name] = error.item()
    assert not wrong, f"gradients of {len(wrong)} parameters differ (relative to their largest): {wrong}"
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses, norms = ([r[key] for r in records] for key in ("loss", "grad_norm"))
    assert losses[:5] == pytest.approx(alone.losses[:5], rel=2e-6)
    assert norms[0] == pytest.approx(alone.norms[0], rel=2e-6)
    # Adam blows the rounding of near-zero gradients up to whole updates: later losses and norms drift apart
    assert losses == pytest.approx(alone.losses, rel=1e-5)
    assert norms == pytest.approx(alone.norms, rel=1e-3)
