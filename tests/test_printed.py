"""What strangers wrote reaches a terminal through `say` or `printable`, which escape control characters."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OWN = {
    "megatv/log.py",  # its texts are escaped: `main_guard`
    "megatv/watchdog.py",  # numbers, and names of our own functions
    "megatv/sample/batch.py",  # numbers
    "megatv/parallel/slurm.py",  # numbers
    "megatv/data/picture_child.py",  # to the process that started it
}
READERS = [
    f"tools/{name}.py"
    for name in (
        *("shards", "examine_shards", "make_shards", "encode_shards", "convert_ckpt"),
        *("inspect_sequence", "training_sequence", "score_videos", "codec_report"),
    )
]
FILES = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "megatv").rglob("*.py"))] + READERS


def bare(call: ast.Call) -> bool:
    """Whether it prints something other than a constant or what `printable` made."""
    held = [node for node in ast.walk(call) if isinstance(node, ast.Name) and node.id != "print"]
    safe = any(node.id == "printable" for node in held)
    heading = isinstance(call.args[0], ast.JoinedStr) and all(
        isinstance(part, ast.Constant) or isinstance(part.value, ast.Constant)
        for part in call.args[0].values
        if isinstance(part, ast.Constant | ast.FormattedValue)
    )
    counted = {node.id for node in held} <= {"sys", "faults", "named", "path", "len", "args"}
    return not (safe or heading or counted or isinstance(call.args[0], ast.Constant))


@pytest.mark.parametrize("file", [file for file in FILES if file not in OWN])
def test_nothing_of_strangers_is_printed_as_it_is(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert [f"{file}:{call.lineno}" for call in calls if bare(call)] == []
