"""What a person names as captures, as a list of files: files, folders, globs, "-" for standard input.

Nothing is opened for good here and nothing is known of formats beyond their first four bytes; `_fastpath.Capture` reads.
"""

import glob
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from replay.capture.records import looks_like_records
from replay.errors import CaptureError

__all__ = ["as_error", "expand", "looks_like_capture", "read_once"]

EXPECTED = "expected pcap or pcapng, plain or compressed with gzip or zstd, Envoy tap files, or .gor"

_MAGIC = frozenset(bytes.fromhex(text) for text in ("d4c3b2a1", "a1b2c3d4", "4d3cb2a1", "a1b23c4d", "34cdb2a1", "a1b2cd34", "0a0d0d0a"))
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_NAMES = (".pcap", ".pcapng", ".cap", ".ntar")


def expand(words: Sequence[str]) -> tuple[list[str], list[CaptureError]]:
    """The captures that `words` stand for, in their order, each once; and what was wrong with words.

    A folder stands for all captures below it (by content; a file that is named like a capture counts too, so that its fault is told), in the
    order of their names, numbers by value. A word with *, ? or [ that is no file is a glob (** goes through folders). A file that does not exist is
    passed on: reading it gives the fault. An error does not keep the other words from being used.
    """
    found: dict[str, str] = {}
    errors: list[CaptureError] = []
    for word in words:
        try:
            for path in _one(word):
                found.setdefault(_identity(path), path)
        except CaptureError as error:
            errors.append(error)
    return list(found.values()), errors


def as_error(fault: Mapping[str, Any]) -> CaptureError:
    """A fault of `_fastpath.Capture.faults` as the error that a person reads."""
    return CaptureError(fault["path"], fault["message"], offset=fault["offset"], packet=fault["packet"])


def read_once(paths: Iterable[str]) -> str | None:
    """The first of the paths that cannot be read a second time, in words: standard input, a pipe (`<(…)`, a FIFO, /dev/stdin of a pipe), a socket, a device.

    None when there is none; what is not there, or cannot be looked at, is no such."""
    for path in paths:
        if path == "-":
            return "standard input (-)"
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError):
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return f"{path} ({'a pipe' if stat.S_ISFIFO(mode) else 'no file'})"
    return None


def looks_like_capture(path: str) -> bool:
    """True when a regular file begins like a capture, compressed or not. Of zstd the inside is not looked at. Never raises."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            first = file.read(512)
    except (OSError, ValueError):
        return False
    if first.startswith(_GZIP):
        try:
            first = zlib.decompressobj(31).decompress(first, 4)
        except zlib.error:
            return False
    return first[:4] in _MAGIC or first.startswith(_ZSTD)


def _one(word: str) -> list[str]:
    if word == "-" or not word:
        return [word]
    if os.path.isdir(word):
        return _folder(word)
    if not os.path.lexists(word) and glob.has_magic(word):
        return _glob(word)
    return [word]


def _folder(folder: str) -> list[str]:
    captures, others = _captures_in(folder)
    if not captures:
        what = f"found {others} other files" if others else "found no file"
        raise CaptureError(folder, f"the folder holds no capture: {EXPECTED}; {what}. Name another folder, or the files")
    return captures


def _captures_in(folder: str) -> tuple[list[str], int]:
    """Captures below a folder, sorted, and the number of other files."""
    paths = list(_files(folder))
    captures = [path for path in paths if _named_like_capture(path) or looks_like_capture(path) or looks_like_records(path)]
    return sorted(captures, key=_natural), len(paths) - len(captures)


def _glob(pattern: str) -> list[str]:
    paths: list[str] = []
    for path in sorted(glob.glob(pattern, recursive=True), key=_natural):
        if not os.path.isdir(path):
            paths.append(path)
        elif "**" not in pattern:
            paths += _captures_in(path)[0]
    if not paths:
        raise CaptureError(pattern, f"no capture fits this pattern: {EXPECTED}; found nothing. Check the path")
    return paths


def _files(folder: str) -> Iterator[str]:
    """Files below a folder; hidden ones, and folders that cannot be read or that are links, are left out."""
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = os.path.join(where, name)
            if not name.startswith(".") and os.path.isfile(path):
                yield path


def _named_like_capture(path: str) -> bool:
    """For folders: a broken capture should be told of, a README should not."""
    *_, before, last = ["", "", *("." + part.lower() for part in os.path.basename(path).lstrip(".").split(".")[1:])]
    return last in _NAMES or (before in _NAMES and (last in (".gz", ".zst") or last[1:].isdigit()))


def _natural(path: str) -> list[tuple[int, int, str]]:
    """Sorts part9 before part10. A key: runs of digits by value, the rest as text."""
    key: list[tuple[int, int, str]] = []
    text = ""
    digits = ""
    for char in path + "\0":
        if char.isascii() and char.isdigit():
            digits += char
            continue
        if digits:
            key += [(1, 0, text), (0, int(digits[:4000]), "")]
            text = digits = ""
        text += char
    return [*key, (1, 0, text)]


def _identity(path: str) -> str:
    return path if path == "-" else os.path.realpath(path)
