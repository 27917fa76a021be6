"""The access log of a run, written beside it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO

from replay import report
from replay.engine import Replay, masked_target
from replay.errors import UsageError

__all__ = ["LogWriter", "opened"]


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


class LogWriter:
    """Writes the access log in a thread of its own, so that neither senders nor progress wait for a disk."""

    def __init__(self, replay: Replay, log: IO[str] | None) -> None:
        self._replay = replay
        self._log = log
        self._ended = False
        self.failed: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
        if log is not None:
            self._thread.start()

    def _run(self) -> None:
        while True:
            last = self._ended
            wrote = 0
            for _, addresses, row in self._replay.outcomes():
                wrote += 1
                self._write(report.access_line(row, addresses, masked_target))
            if last and not wrote:
                return
            if not wrote:
                time.sleep(0.01)

    def _write(self, line: str) -> None:
        if self.failed is None and self._log is not None:
            try:
                self._log.write(line + "\n")
            except OSError as error:  # a full disk: the run goes on, the log ends
                self.failed = error
                _tell(f"replay run: warning: --access-log: {error.strerror}; the rest of the log is lost, the run goes on")

    def end(self) -> None:
        """Everything that ended is in the log."""
        self._ended = True
        if self._log is not None:
            self._thread.join()


@contextlib.contextmanager
def opened(path: str | None) -> Iterator[IO[str] | None]:
    """The file of `--access-log`, for its owner alone (it holds what people asked a service for), standard error for `-`. Raises UsageError."""
    if path is None:
        yield None
        return
    if path == "-":
        yield sys.stderr
        return
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        if os.path.isfile(path):
            os.fchmod(handle, 0o600)
        file = open(handle, "w", encoding="utf-8", buffering=1 << 16)
    except OSError as error:
        raise UsageError(f"--access-log {path}: {error.strerror}") from None
    try:
        yield file
    finally:
        try:
            file.close()
        except OSError as error:
            _tell(f"replay run: warning: --access-log {path}: {error.strerror}; its end is lost")
