"""Plain data to dataclasses and back, strictly: an unknown key, a missing key or a wrong type is an error."""

from __future__ import annotations

import difflib
import math
import os
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass, replace
from typing import Annotated, Any, Literal

_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 2, 100, 100, 60
_LIMIT = 2**63
"""No number reaches it: larger ones fit neither a float nor a tensor's size."""

Place = Annotated[str, "a path"]
"""The type of a field that holds a path or a URL; see `with_home`."""


def build(cls: Any, tree: Any) -> Any:
    """Make the dataclass `cls` from plain data.

    Fields may be int, float, bool, str, Literal, tuples of these, dataclasses, and any of them
    `| None`. Ints pass as floats and lists as tuples; nothing else is converted.
    Raises ValueError with the dotted key and the remedy, in a short message whatever the tree holds.
    """
    return _section(cls, tree, "", _paths(cls))


def with_home(tree: Any) -> Any:
    """A dataclass that `build` made of a user's own text, with `~` and `~name` at the start of every `Place`
    replaced by the home folder. Raises ValueError, with the key, where there is no such user.
    """
    changes: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(type(tree), include_extras=True).items():
        value = getattr(tree, name)
        try:
            if is_dataclass(value):
                changes[name] = with_home(value)
            elif isinstance(value, tuple):
                changes[name] = tuple(with_home(v) if is_dataclass(v) else v for v in value)
            elif isinstance(value, str) and Place in (hint, *typing.get_args(hint)):
                changes[name] = _at_home(value)
        except ValueError as error:
            raise ValueError(f"{name}{'.' if is_dataclass(value) else ' '}{error}") from None
    return replace(tree, **changes)


def _at_home(place: str) -> str:
    found = os.path.expanduser(place)
    if place.startswith("~") and found == place:
        raise ValueError(
            f"is {short(place)}: `~` stands for a home folder, and there is none of that name; write "
            f"./{place[:40]} for a folder that is called so"
        )
    return found


def plain(value: Any) -> Any:
    """The plain data of a dataclass, from which `build` makes an equal one: dicts, lists and values."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (tuple, list)) else value


def short(value: Any) -> str:
    """A value for a message, cut short: YAML aliases can make a tree that contains itself, or a huge one."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python prints no number of more than 4,300 digits
        return "a number with too many digits"


def _section(cls: Any, tree: Any, where: str, paths: list[str]) -> Any:
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where or 'the config'} must be a section with keys, got {short(tree)}")
    prefix = f"{where}." if where else ""
    known = {f.name: f for f in fields(cls)}
    for key in tree:
        if key not in known:
            name = key[:100] if isinstance(key, str) else short(key)
            inside = next(iter(tree[key]), None) if isinstance(tree[key], Mapping) else None
            raise ValueError(_unknown(name, inside, prefix, list(known), paths))
    hints = typing.get_type_hints(cls)
    for name, f in known.items():
        if name not in tree and _required(f):
            raise ValueError(f"key '{prefix}{name}' is missing: add it, it has no default")
    return cls(**{name: _value(hints[name], tree[name], prefix + name, paths) for name in tree})


def _value(hint: Any, value: Any, where: str, paths: list[str]) -> Any:
    """Check one value against its field's type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (hint,) = [a for a in args if a is not type(None)]
        return _value(hint, value, where, paths)
    if origin is Literal:
        if not any(type(value) is type(a) and value == a for a in args):
            raise ValueError(f"{where} is {short(value)}: choose one of {', '.join(map(str, args))}")
        return value
    if origin is tuple and args[-1] is ...:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where} must be a list, got {short(value)}")
        return tuple(_value(args[0], v, f"{where}[{i}]", paths) for i, v in enumerate(value))
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(args):
            raise ValueError(f"{where} must be a list of {len(args)} values, got {short(value)}")
        pairs = enumerate(zip(args, value, strict=True))
        return tuple(_value(a, v, f"{where}[{i}]", paths) for i, (a, v) in pairs)
    if is_dataclass(hint):
        return _section(hint, value, where, paths)
    if type(value) is int and not -_LIMIT < value < _LIMIT:
        raise ValueError(f"{where} is {short(value)}: it must be below 2^63")
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if hint is str and type(value) is str and ("\0" in value or not _is_unicode(value)):
        raise ValueError(f"{where} is {short(value)}: it must be text in UTF-8, without NUL")
    if hint is not float and type(value) is hint:
        return value
    raise ValueError(f"{where} must be {_WORDS[hint]}, got {short(value)}")


def _required(f: Field) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _is_unicode(text: str) -> bool:
    """Whether it has no half of a character, as stands for a byte of the command line that is no UTF-8."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _unknown(key: str, inside: Any, prefix: str, known: list[str], paths: list[str]) -> str:
    """That there is no such key, and what may be meant.

    inside  the first key of the section that stands there, if one does
    The nearest key of the section, else the keys of other sections of that name or nearest to it, else all.
    """
    if close := difflib.get_close_matches(key, known, 1):
        return f"unknown key '{prefix}{key}'; did you mean '{prefix}{close[0]}'?"
    leaf = key
    if isinstance(inside, str):
        key, leaf = f"{key}.{inside[:100]}", inside
    leaves = {path: path.rpartition(".")[2] for path in paths}
    near = [leaf] if leaf in leaves.values() else difflib.get_close_matches(leaf, leaves.values(), 1, 0.8)
    if near:
        meant = [f"'{path}'" for path, name in leaves.items() if name == near[0]][:4]
        return f"unknown key '{prefix}{key}'; did you mean {' or '.join(meant)}?"
    return f"unknown key '{prefix}{key}'; known keys: {', '.join(known)}"


def _paths(cls: Any) -> list[str]:
    """Dotted names of all keys below a dataclass."""
    return list(_walk(cls, ""))


def _walk(cls: Any, prefix: str) -> Iterator[str]:
    for name, hint in typing.get_type_hints(cls).items():
        yield prefix + name
        for inner in (hint, *typing.get_args(hint)):
            if is_dataclass(inner):
                yield from _walk(inner, f"{prefix}{name}.")
