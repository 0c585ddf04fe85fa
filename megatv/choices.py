"""Names that a user chooses from and heavy modules implement: here, so that `--help` needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

Solver = Literal["euler", "heun", "dpmpp"]
"""Of the flow; see `megatv.sample.solver`."""
PrecisionName = Literal["fp32", "bf16", "fp8"]
"""What a sampler's model is in; see `megatv.model.precision`."""
PRECISION_CHOICES: tuple[str, ...] = ("auto", *get_args(PrecisionName))
"""What `--precision` takes."""
WeightDtype = Literal["float32", "bfloat16", "float16"]
"""What weights are exported in; see `megatv.checkpoint.convert`."""
SPLITS = ("train", "val")
"""Of the episodes of a game."""
TOY_WORLD = "toy_world"
"""The tokenizer.path that stands for the tokenizer which megatv ships."""
TOY_WORLD_FILE = Path(__file__).parent / "assets/toy_world.tiktoken"
"""That tokenizer."""
WIDTH, HEIGHT = 320, 192
"""Pixels of the paper's videos (TV2TV sections 3.2 and 4.2.2), which evaluation sets have."""
