"""`--auth-file`: the credentials that the shadow service knows, in place of captured ones."""

from __future__ import annotations

import re

from replay.errors import UsageError

__all__ = ["Credentials", "HEADERS", "load"]

#: What `--credentials drop` removes.
HEADERS = (b"authorization", b"proxy-authorization", b"cookie", b"x-api-key", b"x-auth-token", b"x-csrf-token", b"x-xsrf-token", b"x-amz-security-token")

#: (one token for all that carry one, or None; pairs of old and new)
Credentials = tuple[bytes | None, tuple[tuple[bytes, bytes], ...]]

#: Of IANA's registry of HTTP authentication schemes, and others in use.
_SCHEMES = frozenset(
    "basic bearer digest dpop gnap hoba mutual negotiate oauth privatetoken scram-sha-1 scram-sha-256 vapid token apikey api-key hawk jwt"
    " aws4-hmac-sha256".split()
)

_MOST_BYTES = 256 << 20
_VALUE = r"[\x20-\x7e\x80-\U0010ffff\t]+"


def load(path: str) -> Credentials:
    """One token (a line), or a map: lines of `OLD NEW` (or `OLD -> NEW`, where blanks stand inside), or a JSON object. Raises UsageError with the line."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--auth-file {path}: {error.strerror}") from None
    if len(data) > _MOST_BYTES:
        raise UsageError(f"--auth-file {path}: larger than 256 MiB")
    text = data.decode("utf-8", "surrogateescape")
    if text.lstrip().startswith("{"):
        return None, tuple(_pairs_of_json(path, text))
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise UsageError(f"--auth-file {path}: there is nothing in it; write one token, or lines of OLD NEW")
    if len(lines) == 1 and "->" not in lines[0][1] and len(lines[0][1].split()) <= 2 and not _looks_like_a_pair(lines[0][1]):
        return _checked(path, lines[0][0], lines[0][1]), ()
    pairs = []
    for number, line in lines:
        old, arrow, new = line.partition("->")
        words = [old.strip(), new.strip()] if arrow else line.split()
        if len(words) != 2 or not all(words):
            raise UsageError(f"--auth-file {path}, line {number}: expected OLD NEW, or OLD -> NEW where a blank stands inside one of them")
        pairs.append((_checked(path, number, words[0]), _checked(path, number, words[1])))
    return None, tuple(pairs)


def _looks_like_a_pair(line: str) -> bool:
    """Two words of which the first is no scheme: a map of one line."""
    words = line.split()
    return len(words) == 2 and words[0].lower() not in _SCHEMES


def _pairs_of_json(path: str, text: str) -> list[tuple[bytes, bytes]]:
    import json  # a map in JSON is one way of several

    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--auth-file {path}: no JSON: {error}") from None
    if not found or not all(isinstance(new, str) and old and new for old, new in found.items()):
        raise UsageError(f'--auth-file {path}: expected an object of texts like {{"OLD": "NEW"}}')
    return [(_checked(path, 0, old), _checked(path, 0, new)) for old, new in found.items()]


def _checked(path: str, number: int, value: str) -> bytes:
    place = f", line {number}" if number else ""
    if not re.fullmatch(_VALUE, value.encode("utf-8", "surrogateescape").decode("latin-1")):
        raise UsageError(f"--auth-file {path}{place}: a control byte stands in a token")
    if len(value) > 65536:
        raise UsageError(f"--auth-file {path}{place}: a token of more than 64 KiB")
    return value.encode("utf-8", "surrogateescape")
