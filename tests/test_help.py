"""`--help`, a wrong option and a missing config are answered without importing what takes seconds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "deepspeed", "megatron", "av", "ray", "cv2", "transformers", "streaming", "tiktoken"}
MODULES = {"megatv.sample": "megatv/sample", "megatv.studio": "megatv/studio"}
MODULES |= {"megatv.eval.human": "megatv/eval/human"}
SCRIPTS = [
    str(path.relative_to(ROOT))
    for folder in ("launch", "tools")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if re.search(r"\.parse_(intermixed_|known_)?args\b", path.read_text())
]
RUN = """
import runpy, sys
code, (_, *sys.argv) = 0, sys.argv
try:
    if sys.argv[0].endswith(".py"):
        sys.path.insert(0, sys.argv[0].rpartition("/")[0])
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code or 0
print("\\nimported:", *sorted({name.partition(".")[0] for name in sys.modules}))
sys.exit(code)
"""


def start(*words: str) -> tuple[int, str, set[str]]:
    """Exit code, all that was said, and the top-level modules that were imported."""
    command = [sys.executable, "-c", RUN, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said, _, imported = done.stdout.partition("\nimported: ")
    assert imported, done.stderr
    return done.returncode, said + done.stderr, set(imported.split())


def test_commands_are_found():
    assert len(SCRIPTS) > 30
    packages = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "megatv").rglob("__main__.py")}
    assert packages == set(MODULES.values())


@pytest.mark.parametrize("command", [*MODULES, *SCRIPTS])
def test_help_imports_nothing_heavy(command):
    code, said, imported = start(command, "--help")
    assert code == 0 and "usage: " in said
    assert not imported & HEAVY


OTHERS = {
    "launch/train.py": [],
    "tools/make_shards.py": ["--toy", "1", "--out", "unused"],
    "tools/plan.py": ["--gpus", "8"],
    "tools/build_dataset.py": ["--videos", "tests", "--out", "unused"],
    "tools/convert_ckpt.py": ["hf-to-megatv", "unused", "--out", "unused"],
}


@pytest.mark.parametrize("command", OTHERS)
def test_a_missing_config_is_told_at_once(command):
    code, said, imported = start(command, *OTHERS[command], "--config", "nowhere.yaml")
    assert code == 2 and "error: " in said and "nowhere.yaml" in said
    assert not imported & HEAVY


@pytest.mark.parametrize(
    "command", ["megatv.sample", "megatv.studio", *OTHERS, "tools/train_codec.py", "tools/score_toy_world.py"]
)
def test_a_wrong_option_is_told_at_once(command):
    code, said, imported = start(command, "--no-such-option")
    assert code == 2 and "usage: " in said
    assert not imported & HEAVY
