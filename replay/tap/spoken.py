"""How TLS is spoken to targets: a context, and what its files were when it was made, so that a reload can tell whether they are others now.

Must not know: relays, addresses.
"""

from __future__ import annotations

import hashlib
import logging
import os
import ssl
from dataclasses import dataclass

from replay.errors import UsageError
from replay.relay import context
from replay.settings import Tls

__all__ = ["Spoken", "speak"]

_log = logging.getLogger("replay.tap")


@dataclass(frozen=True, slots=True)
class _File:
    """As it was looked at. digest: of its content; None: it may not be read.  identity: by which a file that may not be read is known; None: nor that."""

    name: str
    digest: bytes | None
    identity: tuple[int, ...] | None

    def differs(self, other: _File) -> bool | None:
        """None: it cannot be told."""
        if self.digest is not None and other.digest is not None:
            return self.digest != other.digest
        return None if self.identity is None or other.identity is None else self.identity != other.identity


@dataclass(frozen=True, slots=True)
class Spoken:
    """One way to speak it."""

    tls: Tls
    context: ssl.SSLContext
    files: tuple[_File, ...]


def _looked_at(option: str, path: str) -> _File:
    """Raises UsageError for one that is not there."""
    digest = identity = None
    try:
        found = os.stat(path)
        identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read()).digest()
    except PermissionError:
        pass
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from None
    return _File(f"{option} {path}", digest, identity)


def speak(tls: Tls, before: Spoken | None) -> Spoken:
    """As it is asked for, with the files as they are now; `before` where nothing is different. Raises UsageError for a file that cannot be used.

    The rights to read a file may be gone: one that is the same still, or of which nothing can be told, was read in time."""
    files = tuple(_looked_at(f"--{name}", path) for name in ("cacert", "cert", "key") if (path := getattr(tls, name)) is not None)
    if before is None:
        return Spoken(tls, context(tls), files)
    differ = [True] if tls != before.tls else [one.differs(other) for one, other in zip(files, before.files, strict=True)]
    if not any(differ):
        for one, unknown in zip(files, differ, strict=True):
            if unknown is None:
                _log.warning("%s: whether it has changed cannot be told by the user that this runs as; what it held before is used", one.name)
        return before
    for one in files:
        if one.digest is None:
            raise UsageError(f"{one.name}: the user that this runs as may not read it; let it (--user names it), or restart")
    return Spoken(tls, context(tls), files)
