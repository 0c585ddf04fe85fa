"""Messages about a tree stay short whatever it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from megatv.schema import build


@dataclass(frozen=True)
class Inner:
    number: int = 0


@dataclass(frozen=True)
class Outer:
    real: float = 0.0
    number: int = 0
    choice: Literal["a", "b"] = "a"
    pair: tuple[int, int] = (0, 0)
    inner: Inner | None = None


def laughs() -> list:
    """A list that holds 9 ** 60 texts, in sixty small lists."""
    tree: list = ["lol"] * 9
    for _ in range(60):
        tree = [tree] * 9
    return tree


def itself() -> list:
    tree: list = []
    tree.append(tree)
    return tree


def deep() -> list:
    tree: list = []
    for _ in range(100_000):
        tree = [tree]
    return tree


VALUES: dict[str, Callable[[], Any]] = {
    **{"laughs": laughs, "itself": itself, "deep": deep, "long": lambda: "x" * 10**7},
    **{"digits": lambda: 10**400, "more digits": lambda: -(16**9000), "nan": lambda: float("nan")},
    "long key": lambda: {"x" * 10**7: 1},
}


@pytest.mark.parametrize("key", ["real", "number", "choice", "pair", "inner"])
@pytest.mark.parametrize("value", VALUES)
def test_a_wrong_value_is_named_in_a_short_sentence(key: str, value: str) -> None:
    with pytest.raises(ValueError) as caught:
        build(Outer, {key: VALUES[value]()})
    assert key in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("value", VALUES)
def test_a_wrong_tree_is_named_in_a_short_sentence(value: str) -> None:
    for tree in (VALUES[value](), {1: 2}, {None: 1}, {("a", 1): 1}):
        with pytest.raises(ValueError) as caught:
            build(Outer, tree)
        assert len(str(caught.value)) < 400


def test_numbers_fit_a_tensor() -> None:
    assert build(Outer, {"number": 2**63 - 1}).number == 2**63 - 1
    for value in (2**63, -(2**63), 10**400):
        with pytest.raises(ValueError, match=r"number is .*: it must be below 2\^63"):
            build(Outer, {"number": value})
        with pytest.raises(ValueError, match="real is"):
            build(Outer, {"real": value})
