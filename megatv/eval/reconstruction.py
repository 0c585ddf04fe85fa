"""What a model makes of each chunk when all before it is true: reconstruction of an example from noise."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from megatv.config import Config
from megatv.data.packing import pack
from megatv.model.mot import MoT
from megatv.sample.solver import draw_noise, euler
from megatv.types import Sequence


@torch.inference_mode()
def reconstruct(model: MoT, sequence: Sequence, config: Config, *, steps: int, seed: int = 0) -> Tensor:
    """float32 [N, C, h, w]: every chunk drawn from noise, given its words and the true chunks before it.

    sequence: built without `train`, so that its clean copies are the data's. All chunks go through the ODE of
    TV2TV section 2.3 side by side, in `steps` passes of the training forward: what was drawn is seen by no
    other chunk. So this shows what was learned of one step, without the errors that add up while sampling.
    """
    assert (sequence.clean_t == 1).all()
    device = model.embed.position.device
    batch = pack([sequence], config).to(device)
    noise = np.stack([draw_noise(seed, i, batch.noisy.shape[1:]) for i in range(len(batch.noisy))])

    def velocity(x: Tensor, t: float) -> Tensor:
        times = torch.full_like(batch.noisy_t, t)
        return model(dataclasses.replace(batch, noisy=x, noisy_t=times)).velocity.float()

    for x in euler(velocity, torch.from_numpy(noise).to(device), steps):
        drawn = x
    return drawn[: len(sequence.chunk_loss)]
