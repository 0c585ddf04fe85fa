"""YAML text to plain data and back, with the traps of the format closed and errors that say where."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

MAX_CHARACTERS = 1 << 20


def parse(text: str, where: str) -> Any:
    """Plain data of a YAML text; ValueError with `where` and, mostly, the line."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{where}: has more than {MAX_CHARACTERS} characters; a config is a page")
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError(f"{where}: not valid YAML: nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{where}: not valid YAML: {line}{error.problem}") from None
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # such as control characters, the date 2026-99-99, or a tag that its value does not fit: !!int ""
        raise ValueError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


def dump(tree: Any) -> str:
    """YAML that `parse` reads back to an equal tree; keys stay in their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def read_yaml(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """A YAML file's sections as plain data, with overrides; ValueError names the file."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            tree = parse(file.read(MAX_CHARACTERS + 1), str(path))
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
    """YAML with three of its traps closed: a key given twice is an error, 3e-4 is a number, `<<` is nothing.

    Merging (`<<`) copies, and a few lines that merge each other would fill the memory.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.tag == "tag:yaml.org,2002:merge":
                    raise yaml.constructor.ConstructorError(
                        problem="sections are not merged (<<); write the keys out",
                        problem_mark=key.start_mark,
                    )
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"key '{key.value}' is given twice; keep one", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


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
