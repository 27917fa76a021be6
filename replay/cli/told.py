"""What is said on standard error beside a log: sentences for a person, or, once it is known that the log is JSON, an object a line like those of the log.

Must not know: what is said.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable

__all__ = ["begin", "is_json", "known", "say"]

_form = ""


def begin() -> None:
    """A command line begins: nothing is known of its log."""
    global _form
    _form = ""


def known(form: str) -> None:
    """text or json; what was known first stays, whatever a reload says."""
    global _form
    _form = _form or form


def is_json() -> bool:
    return _form == "json"


def say(lines: Iterable[str], *, before: str = "", level: str = "info", part: str = "tap") -> None:
    """before: what stands in front of each line for a person. Whoever reads it may have gone."""
    if is_json():
        from replay.daemon.log import row

        texts = [row(level, part, line.strip()) for line in lines]
    else:
        texts = [f"{before}{line}" for line in lines]
    with contextlib.suppress(OSError, ValueError):
        for text in texts:
            print(text, file=sys.stderr)
        sys.stderr.flush()
