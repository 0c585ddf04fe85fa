"""Reads what `torch.save` wrote of tensors in dicts, without unpickling: a stranger's file is only data here.

The file is a zip: `data.pkl` tells names, shapes and places, `data/0`, `data/1` ... hold the bytes. Python's
pickle is a program that may call anything. `torch.load(weights_only=True)` calls little, but
a few hundred bytes still make it allocate any memory (`bytearray(n)`, dicts copied again and again) or
overflow the stack. This reader knows only the operations that dicts of tensors need, and entries that are
stored. Of an open file it reads the zip's directory first and then entry by entry, so it takes the memory of
the tensors, which is at most the file's length, and at most some 100 MB.

A few operations can also describe a tree of billions of values, since a tuple may hold another one twice.
So no operation looks into a value: each checks the types of its operands first, and what is hashed, compared
or printed is a short text or a small integer. Time and memory grow with the length of the program alone.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Callable
from itertools import islice
from types import FunctionType
from typing import Any, BinaryIO

import torch
from torch import Tensor

MAX_PICKLE_BYTES = 1 << 20
"""Of `data.pkl`: enough for some eight thousand tensors."""
MAX_READ_BYTES = 4 << 20
"""Read of a zip at once, as its directory is: 91,180 entries at most, each half a kilobyte in Python."""
PIECE_BYTES = 1 << 20
"""Of a tensor that are read at once."""
MAX_NAME = 512
"""Characters of a tensor's name, and of a storage's."""
MAX_INTEGER_KEY = 1 << 20
"""Of a dict's keys: optimizers number their parameters. Large ones could be chosen to collide as hashes."""
MAX_DIMENSIONS = 8
MAX_VALUES, MAX_LEVELS = 1 << 20, 32
"""Of what is returned, counted as a tree: whoever walks it is done soon."""
DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
"""By the name of their storage, as in `torch FloatStorage`."""


class _BoundedReads(io.BufferedReader):
    """A zip, whose end may claim a directory of any length. To the end zipfile only reads the last 64 KiB."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_READ_BYTES:
            raise ValueError(f"a zip whose directory has more than {MAX_READ_BYTES >> 20} MiB")
        return super().read(size)


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """The zip in a file open for reading, of which the end and the directory alone are read.

    Raises ValueError, zipfile.BadZipFile and whatever else damage makes of zipfile.
    """
    return zipfile.ZipFile(_BoundedReads(file))  # type: ignore[arg-type]  # a RawIOBase, by its annotation


def is_program(archive: zipfile.ZipFile) -> bool:
    """Whether a zip is TorchScript, by the entries that `torch.jit.save` writes beside the code."""
    return any(name.endswith(("/constants.pkl", "/model.json")) for name in archive.namelist())


def read_state_dict(file: BinaryIO) -> Any:
    """The dicts, lists, numbers, texts and tensors in a file of `torch.save`, open for reading.

    Raises ValueError with the reason for everything that such a file does not hold.
    """
    size = file.seek(0, io.SEEK_END)
    try:
        with open_zip(file) as archive:
            return _read(archive, size)
    except zipfile.BadZipFile as error:
        raise ValueError(f"a damaged zip ({str(error)[:200]})") from None
    except ValueError as error:
        raise ValueError(str(error)[:300]) from None
    except Exception as error:  # whatever wrong operands, sizes and names make of Python, zipfile and PyTorch
        raise ValueError(f"damaged ({type(error).__name__}: {str(error).strip()[:200]})") from None


def _read(archive: zipfile.ZipFile, size: int) -> Any:
    entries = archive.infolist()
    names = {entry.filename for entry in entries}
    if is_program(archive):
        raise ValueError("TorchScript, which is a program")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("its entries claim more bytes than the file has")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("its entries are compressed, which torch.save never does")
    pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
        raise ValueError(f"a zip without a data.pkl of at most {MAX_PICKLE_BYTES >> 20} MiB")
    root = pickles[0].filename.removesuffix("data.pkl")
    if f"{root}byteorder" in names and _content(archive, f"{root}byteorder") != b"little":
        raise ValueError("its numbers are not little-endian")
    buffers: dict[str, Tensor] = {}

    def storage(saved: Any) -> Tensor:
        """All numbers of the storage that `saved`, ("storage", type, key, device, count), names."""
        if type(saved) is not tuple or len(saved) != 5:
            raise ValueError("a storage in it is not named as torch.save does")
        _, dtype, key, _, _ = saved
        if type(dtype) is not torch.dtype or type(key) is not str or len(key) > MAX_NAME:
            raise ValueError("a storage in it is not named as torch.save does")
        if key not in buffers:
            content = _content(archive, f"{root}data/{key}")
            buffers[key] = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0).byte()
        return buffers[key].view(dtype)

    value = _build(archive.read(pickles[0]), storage)
    _check_size(value)
    return value


def _content(archive: zipfile.ZipFile, name: str) -> bytearray:
    """An entry's bytes, in memory once; BadZipFile for a wrong checksum or fewer bytes than it claims."""
    content = bytearray(archive.getinfo(name).file_size)
    place = 0
    with archive.open(name) as stream:
        while piece := stream.read(PIECE_BYTES):
            content[place : place + len(piece)] = piece
            place += len(piece)
    if place != len(content):
        raise zipfile.BadZipFile(f"{name} ends early")
    return content


def _build(program: bytes, storage: Callable[[Any], Tensor]) -> Any:
    """The object that a pickle describes; `storage` turns its persistent ids into tensors."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop(count: int) -> list[Any]:
        items = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return items

    value: Any
    for operation, value, _ in pickletools.genops(program):
        match operation.name:
            case "PROTO":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[operation.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(value)
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[operation.name])
            case "GLOBAL":
                stack.append(_known(value))
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(pop(len(stack) - marks.pop())))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop(int(operation.name[-1]))))
            case "APPEND" | "APPENDS":
                items = pop(1 if operation.name == "APPEND" else len(stack) - marks.pop())
                if type(stack[-1]) is not list:
                    raise ValueError("its pickle appends to something other than a list")
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = pop(2 if operation.name == "SETITEM" else len(stack) - marks.pop())
                if type(stack[-1]) is not dict:
                    raise ValueError("its pickle sets items of something other than a dict")
                for key, item in zip(items[::2], items[1::2], strict=True):
                    stack[-1][_checked_key(key)] = item
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "BINPERSID":
                stack.append(storage(stack.pop()))
            case "REDUCE":
                function, arguments = pop(2)
                if type(function) is not FunctionType or type(arguments) is not tuple or len(arguments) > 8:
                    raise ValueError("its pickle calls a function in another way than torch.save does")
                stack.append(function(*arguments))
            case "BUILD":
                stack.pop()  # the versions of modules, which a state dict carries as an attribute
            case "STOP":
                return stack.pop()
            case name:
                raise ValueError(f"its pickle holds the operation {name}, which no state dict needs")
    raise AssertionError("pickletools reads to STOP or raises")


def _checked_key(key: Any) -> str | int:
    """A key of a dict that costs little to hash and to compare."""
    if type(key) is str:
        if len(key) > MAX_NAME:
            raise ValueError(f"a dict in it has a key of more than {MAX_NAME} characters")
    elif type(key) is not int:
        raise ValueError("a dict in it has keys that are neither texts nor integers")
    elif not 0 <= key < MAX_INTEGER_KEY:
        raise ValueError(f"a dict in it has an integer key that is not from 0 to {MAX_INTEGER_KEY - 1:,}")
    return key


def _check_size(value: Any) -> None:
    """Refuse what holds itself, or the same lists and tuples so often that it is a huge tree to a reader."""
    level: list[Any] = [[value]]
    left = MAX_VALUES
    for _ in range(MAX_LEVELS):
        inner = (i for outer in level for i in (outer.values() if isinstance(outer, dict) else outer))
        values = list(islice(inner, left + 1))
        left -= len(values)
        if left < 0:
            raise ValueError(f"it holds more than {MAX_VALUES:,} values")
        level = [value for value in values if isinstance(value, dict | list | tuple)]
        if not level:
            return
    raise ValueError(f"it is nested too deeply, more than {MAX_LEVELS} levels")


def _known(name: str) -> Any:
    """What a pickle may name, as `module name`: a type of numbers, or one of three functions of ours."""
    if name.startswith("torch ") and (kind := name[6:].removesuffix("Storage")) in DTYPES:
        return DTYPES[kind]
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    raise ValueError(f"its pickle names {name[:80]}, which no state dict needs")


def _dict() -> dict[Any, Any]:
    return {}


def _tensor(numbers: Tensor, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
    for sizes in (shape, strides):
        if type(sizes) is not tuple or len(sizes) > MAX_DIMENSIONS or any(type(n) is not int for n in sizes):
            raise ValueError(f"a tensor in it has no shape of at most {MAX_DIMENSIONS} integers")
    if type(numbers) is not Tensor or type(offset) is not int:
        raise ValueError("a tensor in it is not described as torch.save does")
    tensor = numbers.as_strided(shape, strides, offset)  # PyTorch refuses what reaches beyond the numbers
    if tensor.numel() > numbers.numel():
        raise ValueError("a tensor in it has more numbers than the file holds of it")
    return tensor


def _parameter(tensor: Tensor, *_: Any) -> Tensor:
    if type(tensor) is not Tensor:
        raise ValueError("a parameter in it is no tensor")
    return tensor


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _dict,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
}
