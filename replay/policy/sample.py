"""Whether a mirror takes a request, outside of the engine: the same key, hash and threshold (docs/design.md S2)."""

from __future__ import annotations

from typing import Any

from replay import _fastpath
from replay.policy.model import MILLION, Mirror

__all__ = ["key_of", "taken"]


def _field(head: bytes, name: bytes) -> bytes | None:
    for line in head.split(b"\n")[1:]:
        field, colon, value = line.partition(b":")
        if colon and field.lower() == name:
            return value.strip(b" \t\r")
    return None


def _pair(pairs: bytes, between: bytes, name: bytes) -> bytes | None:
    for pair in pairs.split(between):
        key, equals, value = pair.partition(b"=")
        if equals and key.lstrip(b" \t") == name:
            return value.rstrip(b" \t") if between == b";" else value
    return None


def key_of(sample_by: str, row: dict[str, Any]) -> bytes | None:
    """The key of a row of a listing; None when the request lacks it."""
    kind, _, name = sample_by.partition(":")
    if kind in ("request", "connection"):
        ends = b"".join(address + port.to_bytes(2, "big") for address, port in (row["client"], row["server"]))
        return bytes(ends + row["seq"].to_bytes(4, "big") if kind == "request" else ends)
    if kind == "client-ip":
        return bytes(row["client"][0])
    if kind == "path":
        return bytes(row["target"].partition(b"?")[0])
    if kind == "header":
        return _field(row["head"], name.lower().encode())
    if kind == "cookie":
        cookie = _field(row["head"], b"cookie")
        return None if cookie is None else _pair(cookie, b";", name.encode())
    _, mark, query = row["target"].partition(b"?")
    return _pair(query, b"&", name.encode()) if mark else None


def taken(mirror: Mirror, row: dict[str, Any], seed: int) -> bool:
    """True when this mirror copies it. Limits on the number of copies are not looked at."""
    if mirror.max_body is not None and row["body_len"] > mirror.max_body:
        return False
    key = key_of(mirror.sample_by, row)
    if key is None:
        return False
    value = _fastpath.kernel_sample_hash(key, seed) << 32 if mirror.sample_by == "connection:kernel" else _fastpath.sample_hash(key, seed)
    return mirror.share == MILLION or value < (mirror.share << 64) // MILLION
