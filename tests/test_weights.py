"""Weights are data; TorchScript runs only when its bytes are the published ones or the user trusts them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from megatv.weights import (
    MAX_HEADER_BYTES,
    Published,
    is_finite,
    is_torchscript,
    load_torchscript,
    read_tensors,
    take,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Writes(nn.Module):
    """Writes a file when it is loaded, and one when it is called."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path, self.training = state[0], state[1]
        torch.save(torch.zeros(1), self.path + ".loaded")

    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, self.path + ".called")
        return x


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A TorchScript file that leaves `marker.loaded` and `marker.called` beside it."""
    file = tmp_path / "program.pt"
    torch.jit.script(Writes(str(tmp_path / "marker"))).save(str(file))
    for marker in tmp_path.glob("marker*"):
        marker.unlink()
    return file


def load(file: Path, published: Published, trust: bool = False) -> torch.jit.ScriptModule:
    return load_torchscript(file, "cpu", published, trust=trust, option="--trust-it")


def test_torchscript_is_not_even_loaded_without_its_hash_or_trust(program: Path) -> None:
    data = program.read_bytes()
    md5 = hashlib.md5(data).hexdigest()
    for published, reason in [
        (Published(), "no SHA-256 is known of such a file"),
        (Published(sha256="0" * 64), "its SHA-256 is not the published 0000"),
        (Published(md5=md5), r"no SHA-256 is published \(its MD5 is the published\)"),
        (Published(md5="0" * 32), r"no SHA-256 is published \(its MD5 is not the published\)"),
    ]:
        with pytest.raises(
            ValueError, match=rf"program\.pt: TorchScript can run any code.*{reason}.*--trust-it"
        ):
            load(program, published)
    with pytest.raises(ValueError, match="TorchScript, which is a program"):
        read_tensors(program)
    assert not list(program.parent.glob("marker*"))


def test_torchscript_of_the_published_hash_or_trusted_is_run(program: Path) -> None:
    load(program, Published(), trust=True)
    (program.parent / "marker.loaded").unlink()  # so it does write when it is loaded
    module = load(program, Published(sha256=hashlib.sha256(program.read_bytes()).hexdigest()))
    module(torch.zeros(1))
    assert {file.suffix for file in program.parent.glob("marker*")} == {".loaded", ".called"}


def test_the_hash_is_of_the_bytes_that_are_loaded(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is swapped right after it was hashed is not the one that runs."""
    good = tmp_path / "good.pt"
    torch.jit.script(nn.ReLU()).save(str(good))
    published = Published(sha256=hashlib.sha256(good.read_bytes()).hexdigest())
    real = hashlib.sha256

    def swap(data: bytes) -> object:
        good.write_bytes(program.read_bytes())
        return real(data)

    monkeypatch.setattr("megatv.weights.hashlib.sha256", swap)
    assert load(good, published)(torch.tensor([-1.0])) == 0
    assert not list(tmp_path.glob("marker*"))


def test_what_is_no_torchscript(tmp_path: Path) -> None:
    noise = tmp_path / "noise.pt"
    noise.write_bytes(b"PK\3\4 noise")
    assert not is_torchscript(noise)
    with pytest.raises(ValueError, match=r"noise\.pt: not a TorchScript file"):
        load(noise, Published(), trust=True)
    with pytest.raises(ValueError, match=r"gone\.pt: no such file"):
        load(tmp_path / "gone.pt", Published(), trust=True)


def test_tensors_of_both_formats(tmp_path: Path) -> None:
    state = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    torch.save(state, tmp_path / "a.pt")
    save_file(state, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        found = read_tensors(tmp_path / name)
        assert found.keys() == state.keys() and all(torch.equal(found[k], v) for k, v in state.items())


@pytest.mark.parametrize(
    "data", [b"", b"noise", b"PK\3\4 noise", b"\xff" * 64, b"\x08" + bytes(7) + b"[[[[[[[["]
)
def test_noise_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(data)
    with pytest.raises(ValueError, match=r"w\.pt: .*; give tensors by name") as error:
        read_tensors(tmp_path / "w.pt")
    assert "\n" not in str(error.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"and may have {8 << 30:,}; give the weights of one network"):
        read_tensors(sparse(tmp_path / "sparse.pt", 9 << 30))


def sparse(file: Path, size: int) -> Path:
    """A hole of `size` bytes that begins as a zip does, and takes 4 KB of the disk."""
    with file.open("wb") as stream:
        stream.write(b"PK\3\4")
        stream.truncate(size)
    return file


def test_a_hole_that_begins_as_a_zip_is_refused_unread(tmp_path: Path, peak_source: str) -> None:
    file = sparse(tmp_path / "sparse.pt", 1 << 30)
    program = peak_source + (
        "from pathlib import Path\nfrom megatv.weights import *\n"
        f"file, before = Path({str(file)!r}), peak()\n"
        "def run(file):\n    load_torchscript(file, 'cpu', Published(), trust=True, option='')\n"
        "for read in (read_tensors, run):\n"
        "    try:\n        read(file)\n    except ValueError as error:\n        print(error)\n"
        "print(is_torchscript(file), peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    tensors, torchscript, last = done.stdout.splitlines()
    assert "a damaged zip (File is not a zip file)" in tensors and "not a TorchScript file" in torchscript
    assert last.startswith("False ") and int(last.split()[1]) < 50 << 10  # KiB


def test_weights_are_not_read_without_memory_for_them(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors take the file's length, TorchScript four times as much."""
    torch.save({"a": torch.ones(100)}, tmp_path / "a.pt")
    save_file({"a": torch.ones(100)}, tmp_path / "a.safetensors")
    trusted = {"published": Published(), "trust": True, "option": "", "device": "cpu"}
    for file, need in ((tmp_path / "a.pt", 1), (tmp_path / "a.safetensors", 1), (program, 4)):
        read = (lambda f: load_torchscript(f, **trusted)) if need == 4 else read_tensors
        size = need * file.stat().st_size
        monkeypatch.setattr("megatv.free_memory.available_bytes", lambda device, size=size: size)
        read(file)
        monkeypatch.setattr("megatv.free_memory.available_bytes", lambda device, size=size: size - 1)
        with pytest.raises(ValueError, match=rf"{file.name}: its weights take .* are free: free some"):
            read(file)


def test_taken_tensors_have_the_names_shapes_and_numbers(tmp_path: Path) -> None:
    like = {"a": torch.empty(3, 2, device="meta"), "n": torch.empty((), dtype=torch.int64, device="meta")}
    good = {"a": torch.ones(3, 2).half(), "n": torch.tensor(1), "more": torch.ones(9)}
    found = take(good, like, tmp_path)
    assert found.keys() == like.keys()
    for bad, reason in [
        ([], "'a' is missing instead of [3, 2]"),
        ({"n": torch.tensor(1)}, "'a' is missing"),
        ({**good, "a": [[1, 2]]}, "'a' is missing"),
        ({**good, "a": torch.ones(2, 3)}, "'a' is torch.float32 [2, 3] instead of floats [3, 2]"),
        ({**good, "a": torch.ones(3, 2).int()}, "'a' is torch.int32 [3, 2] instead of floats"),
        ({**good, "n": torch.tensor(1.0)}, "'n' is torch.float32 [] instead of torch.int64 []"),
        ({**good, "n": torch.tensor(True)}, "'n' is torch.bool [] instead of torch.int64 []"),
        ({**good, "a": torch.ones(3, 2).bool()}, "'a' is torch.bool [3, 2] instead of floats [3, 2]"),
        ({**good, "a": torch.full((3, 2), torch.nan)}, "'a' has numbers that are not finite"),
        ({**good, "a": torch.full((3, 2), -torch.inf).bfloat16()}, "'a' has numbers that are not finite"),
        (
            {**good, "a": torch.full((3, 2), 1e300, dtype=torch.float64)},
            "'a' has numbers that are not finite",
        ),
        ({**good, "a": torch.full((3, 2), torch.nan).to(torch.float8_e5m2)}, "'a' has numbers that are"),
        ({**good, "a": torch.ones(1).expand(3, 2)}, "'a' is torch.float32 [3, 2] instead"),
    ]:
        with pytest.raises(ValueError) as error:
            take(bad, like, tmp_path)
        assert reason in str(error.value)


def test_files_of_tensors_have_a_longest(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(100)}, tmp_path / "a.safetensors")
    size = (tmp_path / "a.safetensors").stat().st_size
    assert read_tensors(tmp_path / "a.safetensors", size)["a"].shape == (100,)
    with pytest.raises(ValueError, match=r"a\.safetensors: has \d+ bytes and may have"):
        read_tensors(tmp_path / "a.safetensors", size - 1)


def test_numbers_are_looked_at_without_a_whole_copy(peak_source: str) -> None:
    program = peak_source + (
        "from pathlib import Path\nimport torch\nfrom megatv.weights import take\n"
        "state = {'a': torch.zeros(1 << 28, dtype=torch.uint8).view(torch.float8_e4m3fn)}\n"
        "state['a'].view(torch.uint8).fill_(1)\n"
        "take({'a': state['a'][:8]}, {'a': torch.zeros(8)}, Path('a'))\n"
        "before = peak()\ntake(state, {'a': torch.empty(1 << 28, device='meta')}, Path('a'))\n"
        "print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100 << 10  # KiB; a whole copy as float32 takes 1 GiB


def test_a_header_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    """The library would take up to 100 MB of JSON."""
    for size, sentence in (
        (MAX_HEADER_BYTES, ""),
        (MAX_HEADER_BYTES + 8, "its header is longer than 32 MiB"),
    ):
        (tmp_path / "a.safetensors").write_bytes(size.to_bytes(8, "little") + b"{}".ljust(size))
        if sentence:
            with pytest.raises(ValueError, match=sentence):
                read_tensors(tmp_path / "a.safetensors")
        else:
            assert read_tensors(tmp_path / "a.safetensors") == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_finite_is_neither_nan_nor_infinite(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    assert is_finite(torch.tensor([largest, -largest, 0.0], dtype=dtype)) and is_finite(
        torch.empty(0, dtype=dtype)
    )
    for bad in (float("nan"), float("inf"), float("-inf")):
        assert not is_finite(torch.tensor([1.0, bad, 2.0], dtype=dtype))
