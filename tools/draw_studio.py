"""A picture of the studio at work: makes a video, branches from it with other words, and takes a screenshot.

    python tools/draw_studio.py --checkpoint runs/toy_world --out docs/studio.png

Needs Chromium. It drives the page as a person does: type, click, wait.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatv.checkpoint.trust import Trust
from megatv.log import main_guard, say

from PIL import Image

ROOT = Path(__file__).parents[1]
MADE = "document.querySelectorAll('.lane.active .cell.made').length"


def main(argv: Sequence[str] | None = None) -> None:
    """Start a studio, use it, write the picture. Raises ValueError when there is no browser or no studio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", required=True, help="a checkpoint directory, or a run")
    parser.add_argument("--out", required=True, help="the picture, a PNG")
    parser.add_argument(
        "--words", default="(space). 0, 0, 0, 0.", help="of the branch, instead of the model's"
    )
    parser.add_argument("--chunk", type=int, default=5, help="where the branch begins")
    parser.add_argument("--seed", type=int, default=0)
    Trust.add_options(parser)
    args = parser.parse_args(argv)
    command = [sys.executable, "-m", "megatv.studio", "--checkpoint", args.checkpoint, "--port", "0"]
    command += Trust.given(args).options()
    studio = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert studio.stdout is not None
        lines = iter(studio.stdout.readline, "")
        address = next((found[0] for line in lines if (found := re.search(r"http://\S+:\d+", line))), None)
        if address is None:
            raise ValueError(f"--checkpoint {args.checkpoint}: the studio does not start, see above")
        draw(address, args)
    finally:
        studio.send_signal(signal.SIGINT)
        studio.wait(30)
    say(f"{args.out}: {Path(args.out).stat().st_size / 1000:.0f} kB")


def draw(address: str, args: argparse.Namespace) -> None:
    """Use the studio at `address` and write the picture, in 256 colours."""
    with _browser() as page:
        page.goto(address)
        page.wait_for("document.querySelector('#steps')?.value")
        page.evaluate(f"document.querySelector('#seed').value = {args.seed}")
        page.click("#make")
        page.wait_for("document.querySelector('.pill.finished')", 600)
        page.click(f".cell:nth-child({args.chunk + 1}) .look")
        page.click(f".still .cell.now:nth-child({args.chunk + 1}) .branch")
        page.wait_for("document.querySelector('.editor textarea')")
        page.type(args.words)  # in place of the model's, which are selected
        page.click(".editor .primary")
        page.wait_for("document.querySelectorAll('.lane').length == 2")
        page.wait_for(f"{MADE} >= {args.chunk + 3}", 600)
        page.click("#hold")
        page.wait_for("document.querySelector('.pill.paused')")
        page.click(f".lane.active .cell:nth-child({args.chunk + 2}) .look")
        page.click("#hold")
        page.wait_for("document.querySelector('.pill.making, .pill.finished')")
        page.screenshot(Path(args.out))
    with Image.open(args.out, formats=["PNG"]) as picture:
        picture.convert("RGB").quantize(256).save(args.out, optimize=True)


def _browser() -> Any:
    """The tests' browser."""
    spec = importlib.util.spec_from_file_location("browser", ROOT / "tests/browser.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.MISSING:
        raise ValueError(f"the picture {module.MISSING}")
    return module.Browser(1440, 1000)


if __name__ == "__main__":
    main_guard(main)
