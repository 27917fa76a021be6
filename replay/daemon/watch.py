"""Files that are watched: each second (or as often as it is asked) their identity is looked at.

A look is one stat: it follows links, so it sees the swap of a Kubernetes ConfigMap (`..data`), a rename over the file, a mount below it and network
file systems, and needs none of the inotify instances that a node runs out of. A file counts as changed when it looks the same twice, so one that is
still being written is left alone, and when its bytes differ, so `touch` is no change.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

__all__ = ["Watch"]

_MOST = 16 << 20

Identity = tuple[int, ...] | None


class Watch:
    """Takes the files as they are now for known. A file that is not there can be watched too."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self._seen: dict[str, tuple[Identity, bytes | None]] = {}
        self._before: dict[str, Identity] = {}
        self.watch(paths)

    def watch(self, paths: Iterable[str]) -> None:
        """From now on these files and no others. Those that were watched before keep what is known of them."""
        wanted = list(dict.fromkeys(paths))
        self._seen = {path: self._seen[path] if path in self._seen else (_identity(path), _digest(path)) for path in wanted}
        self._before = {path: self._before.get(path, self._seen[path][0]) for path in wanted}

    def unreadable(self) -> list[str]:
        """Those that cannot be read now, of which no change can be seen either."""
        return [path for path, (_, digest) in self._seen.items() if digest is None]

    def changed(self) -> list[str]:
        """The files that changed since this was last said of them."""
        found = []
        for path, (identity, digest) in self._seen.items():
            now = _identity(path)
            settled, self._before[path] = now == self._before[path], now
            if now == identity or not settled:
                continue
            fresh = _digest(path)
            self._seen[path] = (now, fresh)
            if fresh != digest:
                found.append(path)
        return found


def _identity(path: str) -> Identity:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _digest(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return hashlib.blake2b(file.read(_MOST), digest_size=16).digest()
    except OSError:
        return None
