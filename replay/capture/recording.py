"""What a tap captures, on disk: pcapng in a ring of files, by size and time, plain or zstd, for the tap's owner alone.

All files are opened at the start: the user that a tap becomes may not make any, and the disk it can take is known from the first moment on. Each is a
capture without packets then, so that whoever reads them all need not know which were got to. A disk that is full or slow ends or thins out the recording,
never the tap.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any

from replay._fastpath import Recorder, blocks_zstd
from replay.errors import UsageError
from replay.process import await_turn

__all__ = ["Recording", "file_names"]

_log = logging.getLogger("replay.record")

_POLL_S = 0.05
_FLUSH_S = 1.0
_NANOSECONDS = 9


def _block(kind: int, body: bytes) -> bytes:
    size = struct.pack("=I", 12 + len(body))
    return struct.pack("=I", kind) + size + body + size


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + value + bytes(-len(value) % 4)


def _interface(link: int, name: str) -> bytes:
    return _block(1, struct.pack("=HHI", link, 0, 0) + _option(2, name.encode()) + _option(9, bytes([_NANOSECONDS])) + _option(0, b""))


#: A section with interface 0 (Ethernet) and 1 (raw IP), as `_fastpath.Recorder` numbers them.
BEGINNING = (
    _block(0x0A0D0D0A, struct.pack("=IHHq", 0x1A2B3C4D, 1, 0, -1) + _option(4, b"shadow-replay") + _option(0, b""))
    + _interface(1, "ethernet")
    + _interface(101, "ip")
)


def file_names(path: str, files: int) -> list[str]:
    """`tap.pcapng.zst` with 3 files: tap-0.pcapng.zst, tap-1…, tap-2…; with one: as it is."""
    if files == 1:
        return [path]
    folder, name = os.path.split(path)
    stem, dot, suffix = name.partition(".")
    digits = len(str(files - 1))
    return [os.path.join(folder, f"{stem}-{n:0{digits}}{dot}{suffix}") for n in range(files)]


class Recording:
    """Takes what the recorders hold and writes it, in a thread of its own, from `start` to `end`.

    path: ends in .zst: compressed.  size: bytes of a file, as written.  every_ns: a file takes no longer; 0: any time.  files: after the last comes the
    first again. Files that are there already are written over, the oldest first. Raises UsageError for files that cannot be opened.
    """

    def __init__(self, path: str, recorders: Sequence[Recorder], *, size: int, every_ns: int, files: int) -> None:
        self.paths = file_names(path, files)
        self._recorders, self._size, self._every_s = list(recorders), size, every_ns / 1e9
        self._zstd: Any = blocks_zstd() if path.endswith(".zst") else None
        self._thread = threading.Thread(target=self._run, name="recording", daemon=True)
        blank = BEGINNING if self._zstd is None else self._zstd.compress(BEGINNING)
        self._blank = (0, len(blank))  # sizes of a file with nothing in it
        self._handles: list[int] = []
        self._new: list[bool] = []
        for one in self.paths:
            try:
                self._new.append(not os.path.lexists(one))
                self._handles.append(os.open(one, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
                if stat.S_ISREG(os.fstat(self._handles[-1]).st_mode):
                    os.fchmod(self._handles[-1], 0o600)
                    if os.fstat(self._handles[-1]).st_size == 0:
                        with contextlib.suppress(OSError):  # a full disk is told when there is something to record
                            os.write(self._handles[-1], blank)
            except OSError as error:
                self.close()
                raise UsageError(f"--record {one}: {error.strerror}") from None
        ages = [(os.fstat(handle).st_size not in self._blank, os.fstat(handle).st_mtime_ns, n) for n, handle in enumerate(self._handles)]
        self._at = min(ages)[2]  # an empty one, else the oldest
        self._file: Any = None
        self._packer: Any = None
        self._written = 0
        self._began = self._flushed = 0.0
        self._holds = False  # the file of now has a packet
        self._packed = (0, 0)  # packets, and their bytes, that the packer was given and may still hold
        self._done = (0, 0)  # … that are written
        self._short = 0  # bytes written of what could not be written whole
        self._over = False
        self._turn = threading.Event()
        self._ending = threading.Event()
        self.failed: OSError | None = None

    def start(self) -> None:
        self._thread.start()

    def rotate(self) -> None:
        """The next file, soon."""
        self._turn.set()

    def end(self) -> None:
        """Writes what is left; the recorders get nothing more. Waits for two seconds at most."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join(2.0)
        self._over = True
        self.close()

    def close(self) -> None:
        """Files that were made for this recording and that it did not get to go, where we may remove them: root's folders are closed to who we became."""
        handles, self._handles = self._handles, []
        begun = self._at if self._thread.ident is not None else -1
        for n, (path, new, handle) in enumerate(zip(self.paths, self._new, handles, strict=False)):
            about = os.fstat(handle)
            os.close(handle)
            if new and n != begun and stat.S_ISREG(about.st_mode) and about.st_size in self._blank:
                with contextlib.suppress(OSError):
                    if os.path.samestat(about, os.lstat(path)):
                        os.unlink(path)

    def counters(self) -> dict[str, int]:
        """What was written, and the packets that were not: nobody had room for them, or the recording ended before they were in a file."""
        over, (packets, size) = self._over, self._done
        found = [one.counters() for one in self._recorders]
        waiting = sum(one["packets"] for one in found) - packets if over else 0
        return {"packets": packets, "bytes": size, "left_out": sum(one["left_out"] for one in found) + waiting}

    # -- the thread --

    def _run(self) -> None:
        await_turn()
        try:
            self._open()
            while True:
                last = self._ending.is_set()
                wrote = self._take()
                now = time.monotonic()
                if not self._holds:
                    self._turn.clear()  # it is a new file already; turning it over would wipe one that holds something, for nothing
                    self._began = now
                elif self._turn.is_set() or self._written >= self._size or (self._every_s and now - self._began >= self._every_s):
                    self._turn.clear()
                    self._finish()
                    self._at = (self._at + 1) % len(self._handles)
                    self._open()
                elif now - self._flushed >= _FLUSH_S:
                    self._flush(now)
                if not wrote:
                    if last:
                        break
                    self._ending.wait(_POLL_S)
            self._finish()
        except OSError as error:
            self.failed = error
            for one in self._recorders:
                one.give_up()
            self._over = True
            _log.error("%s: %s: the recording ends, the tap goes on", self.paths[self._at], error.strerror)

    def _take(self) -> bool:
        """Writes at most a buffer of each recorder; True when there was any."""
        found = False
        for one in self._recorders:
            data = one.get()
            if data is not None:
                found = self._holds = True
                try:
                    self._write(data)
                except OSError:
                    if self._packer is None:
                        self._count(*_whole(data[: self._short]))
                    raise
                self._packed = (self._packed[0] + one.got_packets, self._packed[1] + one.got_bytes)
                if self._packer is None:
                    self._written_out()
        return found

    def _count(self, packets: int, size: int) -> None:
        self._done = (self._done[0] + packets, self._done[1] + size)

    def _written_out(self) -> None:
        """What was given to the file is in it."""
        self._count(*self._packed)
        self._packed = (0, 0)

    def _write(self, data: bytes) -> None:
        if self._packer is not None:
            data = self._packer.compress(data)
        self._out(data)

    def _out(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._short = len(data) - len(view)
            view = view[os.write(self._handles[self._at], view) :]
        self._written += len(data)

    def _open(self) -> None:
        handle = self._handles[self._at]
        if stat.S_ISREG(os.fstat(handle).st_mode):
            os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
        self._written, self._holds = 0, False
        self._began = self._flushed = time.monotonic()
        self._packer = self._zstd.ZstdCompressor() if self._zstd is not None else None
        self._write(BEGINNING)

    def _flush(self, now: float) -> None:
        self._flushed = now
        if self._packer is not None:
            self._out(self._packer.flush(self._packer.FLUSH_BLOCK))
            self._written_out()

    def _finish(self) -> None:
        if self._packer is not None:
            self._out(self._packer.flush(self._packer.FLUSH_FRAME))
            self._written_out()
            self._packer = None


def _whole(blocks: bytes) -> tuple[int, int]:
    """The packets that are whole in these blocks of pcapng, and their bytes."""
    packets = size = at = 0
    while at + 32 <= len(blocks):
        total, caplen = struct.unpack_from("=4xI12xI", blocks, at)
        at += total
        if at <= len(blocks):
            packets, size = packets + 1, size + caplen
    return packets, size
