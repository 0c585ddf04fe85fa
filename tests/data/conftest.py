"""Examples and configs for the tests of the data layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatv.config import Config, load_config
from megatv.types import Caption, Example

TOY_WORLD = Path(__file__).parents[2] / "configs" / "toy_world.yaml"


class Letters:
    """A tokenizer that can be read: a letter is a token, `^` BOS, `$` EOS, `[` BOF, `]` EOF."""

    vocab_size, bos, eos, bof, eof = 128, *map(ord, "^$[]")

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


@pytest.fixture(scope="session")
def letters() -> Letters:
    return Letters()


@pytest.fixture(scope="session")
def make_config() -> Callable[..., Config]:
    """The toy world's config with its own sequence section and overrides, given as section__key=value."""
    sequence = {"examples_per_row": 8, "context_tokens": 1984, "text_dropout": 0, "clean_flip": 0.5}
    fixed = {f"sequence__{key}": value for key, value in sequence.items()}

    def make(**overrides: object) -> Config:
        values = {"batch__examples": 16, **fixed, **overrides}
        return load_config(TOY_WORLD, [f"{k.replace('__', '.')}={v}" for k, v in values.items()])

    return make


@pytest.fixture(scope="session")
def make_example() -> Callable[..., Example]:
    """An example of one 49-frame group with random latents; words are given as {seconds: text}."""

    def make(
        captions: dict[float, str] | None = None,
        *,
        meta: str = "M",
        detailed: str = "",
        valid: int = 13,
        ends: bool = True,
        name: str = "clip",
    ) -> Example:
        latents = np.random.default_rng(len(name)).standard_normal((13, 16, 4, 4)).astype(np.float32)
        words = tuple(Caption(seconds, text) for seconds, text in (captions or {}).items())
        return Example(name, latents, words, meta, detailed, valid, ends)

    return make
