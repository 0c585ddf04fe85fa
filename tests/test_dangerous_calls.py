"""Calls that can run code, open files or reach a network as an input asks: each only where that is safe.

A rule holds for every file of the project, so that a new file cannot fall behind an old promise.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatv.eval.human.cli import _parser as study_parser
from megatv.studio.cli import _parser as studio_parser

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for folder in ("megatv", "kernels", "launch", "tools") for path in (ROOT / folder).rglob("*.py")
)

FORBIDDEN = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "os.system": "gives text to a shell",
    "os.popen": "gives text to a shell",
    "pickle.load": "runs the code that a pickle names",
    "pickle.loads": "runs the code that a pickle names",
    "yaml.unsafe_load": "makes any object that YAML names",
    "yaml.full_load": "makes objects that YAML names",
    "marshal.loads": "reads code",
    "tarfile.open": "an archive may write outside its folder",
    "tempfile.mktemp": "another may make the file first",
}
ONLY_IN = {
    "json.load": (),
    # the last two read back what they have just written
    "json.loads": ("megatv/untrusted.py", "megatv/eval/human/report.py", "launch/slurm/what_next.py"),
    "torch.jit.load": ("megatv/weights.py",),
    "yaml.load": ("megatv/yaml_tree.py",),
    # the last two open pictures of their own
    "Image.open": ("megatv/data/picture_child.py", "tools/draw_studio.py", "tools/experiment_report.py"),
    "h5py.File": ("megatv/data/csgo_episode_child.py",),
}
"""Calls that are allowed in some files only: those files."""
MUST_SAY = {
    "torch.load": {"weights_only": True},
    "from_pretrained": {"local_files_only": True, "trust_remote_code": False},
}
"""Keyword arguments that a call must give, and their values."""


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call as (dotted name as it is written, node)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def arguments(call: ast.Call, tree: ast.AST) -> Iterator[tuple[str, str]]:
    """The keyword arguments of a call as they are written, those of a dictionary `**name` of the file too."""
    for keyword in call.keywords:
        if keyword.arg is not None:
            yield keyword.arg, ast.unparse(keyword.value)
        for node in ast.walk(tree) if keyword.arg is None else ():
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict)):
                continue
            if ast.unparse(node.target) == ast.unparse(keyword.value):
                pairs = zip(node.value.keys, node.value.values, strict=True)
                yield from ((k.value, ast.unparse(v)) for k, v in pairs if isinstance(k, ast.Constant))


def faults(source: str, file: str) -> list[str]:
    """What a file does that no file may do, a sentence each."""
    found = []
    tree = ast.parse(source)
    for name, node in calls(tree):
        where = f"{file}:{node.lineno}: {name}"
        said = dict(arguments(node, tree))
        last = name.rpartition(".")[2]
        if name in FORBIDDEN:
            found.append(f"{where} {FORBIDDEN[name]}")
        if name in ONLY_IN and file not in ONLY_IN[name]:
            found.append(f"{where} belongs into {', '.join(ONLY_IN[name]) or 'megatv.untrusted.parse_json'}")
        for asked, wanted in MUST_SAY.items():
            if name == asked or (last == asked and "." not in asked):
                missing = [f"{key}={value}" for key, value in wanted.items() if said.get(key) != str(value)]
                found += [f"{where} must be given {argument}" for argument in missing]
        if said.get("shell", "False") != "False":
            found.append(f"{where} gives text to a shell")
        if said.get("allow_pickle", "False") != "False":
            found.append(f"{where} reads pickles")
        if last in ("execute", "executemany", "executescript") and node.args and _built(node.args[0]):
            found.append(f"{where} puts values into SQL: give them as parameters")
        if last in ("create_server", "bind", "serve") and any("0.0.0.0" in ast.unparse(a) for a in node.args):
            found.append(f"{where} listens to everybody")
    return found


def _built(statement: ast.expr) -> bool:
    """Whether an SQL statement is put together from values when it runs."""
    if isinstance(statement, ast.JoinedStr):
        return any(isinstance(part, ast.FormattedValue) for part in statement.values)
    return isinstance(statement, ast.BinOp | ast.Call)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_makes_a_dangerous_call(path: Path) -> None:
    assert not faults(path.read_text(), str(path.relative_to(ROOT)))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("eval(text)", "runs text as code"),
        ("pickle.loads(data)", "runs the code"),
        ("subprocess.run(line, shell=True)", "to a shell"),
        ("subprocess.run(line, shell=flag)", "to a shell"),
        ("np.load(f, allow_pickle=True)", "reads pickles"),
        ("torch.load(f)", "weights_only=True"),
        ("torch.load(f, weights_only=False)", "weights_only=True"),
        ("AutoModel.from_pretrained(d, local_files_only=True)", "trust_remote_code=False"),
        ("json.loads(text)", "megatv/untrusted.py"),
        ("Image.open(f)", "megatv/data/picture_child.py"),
        ("c.execute(f'SELECT {x}')", "parameters"),
        ("c.execute('SELECT ' + x)", "parameters"),
        ("socket.create_server(('0.0.0.0', 1))", "everybody"),
    ],
)
def test_the_rules_can_fail(source: str, sentence: str) -> None:
    assert any(sentence in fault for fault in faults(source, "tools/new.py"))


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "torch.load(f, weights_only=True)",
        "c.execute('SELECT ?', (x,))",
        "subprocess.run([a])",
    ],
)
def test_the_rules_let_safe_calls_pass(source: str) -> None:
    assert not faults(source, "tools/new.py")


def test_servers_listen_on_this_machine_alone_by_default() -> None:
    studio = studio_parser().parse_args(["--checkpoint", "run"])
    study = study_parser().parse_args(["serve", "study.yaml"])
    assert studio.host == study.host == "127.0.0.1"
