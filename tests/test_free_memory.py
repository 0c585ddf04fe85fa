"""Free memory is what the control groups of a process leave, not what the host has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatv import free_memory
from megatv.free_memory import available_bytes, left_in_groups


def make(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_every_group_above_counts_and_its_cache_is_free(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    stat = "anon 1\ninactive_file 20\nactive_file 5\n"
    make(root / "job/step", {"memory.max": "max\n", "memory.current": "100\n", "memory.stat": stat})
    make(root / "job", {"memory.max": "1000\n", "memory.current": "300\n", "memory.stat": stat})
    (tmp_path / "self").write_text("0::/job/step\n")
    assert list(left_in_groups(tmp_path / "self", root)) == [725]


def test_the_first_version_of_groups_is_read_too(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    limits = {"memory.limit_in_bytes": "1000", "memory.usage_in_bytes": "900"}
    make(root / "memory/docker/a", {**limits, "memory.stat": "total_inactive_file 30\n"})
    (tmp_path / "self").write_text("5:cpu,cpuacct:/docker/a\n4:memory:/docker/a\n")
    assert list(left_in_groups(tmp_path / "self", root)) == [130]


def test_without_groups_the_host_counts(tmp_path: Path) -> None:
    assert list(left_in_groups(tmp_path / "none", tmp_path)) == []


def test_the_least_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_memory, "left_in_groups", lambda membership, root: iter([12345, 7]))
    assert available_bytes(torch.device("cpu")) == 7
