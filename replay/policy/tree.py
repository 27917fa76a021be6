"""YAML (and JSON) as a tree that knows its lines. What must live here: reading text. What it must not know: policies.

Scalars keep the text as it was written: `off`, `1.10` and `0x10` mean what the field says, not what YAML 1.1 makes of them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from replay.errors import UsageError
from replay.policy.diagnose import Diagnoses, nearest

__all__ = ["Node", "expand", "read"]

_MOST_BYTES = 32 << 20
_MOST_NODES = 500_000
_MOST_DEPTH = 100
_NAMES = (".yaml", ".yml", ".json")


@dataclass(slots=True)
class Node:
    """kind: `map` (value: dict of name to Node), `list` (of Node), `text` (str), `null` (None). key_lines: of a map's names."""

    kind: str
    value: Any
    file: str
    line: int
    field: str
    diagnoses: Diagnoses
    plain: bool = False  # text without quotes
    number: bool = False  # text that YAML reads as a number
    key_lines: dict[str, int] | None = None

    # -- saying what is wrong --

    def error(self, message: str) -> None:
        self.diagnoses.error(self.file, self.line, self.field, message)

    def warning(self, message: str) -> None:
        self.diagnoses.warning(self.file, self.line, self.field, message)

    def described(self) -> str:
        if self.kind == "map":
            return "a map"
        if self.kind == "list":
            return "a list"
        return "nothing" if self.kind == "null" else repr(self.value)

    # -- reading --

    def fields(self, known: tuple[str, ...], *, also: tuple[str, ...] = (), what: str = "") -> dict[str, Node]:
        """The fields of a map; an unknown one is an error with the nearest right name. also: known, but of no effect."""
        if self.kind == "null":
            return {}
        if self.kind != "map":
            self.error(f"expected a map{f' ({what})' if what else ''}, found {self.described()}")
            return {}
        found = {}
        for name, node in self.value.items():
            if name in known:
                found[name] = node
            elif name not in also:
                written = node.field.rpartition(".")[2]  # as in the file, where `name` may be its camelCase
                near = nearest(written, [_snake(one) for one in known] if "_" in written else known)
                self.diagnoses.error(self.file, (self.key_lines or {}).get(name, self.line), node.field, f"unknown field {written!r}{near}")
        return found

    def get(self, name: str) -> Node | None:
        """A field of a map that is there and not null."""
        node: Node | None = self.value.get(name) if self.kind == "map" else None
        return None if node is None or node.kind == "null" else node

    def at(self, *names: str) -> Node | None:
        node: Node | None = self
        for name in names:
            node = node.get(name) if node is not None else None
        return node

    def items(self, *, single: bool = False) -> list[Node]:
        """The elements of a list. single: one element may stand without a list."""
        if self.kind == "null":
            return []
        if self.kind == "list":
            return list(self.value)
        if single:
            return [self]
        self.error(f"expected a list, found {self.described()}")
        return []

    def pairs(self) -> Iterator[tuple[str, Node]]:
        """Names and values of a map whose names are free."""
        if self.kind == "null":
            return
        if self.kind != "map":
            self.error(f"expected a map, found {self.described()}")
            return
        yield from self.value.items()

    def text(self) -> str:
        """A scalar as it was written; an error and "" for anything else."""
        if self.kind == "text":
            return str(self.value)
        self.error(f"expected text, found {self.described()}")
        return ""

    def integer(self, least: int, most: int) -> int | None:
        text = self.value if self.kind == "text" else ""
        try:
            if len(text) > 30:
                raise ValueError
            value = int(text, 10)
        except ValueError:
            self.error(f"expected a whole number, found {self.described()}")
            return None
        if not least <= value <= most:
            self.error(f"{value} is out of range: {least:,} to {most:,}")
            return None
        return value

    def boolean(self) -> bool:
        word = self.value.lower() if self.kind == "text" else ""
        if word in ("true", "yes", "on"):
            return True
        if word not in ("false", "no", "off"):
            self.error(f"expected true or false, found {self.described()}")
        return False

    def parsed(self, parse: Callable[[str], Any]) -> Any:
        """What `parse` makes of the text; None and an error where it raises ValueError."""
        if self.kind != "text":
            self.error(f"expected text, found {self.described()}")
            return None
        try:
            return parse(self.value)
        except ValueError as error:
            self.error(str(error))
            return None

    def choice(self, words: tuple[str, ...]) -> str:
        word = self.text()
        if word and word not in words:
            self.error(f"{word!r} is none of {', '.join(words)}{_near(word, words)}")
        return word


def _snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name)


def _near(word: str, words: tuple[str, ...]) -> str:
    near = nearest(word, words)
    return near if "mean" in near else ""


def expand(words: tuple[str, ...]) -> list[str]:
    """Files that `words` stand for: files, folders (their .yaml, .yml and .json, deep), `-`. Raises UsageError."""
    found: list[str] = []
    for word in words:
        if word != "-" and os.path.isdir(word):
            inside = []
            for where, folders, names in os.walk(word):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                inside += [os.path.join(where, name) for name in sorted(names) if name.lower().endswith(_NAMES) and not name.startswith(".")]
            if not inside:
                raise UsageError(f"{word}: the folder holds no policy (no file named *.yaml, *.yml or *.json)")
            found += inside
        else:
            found.append(word)
    return list(dict.fromkeys(found))


def read(path: str, diagnoses: Diagnoses) -> list[Node]:
    """The documents of a file. Raises UsageError when it cannot be read; what is no YAML goes to `diagnoses`."""
    import sys

    try:
        if path == "-":
            data = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            with open(path, "rb") as file:
                if stat.S_ISDIR(os.fstat(file.fileno()).st_mode):
                    raise IsADirectoryError(21, "Is a directory")
                data = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > _MOST_BYTES:
        raise UsageError(f"{path}: larger than 32 MiB; that is no policy")
    return parse(data, "standard input" if path == "-" else path, diagnoses)


def parse(data: bytes | str, name: str, diagnoses: Diagnoses) -> list[Node]:
    """The documents of YAML text."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: list[Node] = []
    text = data if isinstance(data, str) else ""
    try:
        if isinstance(data, bytes):
            text = data.decode("utf-8-sig")
        builder = _Builder(name, diagnoses)
        for root in yaml.compose_all(text, Loader=loader):
            if root is not None:
                node = builder.node(root, "", 0)
                if node.kind != "null":
                    found.append(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 0
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        lines = text.splitlines()
        about = lines[line - 1] if 0 < line <= len(lines) else ""
        if "{{" in text and ("{{" in about or "{%" in about or not about.strip() or "{{" in text):
            problem += "; this looks like a template: render it first (helm template, kustomize build)"
        elif "\t" in about[: len(about) - len(about.lstrip())]:
            problem += "; indent with blanks, not tabs"
        diagnoses.error(name, line, "", f"no YAML: {problem}")
    except UnicodeDecodeError as error:
        diagnoses.error(name, data[: error.start].count(b"\n") + 1 if isinstance(data, bytes) else 0, "", f"no UTF-8 text (byte {error.start})")
    except RecursionError:
        diagnoses.error(name, 0, "", "nested too deeply")
    except _TooLarge as error:
        diagnoses.error(name, 0, "", str(error))
    return found


class _TooLarge(Exception):
    pass


class _Builder:
    """Makes Nodes of PyYAML's; bounds what aliases can blow up."""

    def __init__(self, file: str, diagnoses: Diagnoses) -> None:
        self.file = file
        self.diagnoses = diagnoses
        self.left = _MOST_NODES

    def node(self, one: Any, field: str, depth: int) -> Node:
        import yaml

        self.left -= 1
        if self.left < 0:
            raise _TooLarge(f"more than {_MOST_NODES:,} nodes (aliases count each time they are used)")
        if depth > _MOST_DEPTH:
            raise _TooLarge(f"nested more than {_MOST_DEPTH} deep")
        line = one.start_mark.line + 1
        if isinstance(one, yaml.MappingNode):
            return self.map(one, field, depth, line)
        if isinstance(one, yaml.SequenceNode):
            items = [self.node(item, f"{field}[{at}]", depth + 1) for at, item in enumerate(one.value)]
            return Node("list", items, self.file, line, field, self.diagnoses)
        if one.tag == "tag:yaml.org,2002:null":
            return Node("null", None, self.file, line, field, self.diagnoses)
        number = one.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        return Node("text", one.value, self.file, line, field, self.diagnoses, plain=one.style is None, number=number)

    def map(self, one: Any, field: str, depth: int, line: int) -> Node:
        import yaml

        found: dict[str, Node] = {}
        lines: dict[str, int] = {}
        merged: dict[str, Node] = {}
        for key, value in one.value:
            key_line = key.start_mark.line + 1
            name = key.value if isinstance(key.value, str) else None
            if name is None:
                hint = "; this looks like a template: render it first (helm template, kustomize build)" if isinstance(key, yaml.MappingNode) else ""
                self.diagnoses.error(self.file, key_line, field, f"a name is expected, not a map or a list{hint}")
                continue
            inner = self.node(value, f"{field}.{name}" if field else name, depth + 1)
            if key.tag == "tag:yaml.org,2002:merge":
                for source in inner.value if inner.kind == "list" else [inner]:
                    if source.kind == "map":
                        merged = source.value | merged
                continue
            if name in found:
                self.diagnoses.error(self.file, key_line, inner.field, f"{name!r} stands there more than once (first in line {lines[name]})")
                continue
            found[name] = inner
            lines[name] = key_line
        for name, inner in merged.items():
            found.setdefault(name, inner)
        return Node("map", found, self.file, line, field, self.diagnoses, key_lines=lines)
