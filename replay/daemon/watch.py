"""Files that are watched: each second (or as often as it is asked) their identity is looked at.

A look is one stat: it follows links, so it sees the swap of a Kubernetes ConfigMap (`..data`), a rename over the file, a mount below it and network
file systems, and needs none of the inotify instances that a node runs out of. A file counts as changed when it looks the same twice, so one that is
still being written is left alone, and when its bytes differ, so `touch` is no change. Of a folder its .yaml, .yml and .json are looked at, deep, as a policy
in a folder is read; a file that comes or goes is a change too.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator

__all__ = ["Watch"]

_MOST = 16 << 20
#: Of a folder: files that are watched, and names that are looked at for them, once a second.
_FILES, _LOOKS = 1000, 10_000
_NAMES = (".yaml", ".yml", ".json")

Identity = tuple[object, ...] | None


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
    if stat.S_ISDIR(found.st_mode):
        return tuple((inside, _identity(inside)) for inside in _inside(path))
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _inside(folder: str) -> Iterator[str]:
    """The files of a folder that a policy is read from, in order."""
    files = looks = 0
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            looks += 1
            if name.lower().endswith(_NAMES) and not name.startswith(".") and not os.path.isdir(path := os.path.join(where, name)):
                files += 1
                yield path
            if files == _FILES or looks >= _LOOKS:
                return


def _digest(path: str) -> bytes | None:
    """Of a file's bytes, of a pipe none; of a folder the names and bytes of its files. None: it, or one of them, cannot be read."""
    found, left = hashlib.blake2b(digest_size=16), _MOST
    try:
        folder = os.path.isdir(path)
        if folder:
            os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))  # one that may not be read looks empty
        elif stat.S_ISFIFO(os.stat(path).st_mode):  # an option's, and read; one without a writer would hold us up
            return found.digest()
        for one in _inside(path) if folder else (path,):
            with open(one, "rb") as file:
                data = file.read(left)
            left -= len(data)
            if folder:
                found.update(f"{one}\0{len(data)}\0".encode("utf-8", "surrogateescape"))
            found.update(data)
        if not folder and not left:  # what stands behind it is told by its identity
            found.update(repr(_identity(path)).encode())
    except OSError:
        return None
    return found.digest()
