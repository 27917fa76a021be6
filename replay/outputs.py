"""Files that are written are not those that are read, and not each other: looked at before the first is opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence

from replay.errors import UsageError

__all__ = ["apart"]

Named = tuple[str, str | None]


def apart(outputs: Iterable[Named], captures: Sequence[str] = (), read: Iterable[Named] = ()) -> None:
    """outputs, read: (option, path); None and `-` are no file. captures: as a person named them. Raises UsageError with both options."""
    written: dict[object, str] = {}
    for option, path in outputs:
        if path == "-" and option in ("--report", "--html"):
            where = "--json prints the report on standard output" if option == "--report" else "/dev/stdout is standard output"
            raise UsageError(f"{option} -: would be a file of that name; {where}")
        one = _identity(path)
        if one is None:
            continue
        if one in written:
            raise UsageError(f"{option} {path}: {written[one]} is the same file, which one of them would replace; name two")
        written[one] = f"{option} {path}"
    for option, path in read:
        _unwritten(written, path, f"{option} {path}")
    if any(isinstance(one, tuple) for one in written):  # what is not there yet is not read
        from replay.capture.source import expand  # not for a report

        for path in expand(captures)[0]:
            _unwritten(written, "/dev/stdin" if path == "-" else path, f"CAPTURE {path}")


def _unwritten(written: dict[object, str], path: str | None, what: str) -> None:
    one = _identity(path)
    if one in written:
        raise UsageError(f"{written[one]}: {what} is the same file, which is read and would be lost; name another")


def _identity(path: str | None) -> object:
    """What two names of one file have in common, before it is there too. None for what is no file: a pipe, /dev/null."""
    if path is None or path == "-":
        return None
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return os.path.realpath(path)
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None
