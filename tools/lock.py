"""Resolve pyproject.toml into the files of launch/lock/: one version of each package, with its files' hashes.

    python -m venv /tmp/uv && /tmp/uv/bin/pip install --no-deps --require-hashes -r launch/lock/renew.txt
    PATH=$PATH:/tmp/uv/bin python tools/lock.py [--upgrade [NAME ...]]

Versions stay as they are where pyproject.toml still admits them; `--upgrade` takes the newest of all
packages, or of those named. Hashes are those that the index publishes for every file of a release: one lock
serves all machines (Linux and macOS, Python 3.11 to 3.13). No index is written into the files. Afterwards run
the tests, then `python tools/notice.py`, and commit all that changed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

from megatv.log import main_guard

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "launch" / "lock"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
HEADER = (
    "# Made by tools/lock.py. To install:\n"
    "# pip install --no-deps --require-hashes {wheels}-r launch/lock/{name}.txt\n"
)
WHEELS = "--only-binary :all: "
"""Of all files but `source`: no package's own build script runs."""
SOURCE = {"deepspeed"}
"""Packages that publish no wheels."""
# The part of every marker that says what [tool.uv] environments says already.
EVERYWHERE = (
    r" ; python_full_version < '3.14' and sys_platform != 'emscripten' and sys_platform != 'win32'(?= )"
)


def pins(text: str) -> dict[str, str]:
    """Version by package of a requirements file."""
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))


def locked() -> dict[str, dict[str, str]]:
    """What launch/lock/ holds now: version by package, by file."""
    return {path.stem: pins(path.read_text()) for path in sorted(LOCK.glob("*.txt"))}


def resolve(arguments: list[str], keep: dict[str, str], requirement: str = "") -> dict[str, str]:
    """Lines of a requirements file by package, as uv resolves `arguments` (a project, extras or groups).

    keep         versions that the answer must have
    requirement  one requirement beside `arguments`
    Raises ValueError with uv's own words where there is no answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        constraints, wanted = Path(folder) / "constraints.txt", Path(folder) / "wanted.in"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in keep.items()))
        wanted.write_text(requirement)
        command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"]
        command += ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url"]
        command += ["-c", str(constraints), *arguments, *([str(wanted)] if requirement else [])]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise ValueError("uv is not installed: see the first lines of tools/lock.py") from None
    if done.returncode:
        raise ValueError(f"uv found no versions that fit together:\n{done.stderr}")
    text = re.sub(EVERYWHERE, "", done.stdout).replace("python_full_version < '3.14' and ", "")
    entries = re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]
    return {re.split(r"[=\s]", entry, maxsplit=1)[0]: entry for entry in entries}


def lock(keep: dict[str, str], keep_apart: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """All files: lines by package, by file. Each package of training is in the first file that needs it.

    keep        versions to keep of what shares .venv
    keep_apart  the same of files with an environment of their own
    """
    project = ["pyproject.toml"]
    everything = resolve([*project, "--extra", "dev", "--group", "build"], keep)
    alone = {name: resolve(["--group", name, "--no-deps"], keep) for name in ("alone", "alone-data")}
    chosen = pins("".join(everything.values()))

    def needed(*arguments: str) -> set[str]:
        return set(resolve([*arguments], chosen))

    core = needed(*project)
    parts = {
        "build": needed("--group", "build"),
        "source": SOURCE,
        # On Linux torch's default build asks for CUDA's libraries and for triton, which is the extra `gpu`.
        "torch": {"torch"},
        "cuda": {name for name in core if re.match(r"(nvidia|cuda)-", name)},
        "core": core - {"triton"},
        "gpu": needed(*project, "--extra", "gpu"),
        "data": needed(*project, "--extra", "data"),
        "dev": set(everything),
    }
    files: dict[str, dict[str, str]] = {}
    seen: set[str] = set()
    for file, names in parts.items():
        files[file] = {name: everything[name] for name in names - seen}
        seen |= names
    files["core"] |= alone["alone"]
    files["data"] |= alone["alone-data"]
    for name in ("audit", "renew"):
        files[name] = resolve(["--group", name], keep_apart.get(name, {}))
    return files


def cpu_torch(version: str) -> dict[str, str]:
    """Torch's CPU builds of PyTorch's own index: PyPI has none for Linux."""
    found = resolve(["--no-deps", "--default-index", CPU_INDEX], {}, f"torch=={version}+cpu\n")
    return {"torch": found["torch"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--upgrade", nargs="*", metavar="NAME", help="take the newest of all, or of these")
    args = parser.parse_args()
    old = locked()

    def kept(file: str) -> dict[str, str]:
        """Versions of a file of launch/lock/, by package, without those that are to be upgraded."""
        drop = old[file] if args.upgrade == [] else args.upgrade or []
        return {name: version for name, version in old[file].items() if name not in drop}

    apart = ("audit", "renew", "torch-cpu")
    shared = {name: version for file in old if file not in apart for name, version in kept(file).items()}
    files = lock(shared, {file: kept(file) for file in old if file in apart})
    torch = pins(files["torch"]["torch"])["torch"]
    if old.get("torch-cpu") != {"torch": f"{torch}+cpu"}:
        files["torch-cpu"] = cpu_torch(torch)
    LOCK.mkdir(exist_ok=True)
    for name, entries in files.items():
        lines = [entries[package] for package in sorted(entries)]
        wheels = "" if name == "source" else WHEELS
        (LOCK / f"{name}.txt").write_text(HEADER.format(name=name, wheels=wheels) + "".join(lines))
        print(f"launch/lock/{name}.txt: {len(lines)} packages")


if __name__ == "__main__":
    main_guard(main)
