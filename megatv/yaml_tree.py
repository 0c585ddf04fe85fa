"""YAML text to plain data and back, with the traps of the format closed and errors that say where."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from megatv.regular_file import open_regular

MAX_CHARACTERS = 1 << 20
MAX_NUMBER = 128
"""Characters of a number. `1:1:1` is one of base 60 and takes the square of its length."""
MAX_NODES = 100_000
"""Values in a text, those that an alias stands for counted each time: a few lines can stand for billions."""


def parse(text: str, where: str) -> Any:
    """Plain data of a YAML text; ValueError with `where` and the line, where it is known."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{where}: has more than {MAX_CHARACTERS} characters; shorten it")
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError(f"{where}: not valid YAML: nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{where}: not valid YAML: {line}{error.problem}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError):  # such as `!!bool x` and `!!int ""`
        raise ValueError(f"{where}: not valid YAML: a value is not what its tag (`!!...`) says") from None
    except (yaml.YAMLError, ValueError) as error:  # such as control characters, or the date 2026-99-99
        raise ValueError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


def dump(tree: Any) -> str:
    """YAML that `parse` reads back to an equal tree; keys stay in their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def read_yaml(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """A YAML file's sections as plain data, with overrides; ValueError names the file."""
    try:
        with open_regular(path, links=True) as file, io.TextIOWrapper(file, "utf-8") as text:
            tree = parse(text.read(MAX_CHARACTERS + 1), str(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give --config a YAML file") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not text; give --config a YAML file") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected sections such as `run:` and `model:` at the top level")
    for override in overrides:
        _override(tree, override)
    return tree


class _Loader(yaml.SafeLoader):
    """YAML with its traps closed: keys given twice and endless aliases are errors, and 3e-4 is a number."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes, self._sizes = 0, dict[int, int]()

    def compose_node(self, parent: Any, index: Any) -> Any:
        alias, before = self.check_event(yaml.AliasEvent), self._nodes
        mark = self.peek_event().start_mark
        node = super().compose_node(parent, index)
        self._nodes += self._sizes.get(id(node), MAX_NODES) if alias else 1
        if self._nodes > MAX_NODES:
            raise yaml.composer.ComposerError(
                problem=f"its aliases stand for more than {MAX_NODES} values", problem_mark=mark
            )
        self._sizes[id(node)] = self._nodes - before
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"key '{key.value}' is given twice; keep one", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _bounded(construct: Callable[[Any, Any], Any]) -> Callable[[_Loader, Any], Any]:
    """`construct` of a number, for short ones only."""

    def number(loader: _Loader, node: Any) -> Any:
        if len(loader.construct_scalar(node)) > MAX_NUMBER:
            raise yaml.constructor.ConstructorError(
                problem=f"a number of more than {MAX_NUMBER} characters", problem_mark=node.start_mark
            )
        return construct(loader, node)

    return number


_Loader.add_constructor("tag:yaml.org,2002:int", _bounded(yaml.SafeLoader.construct_yaml_int))
_Loader.add_constructor("tag:yaml.org,2002:float", _bounded(yaml.SafeLoader.construct_yaml_float))


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would read as numbers."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ValueError(f"override '{override}' must look like section.key=value")
    node = tree
    *sections, leaf = key.split(".")
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ValueError(f"override '{override}': '{section}' is a value, not a section")
    node[leaf] = parse(text, f"override '{override}'")
