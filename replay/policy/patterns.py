"""Regular expressions of policies: RE2, as in Envoy, of the whole text. Linear in time whatever the text is.

With the extra `policy` (google-re2) all of RE2. Without it only what needs no such engine: literal text (escaped where needed), which may end in `.*`.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

from replay import extras

__all__ = ["Pattern", "compile_pattern", "substitute"]


class Pattern(Protocol):
    """A compiled expression. `fullmatch` gives None where the bytes do not match as a whole."""

    def fullmatch(self, text: bytes, /) -> Any: ...


_LITERAL = re.compile(r"\^?((?:[\w\s/:;,@%&=~'\"<>!#-]|\\[^\w\s])*)(\.\*)?\$?", re.ASCII)


def _engine() -> Any:
    try:
        import re2
    except ImportError:
        return None
    return re2


def compile_pattern(text: str, *, ignore_case: bool = False) -> Pattern:
    """Raises ValueError with what is wrong."""
    engine = _engine()
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > 4096:
        raise ValueError("the regular expression is longer than 4,096 bytes")
    if engine is None:
        found = _LITERAL.fullmatch(text)
        if found is None:
            raise ValueError(
                f"the regular expression {text!r} needs RE2: {extras.how('policy')}; without it only literal text that may end in .* works"
            )
        return re.compile(data.removeprefix(b"^").removesuffix(b"$"), (re.IGNORECASE if ignore_case else 0) | re.DOTALL)
    options = engine.Options()
    options.log_errors = False
    options.case_sensitive = not ignore_case
    try:
        compiled: Pattern = engine.compile(data, options)
    except engine.error as error:
        why = error.args[0].decode("utf-8", "replace") if error.args and isinstance(error.args[0], bytes) else str(error)
        more = "; RE2 has no lookaround and no back references" if re.search(r"\(\?[=!<]|\\\d", text) else ""
        raise ValueError(f"{text!r} is no RE2 regular expression: {why}{more}") from None
    return compiled


def substitute(pattern: str, replacement: str) -> Any:
    """A function bytes -> bytes that replaces every match; \\1 to \\9 stand for groups. Raises ValueError."""
    compiled: Any = compile_pattern(pattern)
    data = replacement.encode("utf-8", "surrogateescape")
    groups = compiled.groups
    for digit in re.findall(rb"\\(.)", data):
        if digit != b"\\" and (not digit.isdigit() or int(digit) > groups):
            raise ValueError(f"{replacement!r}: \\{digit.decode('latin-1')} stands for no group; the expression has {groups}")
    return lambda text: compiled.sub(data, text)
