"""`--results FILE.jsonl[.zst]`: a line of JSON a selected request, written in a thread of its own."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

from replay.engine import Replay
from replay.errors import UsageError

__all__ = ["ResultsWriter", "check_name", "opened"]


class ResultsWriter:
    """Takes the lines that the judge made and writes them. A disk that is too slow loses lines, which are counted; nobody waits for it."""

    def __init__(self, replay: Replay, file: IO[bytes] | None) -> None:
        self._replay = replay
        self._file = file
        self._ended = False
        self.failed: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="results", daemon=True)
        if file is not None:
            self._thread.start()

    def _run(self) -> None:
        while True:
            last = self._ended
            wrote = False
            while (block := self._replay.lines()) is not None:
                wrote = True
                self._write(block)
            if last and not wrote:
                return
            if not wrote:
                time.sleep(0.02)

    def _write(self, block: bytes) -> None:
        if self.failed is None and self._file is not None:
            try:
                self._file.write(block)
            except OSError as error:  # a full disk: the run goes on, the results end
                self.failed = error
                _tell(f"replay run: warning: --results: {error.strerror}; the rest of the results is lost, the run goes on")

    def end(self) -> None:
        """Everything that ended is written."""
        self._ended = True
        if self._file is not None:
            self._thread.join()


@contextlib.contextmanager
def opened(path: str | None) -> Iterator[IO[bytes] | None]:
    """The file, for its owner alone (it holds what people asked a service for), compressed when its name ends in .zst. Raises UsageError."""
    if path is None:
        yield None
        return
    check_name(path)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        if os.path.isfile(path):
            os.fchmod(handle, 0o600)
        raw: IO[bytes] = os.fdopen(handle, "wb", buffering=1 << 16)
    except OSError as error:
        raise UsageError(f"--results {path}: {error.strerror}") from None
    file: Any = raw
    if path.endswith(".zst"):
        file = _zstd().ZstdFile(raw, "w")
    try:
        yield file
    finally:
        try:
            if file is not raw:
                file.close()
            raw.close()
        except OSError as error:
            _tell(f"replay run: warning: --results {path}: {error.strerror}; its end is lost")


def check_name(path: str) -> None:
    """Raises UsageError."""
    if not path.removesuffix(".zst").endswith((".jsonl", ".ndjson", ".json")) and not path.startswith("/dev/"):
        raise UsageError(f"--results {path}: write a name that ends in .jsonl or .jsonl.zst")


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def _tell(text: str) -> None:
    print(text, file=sys.stderr)
