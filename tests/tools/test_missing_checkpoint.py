"""A checkpoint that is not there is one sentence of every command that takes one, before anything is done."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatv.sample import cli as sample
from megatv.studio import cli as studio

COMMANDS = [
    *(("convert_ckpt", f"{verb} NOWHERE") for verb in ("inspect", "verify")),
    *(
        ("convert_ckpt", f"{verb} NOWHERE --out OUT")
        for verb in ("export", "megatv-to-hf", "average NOWHERE")
    ),
    ("convert_ckpt", "diff NOWHERE NOWHERE"),
    ("score_toy_world", "--checkpoint NOWHERE --out OUT"),
    ("compare_precisions", "--checkpoint NOWHERE --out OUT"),
    ("compare_solvers", "--checkpoint NOWHERE --out OUT"),
    ("draw_reconstruction", "--checkpoint NOWHERE --index 0 --out OUT"),
    ("bench_sample", "--checkpoint NOWHERE"),
    ("shards", "stats SHARDS --like NOWHERE"),
]


@pytest.mark.parametrize("nowhere", ["nowhere", "n" * 300], ids=["absent", "no name of a file"])
@pytest.mark.parametrize(("tool", "words"), COMMANDS, ids=lambda value: value.split()[0])
def test_a_checkpoint_that_is_not_there(
    tool: str,
    words: str,
    nowhere: str,
    shards: Path,
    tmp_path: Path,
    load_tool: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / nowhere
    told = words.replace("NOWHERE", str(path)).replace("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(sys, "argv", [tool, *told.replace("SHARDS", str(shards / "train")).split()])
    refused(load_tool(tool).main, path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("main", [sample.main, studio.main])
def test_nor_do_the_sampler_and_the_studio_find_it(main: Callable[[list[str]], Any], tmp_path: Path) -> None:
    path = tmp_path / "nowhere"
    rest = ["--prompt", "x", "--out", str(tmp_path / "out")] if main is sample.main else ["--port", "0"]
    refused(lambda: main(["--checkpoint", str(path), *rest]), path)


def refused(main: Callable[[], Any], path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; give a run or a checkpoint of one") as caught:
        main()
    assert str(caught.value).startswith(str(path)[:300])


def test_the_examples_of_conversion_are_read(
    load_tool: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = load_tool("convert_ckpt")
    examples = [shlex.split(line) for line in tool.__doc__.splitlines() if "python tools/" in line]
    for words in examples:
        monkeypatch.setattr(sys, "argv", words[1:])
        assert tool.parse_arguments().command == words[2]
    assert len({words[2] for words in examples}) == 7
    both = "convert_ckpt hf-to-megatv L --config C --out O --set a.b=1 c.d=2 --set e.f=3"
    monkeypatch.setattr(sys, "argv", shlex.split(both))
    assert tool.parse_arguments().set == ["a.b=1", "c.d=2", "e.f=3"]
