"""YAML text to plain data and back, with the traps of the format closed and errors that say where.

Plain values are read by YAML 1.2's core schema (chapter 10.3), where YAML 1.1, PyYAML's, knows more: 010 is
10, not 8; 1:30, yes, on, 1_000 and 2026-12-01 are texts, not 90, true, true, 1000 and a date. Tags (`!!int`)
are refused.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from megatv.regular_file import open_regular

MAX_CHARACTERS = 1 << 20
MAX_NUMBER = 128
"""Characters of a number."""
MAX_NODES = 100_000
"""Values in a text, those that an alias stands for counted each time: a few lines can stand for billions."""
CORE = {
    "null": re.compile(r"(~|null|Null|NULL|)\Z"),
    "bool": re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"),
    "int": re.compile(r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"),
    "float": re.compile(
        r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
    ),
}
"""Plain values that are no texts, the first kind that fits."""


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
    except (yaml.YAMLError, ValueError) as error:  # such as control characters
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
    """The core schema, where keys given twice, tags and endless aliases are errors."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes, self._sizes = 0, dict[int, int]()

    def compose_node(self, parent: Any, index: Any) -> Any:
        event, alias, before = self.peek_event(), self.check_event(yaml.AliasEvent), self._nodes
        if getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(
                problem=f"the tag {event.tag[:40]} is not read; leave it out", problem_mark=event.start_mark
            )
        node = super().compose_node(parent, index)
        self._nodes += self._sizes.get(id(node), MAX_NODES) if alias else 1
        if self._nodes > MAX_NODES:
            raise yaml.composer.ComposerError(
                problem=f"its aliases stand for more than {MAX_NODES} values", problem_mark=event.start_mark
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

    def construct_core(self, node: yaml.ScalarNode) -> Any:
        """A value of the core schema that is no text."""
        if len(node.value) > MAX_NUMBER:
            raise yaml.constructor.ConstructorError(
                problem=f"a number of more than {MAX_NUMBER} characters", problem_mark=node.start_mark
            )
        return _core(node.value)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader`, or a reader of YAML 1.1, would not read as texts."""


_Loader.yaml_implicit_resolvers = {}  # none of YAML 1.1's
for _name, _pattern in CORE.items():
    for _yaml in (_Loader, _Dumper):
        _yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, None)
    _Loader.add_constructor(f"tag:yaml.org,2002:{_name}", _Loader.construct_core)
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<\Z"), ["<"])


def _kind(text: str) -> str:
    """The kind of a plain value."""
    return next((kind for kind, pattern in CORE.items() if pattern.match(text)), "text")


def _core(text: str) -> Any:
    """What a plain value stands for; a text is itself."""
    match _kind(text):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _override(tree: dict[str, Any], override: str) -> None:
    where = f"override '{override[:100]}'"
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ValueError(f"{where} must look like section.key=value")
    node = tree
    *sections, leaf = key.split(".")
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ValueError(f"{where}: '{section}' is a value, not a section")
    node[leaf] = _override_value(text, where)


def _override_value(text: str, where: str) -> Any:
    """A value on the command line: a list, a section or a quoted text of one line, else a plain value.

    A plain value is all that stands there: `runs/lr #2` has no comment in it, `&a b` no anchor.
    """
    if not text:
        raise ValueError(f"{where} gives no value: write null or '' if you mean that")
    if text[0] not in "[{'\"":
        if len(text) > MAX_NUMBER and _kind(text) != "text":
            raise ValueError(f"{where}: a number of more than {MAX_NUMBER} characters")
        return _core(text)
    value = parse(text, where)
    *tokens, _ = yaml.scan(text, yaml.SafeLoader)
    if "\n" in text or tokens[-1].end_mark.index < len(text) or not all(isinstance(t, _FLOW) for t in tokens):
        raise ValueError(f"{where}: must be a list, a section or a quoted text, without comments and anchors")
    return value


_FLOW = (
    *(yaml.StreamStartToken, yaml.FlowSequenceStartToken, yaml.FlowSequenceEndToken, yaml.FlowEntryToken),
    *(yaml.FlowMappingStartToken, yaml.FlowMappingEndToken, yaml.KeyToken, yaml.ValueToken, yaml.ScalarToken),
)
"""Tokens of a value on the command line: neither anchors, aliases and tags nor blocks."""
