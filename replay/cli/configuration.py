"""`--config`: the options of a command in YAML, each read as it would be typed.

A value is its text as it stands in the file: YAML 1.1 would make 8 of `010`, 90 of `1:30` and false of a bare `off`. What else it makes of a number or a date
counts only where the option cannot read the text (`1_000`, `2026-8-1 10:00:00`). Must not know: which options there are.
"""

from __future__ import annotations

import difflib
from typing import Any

import click
import yaml

from replay.cli.options import long_name
from replay.errors import UsageError

__all__ = ["load"]

_TAG = "tag:yaml.org,2002:"
#: What a plain text may be taken for without being told to: `=` and `<<` too.
_KINDS = {_TAG + kind: kind for kind in ("str", "int", "float", "bool", "null", "timestamp", "value", "merge")}


def load(ctx: click.Context, path: str) -> None:
    """Takes the values of a YAML file as defaults of this command's options. Raises UsageError with key, place and the nearest right one."""
    loader: yaml.SafeLoader | None = None
    try:
        with open(path, "rb") as file:
            loader = yaml.SafeLoader(file.read(1 << 20))
        pairs = _pairs(path, loader)
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UsageError(f"{path}{place}: no YAML: {getattr(error, 'problem', None) or error}") from None
    every = {long_name(param): param for param in ctx.command.params if isinstance(param, click.Option)}
    known = {name: param for name, param in every.items() if name not in ("config", "help", "version")}
    defaults: dict[str, Any] = {}
    for raw, node in pairs:
        key, where = _key(raw), f"{path}, line {raw.start_mark.line + 1}"
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            more = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(known))}"
            raise UsageError(f"{where}: unknown key {_shown(raw)}{more}")
        param = known[key]
        assert param.name is not None
        try:
            defaults[param.name] = _value(ctx, param, node)
            if not param.is_flag:
                param.type_cast_value(ctx, defaults[param.name])
        except ValueError as error:
            raise UsageError(f"{where}: {key}: {error}") from None
        except click.UsageError as error:
            raise UsageError(f"{where}: {key}: {error.message}") from None
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    ctx.meta["replay.config"] = path  # also one in which nothing stands yet: it is watched


def _key(node: yaml.Node) -> str:
    return str(node.value).strip().lstrip("-").replace("_", "-")


def _pairs(path: str, loader: yaml.SafeLoader) -> list[tuple[yaml.Node, yaml.Node]]:
    """Keys and values of the file, and merges (`<<`) resolved in it. Raises UsageError, YAMLError."""
    tree = loader.get_single_node()
    if tree is None or tree.tag == _TAG + "null":
        return []
    if not isinstance(tree, yaml.MappingNode):
        found = "list" if isinstance(tree, yaml.SequenceNode) else "single value"
        raise UsageError(f"{path}: expected keys and values like `percent: 5`, found a {found}")
    _refuse_doubles(path, [(key, _key(key)) for key, _ in tree.value], "")
    loader.flatten_mapping(tree)  # type: ignore[no-untyped-call,unused-ignore]
    seen = set()
    for key, node in tree.value:
        if isinstance(node, yaml.MappingNode) and id(node) not in seen:  # an anchor may stand for it in two places
            seen.add(id(node))
            _refuse_doubles(path, [(inside, str(inside.value)) for inside, _ in node.value], f" of {_key(key)}")
            loader.flatten_mapping(node)  # type: ignore[no-untyped-call,unused-ignore]
    return list(tree.value)


def _refuse_doubles(path: str, keys: list[tuple[yaml.Node, str]], of: str) -> None:
    names = [name for _, name in keys]
    for node, name in keys:
        if names.count(name) > 1:
            raise UsageError(f"{path}, line {node.start_mark.line + 1}: the key {str(node.value)!r}{of} stands there more than once")


def _value(ctx: click.Context, param: click.Option, node: yaml.Node) -> Any:
    """A node as the text, or the texts, that the option's type reads. Raises ValueError."""
    if param.is_flag:
        truth = _truth(node)
        if truth is None:
            raise ValueError(f"{_shown(node)} is neither true nor false")
        return truth
    if param.multiple and isinstance(node, yaml.MappingNode):
        return _joined(param, node)
    if isinstance(node, yaml.SequenceNode) and (param.multiple or param.name == "methods"):
        texts = [_text(ctx, param, one) for one in node.value]
        return texts if param.multiple else ",".join(texts)
    text = _text(ctx, param, node)
    return [text] if param.multiple else text


def _joined(param: click.Option, node: yaml.MappingNode) -> list[str]:
    """A map for an option that wants 'K: V' or NAME=ADDRESS, as such texts."""
    between = next((one for one in (": ", "=") if one in (param.metavar or "")), None)
    if between is None:
        raise ValueError("a map stands where single values belong; write a list")
    found = {}
    for key, value in node.value:
        name = str(key.value) if isinstance(key, yaml.ScalarNode) else _shown(key)
        if not isinstance(value, yaml.ScalarNode):
            raise ValueError(f"{name} has {_shown(value)} where one value belongs")
        if _KINDS.get(value.tag) == "null":
            raise ValueError(f"{name} has no value; leave it out, or quote it where a text is meant")
        found[name] = f"{name}{between}{value.value}"
    return list(found.values())


def _text(ctx: click.Context, param: click.Option, node: yaml.Node) -> str:
    """One value as it would be typed. Raises ValueError."""
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError(f"{_shown(node)} stands where one value belongs" + ("; write each in quotes, as it would be typed" if param.multiple else ""))
    text, kind = str(node.value), _KINDS.get(node.tag)
    truth = _truth(node)
    if kind is None or (kind == "bool" and truth is None):
        raise ValueError(f"the tag {node.tag.replace(_TAG, '!!')} means nothing here; leave it out")
    if kind == "null":
        raise ValueError("there is no value; leave the line out" + (f", or quote it where the text {text!r} is meant" if text else ""))
    if kind == "bool":
        if truth is False and "off" in param.type.name.split("|"):
            return "off"
        raise ValueError(f"a bare {text} says whether, and this wants a value; leave the line out, or quote it where the text {text!r} is meant")
    return text if kind not in ("int", "float", "timestamp") or _reads(ctx, param, text) else _made(node, text)


def _truth(node: yaml.Node) -> bool | None:
    """What a boolean says, as YAML 1.1 has it; None: it is none."""
    return yaml.SafeLoader.bool_values.get(str(node.value).lower()) if node.tag == _TAG + "bool" else None


def _reads(ctx: click.Context, param: click.Option, text: str) -> bool:
    try:
        param.type.convert(text, param, ctx)
    except click.UsageError:
        return False
    return True


def _made(node: yaml.ScalarNode, text: str) -> str:
    """What YAML makes of a number or a date, but nothing in sixties: `1:30`."""
    if ":" in text and node.tag != _TAG + "timestamp":
        return text
    try:
        value = yaml.SafeLoader("").construct_object(node)  # type: ignore[no-untyped-call,unused-ignore]
    except (yaml.YAMLError, ValueError, OverflowError):
        return text
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _shown(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else "a map" if isinstance(node, yaml.MappingNode) else repr(str(node.value))
