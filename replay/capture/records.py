"""Captures that hold requests instead of packets, as one ordered stream: which files are such, how they are opened, in which order their requests come."""

from __future__ import annotations

import heapq
import os
import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:  # their readers are loaded when there is such a file
    from replay.capture.record import Fault, Record

__all__ = ["Beginning", "Records", "looks_like_records", "split"]

_WINDOW = 100  # records stand in the order of completion; so many are sorted by time
_MERGED = 64  # files that are open at a time


def looks_like_records(path: str) -> str | None:
    """`gor` or `tap` for a regular file whose first bytes are such, plain or gzip; None else. Never raises."""
    try:
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            first = file.read(4096)
    except (OSError, ValueError):
        return None
    if first.startswith(b"\x1f\x8b"):
        try:
            first = zlib.decompressobj(31).decompress(first, 4096)
        except zlib.error:
            return None
    if first[:4] in (b"\n\r\r\n", b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4", b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d"):
        return None
    from replay.capture import envoytap, gor

    return "gor" if gor.looks_like(first) else "tap" if envoytap.looks_like(first) else None


def split(paths: Iterable[str]) -> tuple[list[str], list[str]]:
    """(files of packets, files of requests)."""
    packets: list[str] = []
    records: list[str] = []
    for path in paths:
        (records if looks_like_records(path) else packets).append(path)
    return packets, records


class _Unpacked:
    """What is in a gzip file, member after member. `read` raises EOFError, once, where it has no end; what unpacks before that is given first."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw = raw
        self.unpack = zlib.decompressobj(31)
        self.left = b""
        self.damaged = False
        self.ended = False

    def read(self, most: int) -> bytes:
        while not self.ended:
            data = self.left or self.raw.read(1 << 16)
            self.left = b""
            if self.unpack.eof:
                if not data.startswith(b"\x1f\x8b"):
                    self.ended = True
                    return b""
                self.unpack = zlib.decompressobj(31)
            if not data or self.damaged:
                self.ended = True
                raise EOFError
            before = self.unpack.copy()
            try:
                found = self.unpack.decompress(data, most)
            except zlib.error:
                self.damaged = True
                found = _before_damage(before, data)
            self.left = data if self.damaged else self.unpack.unused_data or self.unpack.unconsumed_tail
            if found:
                return found
        return b""


def _before_damage(unpack: Any, data: bytes) -> bytes:
    """What comes out of a damaged piece before the damage, byte by byte: zlib gives none of it at once."""
    found = bytearray()
    for at in range(len(data)):
        try:
            found += unpack.decompress(data[at : at + 1])
        except zlib.error:
            break
    return bytes(found)


class Records:
    """The requests of files, by time, as `_fastpath.Ingest` takes them. Iterate it once. faults: final afterwards."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = list(paths)
        self.faults: list[Fault] = []

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        from replay.capture.record import NOWHERE

        flows: dict[bytes, list[int]] = {}
        last = 0
        for ordinal, record in enumerate(self._ordered()):
            if record.ts_ns == 0 and not record.parts:
                record.ts_ns = last  # no time was recorded: in the order of the file
            elif record.ts_ns == 0:
                record.parts = [(side, at or last, data, missing) for side, at, data, missing in record.parts]
            last = record.ts_ns or last
            key = record.key and record.client[0] + record.key
            if not key or record.client[0] == NOWHERE:
                yield record.for_ingest(1_000_000_000 + ordinal, 0, ordinal)
                continue
            flow = flows.setdefault(key, [1_000_000_000 + ordinal, 0])
            yield record.for_ingest(flow[0], flow[1], ordinal)
            flow[1] += 1
            if len(flows) > 100_000:
                flows.pop(next(iter(flows)))

    def _ordered(self) -> Iterator[Record]:
        """By time: within a window, and over all files. Many files are put in the order of their first requests, not held open at once."""
        if len(self.paths) > _MERGED:
            firsts = []
            for at, path in enumerate(self.paths):
                found = next(iter(self._sorted(path, [])), None)
                firsts.append((found.ts_ns if found is not None else 0, at))
            for _, at in sorted(firsts):
                yield from self._sorted(self.paths[at], self.faults)
            return
        yield from heapq.merge(*(self._sorted(path, self.faults) for path in self.paths), key=lambda one: one.ts_ns)

    def _sorted(self, path: str, faults: list[Fault]) -> Iterator[Record]:
        held: list[tuple[int, int, Record]] = []
        for at, record in enumerate(self._read(path, faults)):
            heapq.heappush(held, (record.ts_ns, at, record))
            if len(held) > _WINDOW:
                yield heapq.heappop(held)[2]
        while held:
            yield heapq.heappop(held)[2]

    def _read(self, path: str, faults: list[Fault]) -> Iterator[Record]:
        from replay.capture import envoytap, gor
        from replay.capture.record import Fault

        reader = gor.read if looks_like_records(path) == "gor" else envoytap.read
        try:
            with open(path, "rb") as raw:
                file: BinaryIO = raw
                if raw.read(2) == b"\x1f\x8b":
                    raw.seek(0)
                    file = _Unpacked(raw)  # type: ignore[assignment]
                else:
                    raw.seek(0)
                yield from reader(file, path, faults)
        except (OSError, zlib.error) as error:
            faults.append(Fault(path, f"{getattr(error, 'strerror', None) or error}"))


class Beginning(Records):
    """The requests at the beginning of files, some `most` bytes of them. whole: that was all."""

    def __init__(self, paths: Iterable[str], most: int) -> None:
        super().__init__(paths)
        self.most = most
        self.whole = False
        self.bytes_read = 0
        self.bytes_total = sum(os.path.getsize(path) for path in self.paths if os.path.isfile(path))

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for one in super().__iter__():
            yield one
            self.bytes_read += sum(len(part[2]) for part in one[0])
            if self.bytes_read >= self.most:
                return
        self.whole = True
        self.bytes_read = self.bytes_total
