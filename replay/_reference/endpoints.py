"""The name of an endpoint: method and path, identifiers folded. Plain Python, from the rules of docs/design.md (J1)."""

from __future__ import annotations

import re

__all__ = ["fold"]

ROOM = 256


def fold(method: bytes, target: bytes) -> bytes:
    """`GET /users/{n}`; what is beyond ROOM bytes is cut."""
    path = re.split(rb"[?#]", target, maxsplit=1)[0]
    return (method[:32] + b" " + b"/".join(_segment(segment.partition(b";")[0]) for segment in path.split(b"/")))[:ROOM]


def _segment(segment: bytes) -> bytes:
    if re.fullmatch(rb"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", segment):
        return b"{uuid}"
    if re.fullmatch(rb"\d{4}-\d\d-\d\d", segment):
        return b"{date}"
    if b"@" in segment or b"%40" in segment:
        return b"{mail}"
    return re.sub(rb"[0-9A-Za-z]+", lambda match: _token(match[0], segment[match.start() - 1 : match.start()] or b"/"), segment)


def _token(token: bytes, before: bytes) -> bytes:
    digits = sum(48 <= c <= 57 for c in token)
    if digits == len(token):
        return b"{n}" if digits >= 3 or before in (b"/", b"-", b"_", b":") else token
    if len(token) >= 8 and digits and re.fullmatch(rb"[0-9A-Fa-f]+", token):
        return b"{hex}"
    if len(token) >= 16 and digits >= 2:
        return b"{id}"
    return re.sub(rb"\d{3,}\Z", b"{n}", token)
