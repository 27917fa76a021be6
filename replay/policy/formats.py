"""Values of headers that are made for each request, as Envoy writes them: `%REQ(NAME?OTHER):LENGTH%`, `%PROTOCOL%` and plain text, `%%` for a percent sign.

Only what a captured request tells: its headers, path, method and host. What a proxy alone knows (times, addresses, its name) raises ValueError.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from replay.policy.model import Change, Format, Part
from replay.policy.tree import Node

__all__ = ["formatted", "in_order", "parse"]

_MOST = 32  # parts
_COMMAND = re.compile(r"%%|%([A-Z_0-9]+)(?:\(([^()%]*)\))?(?::(\d+))?%|%", re.ASCII)
_NAME = re.compile(r"[!#$&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
_PSEUDO = {":path": "path", ":method": "method", ":authority": "authority", "host": "authority"}


def parse(text: str, *, keep_empty: bool = False) -> Format:
    """Raises ValueError for what has no value here, by its name."""
    parts: list[Part] = []
    plain, at = "", 0
    for found in _COMMAND.finditer(text):
        plain += text[at : found.start()]
        at = found.end()
        if found[0] == "%%":
            plain += "%"
            continue
        if found[1] is None:
            raise ValueError(f"{text!r}: a % that begins no format; write %% for the sign itself")
        if plain:
            parts.append(Part("text", plain))
        plain = ""
        parts.append(_command(found[0], found[1], found[2], found[3]))
    plain += text[at:]
    if plain:
        parts.append(Part("text", plain))
    if len(parts) > _MOST:
        raise ValueError(f"a format has at most {_MOST} parts, this one has {len(parts)}")
    return Format(text, tuple(parts), keep_empty)


def formatted(node: Node, text: str, *, keep_empty: bool = False) -> str | Format | None:
    """The value of a mesh's header change: plain text, or a Format; None and a warning where it has no value here."""
    try:
        made = parse(text, keep_empty=keep_empty)
    except ValueError as error:
        node.warning(f"{error}; the header is left alone")
        return None
    if any(part.what != "text" for part in made.parts):
        return made
    return "".join(part.value for part in made.parts)


def in_order(node: Node, changes: Sequence[Change]) -> None:
    """An error where a value is made of a header that a change before it has touched: values are made of the request as it was captured."""
    touched: set[str] = set()
    for _, name, value in changes:
        if isinstance(value, Format):
            for both in sorted(value.names() & touched):
                node.error(f"{value.text!r} reads the header {both!r}, which a change before it touches; that is not supported")
        touched.add(name.lower())


def _command(whole: str, name: str, arguments: str | None, length: str | None) -> Part:
    most = int(length) if length is not None else None
    if most is not None and most > 0xFFFF_FFFF:
        raise ValueError(f"{whole}: {length} is too long")
    if name == "PROTOCOL" and arguments is None and most is None:
        return Part("version")
    if name not in ("REQ", "REQUEST_HEADER") or arguments is None:
        raise ValueError(f"{whole} has no value here: only what the captured request holds is known (%REQ(NAME)%, %PROTOCOL%)")
    first, mark, other = arguments.partition("?")
    what, value = _source(whole, first)
    if not mark:
        return Part(what, value, most)
    return Part(what, value, most, *_source(whole, other))


def _source(whole: str, name: str) -> tuple[str, str]:
    name = name.strip().lower()
    if name in _PSEUDO:
        return _PSEUDO[name], ""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{whole}: {name!r} is no header that is known here")
    return "header", name
