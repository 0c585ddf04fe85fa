"""Files of torch.save are read as data: equal tensors, or one sentence, and no more memory than the file."""

from __future__ import annotations

import io
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from megatv import state_dict


def read_state_dict(data: bytes) -> Any:
    return state_dict.read_state_dict(io.BytesIO(data))


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def with_pickle(program: bytes, *, compress: int = zipfile.ZIP_STORED, order: str = "little") -> bytes:
    """A zip as torch.save writes it, with another data.pkl and one storage of four floats."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compress) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", order)
        archive.writestr("archive/data/0", bytes(16))
    return buffer.getvalue()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQ"


def tensor(shape: bytes, strides: bytes, offset: bytes = b"K\x00") -> bytes:
    """A pickle of one tensor over the four floats, its sizes given as pickled tuples."""
    arguments = STORAGE + offset + shape + strides + b"\x89ccollections\nOrderedDict\n)R"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR."


def test_what_torch_saves_is_read_as_torch_reads_it() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    x = torch.arange(24.0).reshape(4, 6)
    state = {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "parameter": network[0].weight,
        "views": [x.t(), x[1:3, 2:], x[0]],
        "others": (torch.empty(0, 3), torch.tensor(3), torch.tensor([True, False]), x.bfloat16(), x.half()),
        "ordered": OrderedDict(a=1.5, b=None),
        7: "text",
    }
    expected = torch.load(io.BytesIO(saved(state)), weights_only=False)
    found = read_state_dict(saved(state))
    assert list(found) == list(state)
    for name, value in expected["model"].items():
        assert torch.equal(found["model"][name], value) and found["model"][name].dtype == value.dtype
    assert str(found["optimizer"]) == str(expected["optimizer"])
    assert torch.equal(found["parameter"], network[0].weight.detach())
    for key in ("views", "others"):
        assert [(v.dtype, v.tolist()) for v in found[key]] == [(v.dtype, v.tolist()) for v in expected[key]]
    assert found["ordered"] == {"a": 1.5, "b": None} and found[7] == "text"


class Calls:
    """Unpickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def test_nothing_that_a_pickle_names_is_called(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for protocol in (0, 2, 3, 4, 5):
        for call in (Calls(open, str(marker), "w"), Calls(exec, f"open({str(marker)!r}, 'w')")):
            data = with_pickle(pickle.dumps({"weight": call}, protocol))
            with pytest.raises(ValueError, match="no state dict needs"):
                read_state_dict(data)
            with pytest.raises(ValueError, match="no state dict needs"):
                read_state_dict(with_pickle(pickle.dumps(call, protocol)))
    assert not marker.exists()
    pickle.loads(pickle.dumps(Calls(open, str(marker), "w")))
    assert marker.exists()  # an unpickler would have written it


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (pickle.dumps({"a": Calls(bytearray, 10**12)}, 2), "names __builtin__ bytearray"),
        (b"\x80\x02ctorch\nTensor\n\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"\x85R.", "torch Tensor"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.", "but only 2 remain"),
        (b"\x80\x02r\xff\xff\xff\xffN.", "damaged"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x02}" + b"(K\x01K\x02" + b"K\x03u.", "damaged|zip"),
        (b"\x80\x02}" + b"N" + b"\x85" * 300_000 + b"K\x01s.", "neither texts nor integers"),
        (b"\x80\x02}K\x01", "exhausted before"),
        (b"", "exhausted before"),
        (tensor(b"\x8a\x05" + (1 << 34).to_bytes(5, "little") + b"\x85", b"K\x01\x85"), "damaged"),
        (tensor(b"K\x05\x85", b"K\x01\x85"), "damaged"),
        (tensor(b"K\x04\x85", b"K\x01\x85", b"K\x01"), "damaged"),
        (tensor(b"K\x04\x85", b"J\xff\xff\xff\xff\x85"), "damaged"),
        (tensor(b"\x8a\x09" + (1 << 70).to_bytes(9, "little") + b"\x85", b"K\x01\x85"), "damaged"),
        (tensor(text("4") + b"\x85", b"K\x01\x85"), "shape of at most 8 integers"),
        (tensor(b"K\x04\x85", b"K\x01\x85").replace(text("0"), text("../data.pkl")), "damaged"),
        (tensor(b"K\x04\x85", b"K\x01\x85").replace(b"FloatStorage", b"QInt8Storage"), "torch QInt8Storage"),
    ],
)
def test_programs_that_are_no_state_dict_are_refused(program: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_state_dict(with_pickle(program))
    assert read_state_dict(with_pickle(tensor(b"K\x04\x85", b"K\x01\x85"))).tolist() == [0.0] * 4


def test_zips_that_grow_or_are_damaged_are_refused() -> None:
    with pytest.raises(ValueError, match=r"claim more bytes"):
        read_state_dict(with_pickle(pickle.dumps({"a": "x" * 10**6}, 2), compress=zipfile.ZIP_DEFLATED))
    small = with_pickle(pickle.dumps({"a": 1}, 2), compress=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"compressed, which torch\.save never does"):
        read_state_dict(bytes(10**6) + small)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/constants.pkl", b"")
    with pytest.raises(ValueError, match="TorchScript, which is a program"):
        read_state_dict(buffer.getvalue())
    with pytest.raises(ValueError, match=r"without a data\.pkl"):
        read_state_dict(with_pickle(b"").replace(b"data.pkl", b"meta.pkl"))
    with pytest.raises(ValueError, match=r"data\.pkl of at most 1 MiB"):
        read_state_dict(with_pickle(bytes(5 << 20)))
    with pytest.raises(ValueError, match="little-endian"):
        read_state_dict(with_pickle(tensor(b"K\x04\x85", b"K\x01\x85"), order="big"))


def test_every_truncation_and_flipped_byte_is_read_or_refused_in_one_line() -> None:
    whole = saved({"weight": torch.arange(6.0), "bias": torch.zeros(2, 3)})
    for end in range(0, len(whole), 7):
        with pytest.raises(ValueError) as error:
            read_state_dict(whole[:end])
        assert "\n" not in str(error.value)
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        try:
            read_state_dict(bytes(damaged))
        except ValueError as error:
            assert "\n" not in str(error)


def test_a_zips_directory_is_bounded() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.comment = b"c" * 60_000
        for number in range(100):
            archive.writestr(f"{number}".ljust(60_000), b"")
    with pytest.raises(ValueError, match="whose directory has more than 4 MiB"):
        read_state_dict(buffer.getvalue())


def test_memory_stays_near_the_size_of_the_file(peak_source, tmp_path: Path) -> None:
    """Dicts copied into dicts, which take torch.load 100 times the file's size and more."""
    copies = b"ccollections\nOrderedDict\nq\x01)Rq\x00(" + b"".join(
        b"M" + struct.pack("<H", k) + b"N" for k in range(60_000)
    )
    program = b"\x80\x02](" + copies + b"u" + b"h\x01h\x00\x85R" * 20_000 + b"e."
    file = tmp_path / "bomb.pt"
    file.write_bytes(with_pickle(program))
    code = f"""
from megatv.state_dict import read_state_dict
file = open({str(file)!r}, "rb")
before = peak()
try:
    read_state_dict(file)
except ValueError as error:
    print(error)
print(peak() - before)
"""
    limit = (8 << 30, resource.RLIM_INFINITY)
    run = subprocess.run(
        [sys.executable, "-c", peak_source + code],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),
    )
    sentence, kilobytes = run.stdout.splitlines()
    assert "damaged" in sentence and int(kilobytes) < 100_000, run.stderr


def test_tensors_take_the_memory_of_their_file_once(peak_source: str, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1 << 26, dtype=torch.uint8)}, tmp_path / "a.pt")
    code = f"""
from pathlib import Path
from megatv.weights import read_tensors
before = peak()
found = read_tensors(Path({str(tmp_path / "a.pt")!r}))
print(peak() - before)
assert found["a"].shape == (1 << 26,) and found["a"].all()
"""
    run = subprocess.run(
        [sys.executable, "-c", peak_source + code], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 100 << 10  # KiB; two copies take 128 MiB


TWICE = b"K\x00q\x01" + b"h\x01h\x01\x86q\x01" * 60
"""A tuple that holds one tuple twice, which holds one twice ..., 60 times; it is memo 1."""
LONG = b"(" + b"K\x01" * 200_000 + b"tq\x01"
NAME = text("x" * 200_000) + b"q\x01" + text("x" * 200_000) + b"q\x02}"
COLLIDING = b"".join(b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"N" for k in range(70_000))
FOUR = tensor(b"K\x04\x85", b"K\x01\x85")[2:-1]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (TWICE + STORAGE.replace(text("0"), b"h\x01"), "a storage in it"),
        (TWICE + STORAGE.replace(b"ctorch\nFloatStorage\n", b"h\x01"), "a storage in it"),
        (TWICE + b"h\x01Q", "a storage in it"),
        (STORAGE.replace(text("0"), text("0" * 100_000)), "a storage in it"),
        (TWICE + b"}h\x01Ns", "neither texts nor integers"),
        (NAME + b"h\x01Ns" + b"h\x02Ns" * 100_000, "a key of more than 512 characters"),
        (b"}(" + COLLIDING + b"u", "integer key"),
        (TWICE + b"h\x01h\x01R", "calls a function in another way"),
        (TWICE + b"ctorch._utils\n_rebuild_parameter\nh\x01R", "a parameter in it"),
        (LONG + b"ctorch._utils\n_rebuild_parameter\nq\x02" + b"h\x02h\x01R" * 100_000, "another way"),
        (LONG + tensor(b"h\x01", b"h\x01")[2:-1], "shape of at most 8 integers"),
        (TWICE + tensor(b"h\x01", b"K\x01\x85")[2:-1], "shape of at most 8 integers"),
        (TWICE + tensor(b"h\x01\x85", b"K\x01\x85")[2:-1], "shape of at most 8 integers"),
        (TWICE + tensor(b"K\x04\x85", b"K\x01\x85", b"h\x01")[2:-1], "a tensor in it"),
        (FOUR + b"K\x00K\x01s", "something other than a dict"),
        (FOUR + b"K\x00a", "something other than a list"),
        (tensor(b"\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"\x85", b"K\x00\x85")[2:-1], "more numbers"),
        (TWICE + b"h\x01", "more than 1,048,576 values|nested too deeply"),
        (b"]q\x01h\x01a", "nested too deeply"),
        (b"K\x00" + b"\x85" * 900_000, "nested too deeply"),
        (b"S" + b"x" * 900_000 + b"\n", "no string quotes"),
    ],
)
def test_a_short_program_takes_little_time_whatever_it_describes(program: bytes, reason: str) -> None:
    """If a value were looked into, these would take minutes and more, gigabytes, or megabytes of text."""
    with pytest.raises(ValueError, match=reason) as caught:
        read_state_dict(with_pickle(b"\x80\x02" + program + b"."))
    assert len(str(caught.value)) <= 300
