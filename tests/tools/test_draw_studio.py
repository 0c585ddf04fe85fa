"""tools/draw_studio.py: what it refuses. That a page can be used as it does is tested in tests/studio."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location(
    "draw_studio", Path(__file__).parents[2] / "tools/draw_studio.py"
)
draw_studio = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(draw_studio)


@pytest.mark.slow
def test_a_studio_that_does_not_start(tmp_path, capfd):
    with pytest.raises(ValueError, match="does not start"):
        draw_studio.main(["--checkpoint", str(tmp_path / "nowhere"), "--out", str(tmp_path / "a.png")])
    assert "error: " in capfd.readouterr().err
    assert not (tmp_path / "a.png").exists()
