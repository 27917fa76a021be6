"""Envoy's URI templates (`/media/{country}/*`, `{path=**}.m3u8`) as regular expressions, and their rewriting as a substitution.

Written from Envoy's description of UriTemplateMatchConfig and UriTemplateRewriteConfig, and checked beside Envoy 1.40 (tests/test_envoy_parity.py).
"""

from __future__ import annotations

import re

__all__ = ["pattern", "rewrite"]

#: What a segment may hold (RFC 3986 A, pchar).
_SEGMENT = r"[a-zA-Z0-9\-._~%!$&'()*+,;:@=]"
_LITERAL = re.compile(_SEGMENT.replace("*", "") + "+", re.ASCII)
_VARIABLE = re.compile(r"\{([a-zA-Z][a-zA-Z0-9_]*)(?:=([^{}]+))?\}", re.ASCII)
_GLOBS = {"*": f"{_SEGMENT}+", "**": f"{_SEGMENT[:-1]}/]*"}


def pattern(template: str) -> str:
    """A regular expression of the whole path; its groups are the variables, in order. Raises ValueError."""
    return _parsed(template)[0]


def rewrite(template: str, new: str) -> tuple[str, str]:
    """(pattern, substitution) for paths that `template` matches. Raises ValueError."""
    expression, names = _parsed(template)
    if not new.startswith("/") or "//" in new:
        raise ValueError(f"{new!r} is no rewriting: it begins with / and holds no //")
    made, at = "", 0
    for found in re.finditer(r"\{([^{}]*)\}", new):
        made += _plain(new, new[at : found.start()])
        if found[1] not in names:
            raise ValueError(f"{new!r}: the template {template!r} has no variable {found[1]!r}")
        made += f"\\{names.index(found[1]) + 1}"
        at = found.end()
    return f"^{expression}$", made + _plain(new, new[at:])


def _plain(whole: str, text: str) -> str:
    if text and not all(part == "" or _LITERAL.fullmatch(part) for part in text.split("/")):
        raise ValueError(f"{whole!r} holds what cannot stand in a path")
    return text


def _parsed(template: str) -> tuple[str, list[str]]:
    if not template.startswith("/"):
        raise ValueError(f"{template!r} is no path template: it begins with /")
    made: list[str] = []
    names: list[str] = []
    globs: list[str] = []
    left = template[1:]
    while left:
        text, left = _segment(template, left, names, globs)
        if left and not left.startswith("/"):  # what ends the last segment, as .m3u8
            if not _LITERAL.fullmatch(left):
                raise ValueError(f"{template!r}: {left!r} may stand only at the end, without /")
            text, left = text + re.escape(left), ""
        made.append(text)
        if left == "/":
            made.append("")
        left = left[1:]
    if len(names) > 5 or len(set(names)) < len(names) or any(len(name) > 16 for name in names):
        raise ValueError(f"{template!r}: at most 5 variables, each with a name of its own of at most 16 characters")
    if "**" in globs[:-1]:
        raise ValueError(f"{template!r}: no glob may stand behind **")
    return "/" + "/".join(made), names


def _segment(template: str, text: str, names: list[str], globs: list[str]) -> tuple[str, str]:
    """(expression, what is left) of the segment that `text` begins with."""
    variable = _VARIABLE.match(text)
    if variable:
        names.append(variable[1])
        inner = []
        for part in (variable[2] or "*").split("/"):
            if part in _GLOBS:
                globs.append(part)
                inner.append(_GLOBS[part])
            elif _LITERAL.fullmatch(part):
                inner.append(re.escape(part))
            else:
                raise ValueError(f"{template!r}: {part!r} is neither *, ** nor plain text")
        return f"({'/'.join(inner)})", text[variable.end() :]
    for glob in ("**", "*"):
        if text.startswith(glob):
            globs.append(glob)
            return _GLOBS[glob], text[len(glob) :]
    word = text.partition("/")[0]
    if not _LITERAL.fullmatch(word):
        raise ValueError(f"{template!r}: {word!r} is neither plain text, * or ** nor a variable in braces")
    return re.escape(word), text[len(word) :]
