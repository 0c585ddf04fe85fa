"""The package's README: its example is run, its table is the registry, its picture is drawn anew."""

import doctest
import importlib.util
import re
from pathlib import Path

import numpy as np
from matplotlib.image import imread
from megatv_kernels.backends import BACKENDS

ROOT = Path(__file__).parents[2]
README = ROOT / "kernels/README.md"


def test_the_worked_example_is_true():
    failed, tried = doctest.testfile(str(README), module_relative=False)
    assert failed == 0 and tried >= 10


def test_the_table_names_the_backends_in_their_order():
    section = README.read_text().split("\n## Backends\n")[1].split("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert tuple(named) == BACKENDS


def test_the_picture_is_the_examples(tmp_path):
    spec = importlib.util.spec_from_file_location("draw_attention", ROOT / "tools/draw_attention.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    record = tool.example()
    tool.draw(record, tmp_path / "picture.png")
    assert (record.rows, record.live_pairs()) == (71, 660)  # as in the README's text
    drawn, kept = (imread(path) for path in (tmp_path / "picture.png", ROOT / "docs/attention.png"))
    assert drawn.shape == kept.shape and np.abs(drawn - kept).mean() < 0.01  # fonts may differ a little
