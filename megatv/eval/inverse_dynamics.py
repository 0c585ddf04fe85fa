"""The eye: a small network that sees a chunk and says what the player did. Its features compare videos.

A Frechet distance needs features in which this world's videos differ as a viewer would see it, and nothing
may be downloaded. To tell the action of a chunk, the network must see where the pillars are and how they
move, the camera's height, gun, flash and bar. It is trained on true episodes as the codec shows them, so that
the codec's own blur is no distance. Distances are comparable for one codec and one set of its weights only.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from megatv.config import TEMPORAL_FACTOR
from megatv.data.toy_world import FLASH_FRAMES, State

FEATURES = 32
FRAMES = 1 + TEMPORAL_FACTOR
"""A clip: the last frame before a chunk and the chunk's own four."""
PARTS = {"turn": 3, "move": 3, "jump": 2, "shoot": 2, "reload": 2}
"""What a chunk's first frame may show, and in how many ways."""


class Eye(nn.Module):
    """Clips uint8 [n, 5, 32, 32, 3] -> features [n, 32] -> logits of PARTS [n, 12]. 93 K weights."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Sequential(
            *(nn.Conv2d(3 * FRAMES, 32, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3, 2, 1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(64 * 4 * 4, FEATURES), nn.Tanh()),
        )
        self.say = nn.Linear(FEATURES, sum(PARTS.values()))

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits."""
        pixels = clips.float() / 127.5 - 1
        changes = 2 * pixels.diff(dim=1)  # shown, not left to be found: it learns many times faster
        features = self.see(torch.cat([pixels[:, :1], changes], 1).permute(0, 1, 4, 2, 3).flatten(1, 2))
        return features, self.say(features)

    @torch.inference_mode()
    def features(self, clips: np.ndarray, batch: int = 512) -> np.ndarray:
        """float32 [V, n, 32] of clips uint8 [V, n, 5, 32, 32, 3]."""
        flat = torch.from_numpy(clips).flatten(0, 1)
        return torch.cat([self(part)[0] for part in flat.split(batch)]).numpy().reshape(*clips.shape[:2], -1)

    @torch.inference_mode()
    def accuracy(self, clips: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Share of clips [n, 5, 32, 32, 3] whose every part is told right. labels: int64 [n, 5]."""
        logits = torch.cat([self(part)[1] for part in torch.from_numpy(clips).split(512)])
        told = torch.stack([part.argmax(1) for part in logits.split(tuple(PARTS.values()), 1)], 1).numpy()
        return {name: float((told[:, i] == labels[:, i]).mean()) for i, name in enumerate(PARTS)}


def clips_of(frames: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """uint8 [V, n, 5, H, W, 3]: every four-frame chunk of videos [V, F, H, W, 3] with the frame before it.

    starts: first frame of every chunk, then F.
    """
    first = starts[:-1][np.diff(starts) == TEMPORAL_FACTOR]
    return frames[:, first[:, None] + np.arange(-1, TEMPORAL_FACTOR)]


def labels_of(states: State, starts: np.ndarray) -> np.ndarray:
    """int64 [V, n, 5]: what starts in each chunk that `clips_of` takes. states: fields [V, F]."""
    first = starts[:-1][np.diff(starts) == TEMPORAL_FACTOR]
    before, at = states.at(np.s_[:, first - 1]), states.at(np.s_[:, first])
    turned = np.sign((at.yaw - before.yaw + 2) % 64 - 2) + 1  # the ring of 64 pixels: -2, 0, 2
    moved = at.depth - before.depth + 1
    fired = at.flash == FLASH_FRAMES
    return np.stack([turned, moved, at.jump == 1, fired, at.reload == 1], axis=-1).astype(np.int64)


def train_eye(
    clips: np.ndarray, labels: np.ndarray, *, steps: int = 600, batch: int = 128, seed: int = 0
) -> Eye:
    """An eye trained on clips uint8 [n, 5, 32, 32, 3] and labels int64 [n, 5]; always the same one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        eye = Eye()
    rng = np.random.default_rng(seed)
    adam = torch.optim.AdamW(eye.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 2e-3, total_steps=steps)
    for _ in range(steps):
        rows = rng.integers(0, len(clips), batch)
        logits = eye(torch.from_numpy(clips[rows]))[1].split(tuple(PARTS.values()), 1)
        wanted = torch.from_numpy(labels[rows])
        loss = torch.stack(
            [functional.cross_entropy(part, wanted[:, i]) for i, part in enumerate(logits)]
        ).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    return eye.eval()
