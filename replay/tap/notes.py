"""What a tap tells of each request that ended: the access log, and results; files that a log rotation may take away.

Nobody waits for a disk: what is not written in time is lost, and counted; so is what came into no queue, of which nobody tells.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from replay import _fastpath
from replay.errors import UsageError
from replay.process import await_turn
from replay.report import access_line
from replay.settings import Target
from replay.tap.lanes import Way

__all__ = ["Notes", "NotesFile", "notes_of"]

Address = tuple[bytes, int]

_log = logging.getLogger("replay.tap")

_REST_S, _END_S = 0.02, 2.5
#: Requests that ended and were not told yet, of one target; and bytes of a head that a line of the access log needs.
_WAITING, _LOGGED_HEAD = 1 << 14, 8192
_FULL = 1 << 16


class NotesFile:
    """A file that grows, for its owner alone (0600); `-` is standard error. owner: (user, group) that it is given to: who the tap becomes.

    rotate(): what was under its name may have been taken away; it goes on under that name. Raises UsageError when it cannot be opened at first.
    """

    def __init__(self, option: str, path: str, owner: tuple[int, int] | None = None) -> None:
        self.option, self.path = option, path
        self.failed = False
        self._pending = bytearray()
        self._packer: Any = None
        self._handle = 2
        if path != "-":
            try:
                self._handle = self._opened()
                if owner is not None:
                    os.fchown(self._handle, *owner)
            except OSError as error:
                raise UsageError(f"{option} {path}: {error.strerror}") from None
        if path.endswith(".zst"):
            self._packer = _fastpath.blocks_zstd().ZstdCompressor()

    def _opened(self) -> int:
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with contextlib.suppress(OSError):
            os.fchmod(handle, 0o600)
        return handle

    def write(self, data: bytes) -> None:
        if self.failed:
            return
        self._pending += data if self._packer is None else self._packer.compress(data)
        if len(self._pending) >= _FULL:
            self._out()

    def flush(self) -> None:
        if self._packer is not None and not self.failed:
            self._pending += self._packer.flush(self._packer.FLUSH_BLOCK)
        self._out()

    def _out(self) -> None:
        try:
            view = memoryview(bytes(self._pending))
            while view and not self.failed:
                view = view[os.write(self._handle, view) :]
        except OSError as error:
            self.failed = True
            _log.error("%s %s: %s: nothing more is written there, the tap goes on", self.option, self.path, error.strerror)
        self._pending.clear()

    def _finish(self) -> None:
        if self._packer is not None and not self.failed:
            self._pending += self._packer.flush(self._packer.FLUSH_FRAME)
            self._packer = _fastpath.blocks_zstd().ZstdCompressor()
        self._out()

    def rotate(self) -> None:
        if self.path == "-":
            return
        self._finish()
        try:
            fresh = self._opened()
        except OSError as error:
            told = "%s %s: %s: it goes on in the file of before; who the tap runs as must be able to make that file"
            _log.warning(told, self.option, self.path, error.strerror)
            return
        os.close(self._handle)
        self._handle, self.failed = fresh, False

    def close(self) -> None:
        self._finish()
        if self._handle > 2:
            os.close(self._handle)
            self._handle = -1


@dataclass(slots=True)
class _Chapter:
    """Senders that began together, and what becomes of what they tell."""

    addresses: list[list[Address]]
    sources: list[_fastpath.Outcomes]
    onward: list[_fastpath.Outcomes]
    lines: _fastpath.Lines | None
    judge: _fastpath.Judge
    thread: threading.Thread
    ways: list[Way] = field(default_factory=list)
    ended: bool = False

    def over(self) -> bool:
        """Its senders are done, a stop accounted for, and the judge has passed on what they told."""
        if not self.ended:
            if not all(way.swept for way in self.ways):
                return False
            self.ended = True
            self.judge.end()
        return not self.thread.is_alive()


def _judges(judge: _fastpath.Judge) -> None:
    await_turn()
    judge.run()


class Notes:
    """log, results: files, or None. `begin` and `started` around the making of senders; `start`, `rotate`, `end` of the thread that writes."""

    def __init__(self, log: NotesFile | None = None, results: NotesFile | None = None) -> None:
        self.log, self.results = log, results
        self._chapters: list[_Chapter] = []
        self._lock = threading.Lock()
        self._turn, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="notes", daemon=True)
        self._lines = self._lost = 0
        self._until = 0.0
        self._next: _Chapter | None = None

    @property
    def wanted(self) -> bool:
        return self.log is not None or self.results is not None

    def begin(self, targets: Sequence[Target | None], addresses: list[list[Address]]) -> list[_fastpath.Outcomes | None]:
        """What the senders for these targets tell it by; nothing when nothing is wanted."""
        if not self.wanted:
            return [None] * len(targets)
        sources = [_fastpath.Outcomes(_WAITING, head=_LOGGED_HEAD if self.log is not None else 0) for _ in targets]
        onward = [_fastpath.Outcomes(_WAITING) for _ in targets] if self.log is not None else []
        lines = _fastpath.Lines() if self.results is not None else None
        judge = _fastpath.Judge(sources, forward=onward, lines=lines, names=[one.url if one is not None else "" for one in targets])
        chapter = _Chapter(addresses, sources, onward, lines, judge, threading.Thread(target=_judges, args=(judge,), name="judge", daemon=True))
        self._next = chapter
        return [*sources]

    def started(self, ways: list[Way]) -> None:
        """Those that the last `begin` was for."""
        chapter, self._next = self._next, None
        if chapter is not None:
            chapter.ways = ways
            chapter.thread.start()
            with self._lock:
                self._chapters.append(chapter)

    def start(self) -> None:
        if self.wanted:
            self._thread.start()

    def rotate(self) -> None:
        """The files may have been taken away: new ones, soon."""
        self._turn.set()

    def end(self) -> None:
        """Writes what was told; the senders have ended. Waits for three seconds at most."""
        self._until = time.monotonic() + _END_S
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join(_END_S + 0.5)

    def counters(self) -> dict[str, int] | None:
        """Lines of --results that were made, and what is neither there nor in the log: lost on its way, or in a full queue. None when nothing is wanted."""
        if not self.wanted:
            return None
        with self._lock:
            lines = self._lines + sum(one.lines.lines - one.lines.lost for one in self._chapters if one.lines is not None)
            lost = self._lost + sum(self._lost_of(one) for one in self._chapters)
        return {"lines": lines, "lost": lost}

    @staticmethod
    def _lost_of(one: _Chapter) -> int:
        full = sum(way.queue.full for way in one.ways)  # what found its queue full no sender saw, and so none told of it
        return full + one.judge.forward_lost + (one.lines.lost if one.lines is not None else 0)

    def _run(self) -> None:
        await_turn()
        files = [one for one in (self.log, self.results) if one is not None]
        while True:
            last = self._ending.is_set()
            wrote = False
            with self._lock:
                chapters = list(self._chapters)
            for one in chapters:
                over = one.over()  # asked first: what is there afterwards is all
                wrote = self._tell(one) or wrote
                if over and not self._tell(one):
                    self._forget(one)
            if not wrote:
                for file in files:
                    file.flush()
                if last and (not self._chapters or time.monotonic() > self._until):
                    break
            if self._turn.is_set():
                self._turn.clear()
                for file in files:
                    file.rotate()
            if not wrote:
                time.sleep(_REST_S)
        for file in files:
            file.close()

    def _tell(self, one: _Chapter) -> bool:
        """Writes what there is; True when there was any."""
        found = False
        for addresses, onward in zip(one.addresses, one.onward, strict=False):
            for row in onward.get(1024):
                found = True
                assert self.log is not None
                self.log.write((access_line(row, addresses, _fastpath.masked_target) + "\n").encode("utf-8", "replace"))
        while one.lines is not None and (block := one.lines.take()) is not None:
            found = True
            assert self.results is not None
            self.results.write(block)
        return found

    def _forget(self, one: _Chapter) -> None:
        with self._lock:
            self._lines += one.lines.lines - one.lines.lost if one.lines is not None else 0
            self._lost += self._lost_of(one)
            self._chapters.remove(one)


def notes_of(access_log: str | None, results: str | None, owner: tuple[int, int] | None) -> Notes:
    """Opens the files that are asked for. Raises UsageError."""
    log = NotesFile("--access-log", access_log, owner) if access_log is not None else None
    return Notes(log, NotesFile("--results", results, owner) if results is not None else None)
