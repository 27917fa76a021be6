"""GoReplay's .gor files: records of requests and their replies, told apart by a line of three monkeys.

Source: the format as GoReplay 2.0 writes it, and its dialects (three header fields, 40 hex digits, gzip without an end).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from replay.capture.record import LATEST_NS, NOWHERE, Fault, Record, content_length

__all__ = ["looks_like", "read"]

SEPARATOR = b"\n\xf0\x9f\x90\xb5\xf0\x9f\x99\x88\xf0\x9f\x99\x89\n"
_HEADER = re.compile(rb"([123]) ([0-9A-Za-z._-]{1,80}) (\d{1,19})(?: (-?\d{1,19}))?\r?\n")
_BLANK = re.compile(rb"\r?\n\r?\n")
_FIRST = re.compile(rb"[123] [0-9a-f]{8,64} \d{10,19}( -?\d+)?\r?\n")
_PIECE = 1 << 20
_MOST = 256 << 20  # a record; more is no record


def looks_like(first: bytes) -> bool:
    """The first bytes of a file are those of a record."""
    return _FIRST.match(first) is not None


def read(file: BinaryIO, name: str, faults: list[Fault]) -> Iterator[Record]:
    """The records of a file. A reply goes to the request before it that has its ID; one that comes first waits for it (at most 1,000 of each)."""
    requests: dict[bytes, Record] = {}
    replies: dict[bytes, tuple[int, bytes]] = {}
    bad = 0
    for header, payload in _records(file, name, faults):
        found = _HEADER.fullmatch(header)
        if found is None or int(found[3]) >= LATEST_NS:
            bad += 1
            continue
        kind, ident, at = found[1], found[2], int(found[3])
        if kind == b"3":
            continue
        if kind == b"2":
            status = _status(payload)
            if status is None:
                continue
            if ident in requests:
                one = requests.pop(ident)
                one.reply(status, at)
                yield one
            else:
                replies[ident] = (at, status)
                while len(replies) > 1000:
                    replies.pop(next(iter(replies)))
            continue
        client, server = _ends(ident)
        one = Record(at, payload, client, server, key=ident)
        if ident in requests:  # identifiers repeat: in order
            yield requests.pop(ident)
        waiting = replies.pop(ident, None)
        if waiting is not None:
            one.reply(waiting[1], waiting[0])
            yield one
            continue
        requests[ident] = one
        while len(requests) > 1000:
            yield requests.pop(next(iter(requests)))
    yield from requests.values()
    if bad:
        faults.append(Fault(name, f"{bad:,} records have no header of TYPE ID TIMESTAMP; they were passed over", fatal=False))


def _ends(ident: bytes) -> tuple[tuple[bytes, int], tuple[bytes, int]]:
    """Client and server from an identifier of GoReplay 2: client port, server port, last four bytes of the client's address, an acknowledgement."""
    if not re.fullmatch(rb"[0-9a-f]{24}", ident):
        return (NOWHERE, 0), (NOWHERE, 0)
    packed = bytes.fromhex(ident.decode())
    return (bytes(10) + b"\xff\xff" + packed[4:8], int.from_bytes(packed[:2], "big")), (NOWHERE, int.from_bytes(packed[2:4], "big"))


def _status(payload: bytes) -> bytes | None:
    found = re.match(rb"HTTP/1\.\d (\d{3})", payload)
    return found[1] if found else None


def _records(file: BinaryIO, name: str, faults: list[Fault]) -> Iterator[tuple[bytes, bytes]]:
    """(header line, payload) of each record. A body that holds the separator goes on when its Content-Length says so."""
    held = bytearray()
    at = 0
    ended = False
    while True:
        end = _end(held, at, ended)
        if end is not None:
            header, _, payload = bytes(held[at:end]).partition(b"\n")
            at = end + len(SEPARATOR)
            yield header + b"\n", payload
            continue
        if ended:
            break
        try:
            piece = file.read(_PIECE)
        except EOFError:
            faults.append(Fault(name, "the gzip stream has no end; what unpacks was read", fatal=False))
            piece = b""
        ended = not piece
        del held[:at]
        at = 0
        held += piece
        if len(held) > _MOST:
            faults.append(Fault(name, "a record is longer than 256 MiB; the rest of the file is left out", fatal=False))
            return
    rest = bytes(held[at:])
    if rest.strip():  # GoReplay drops a last record without separator; it is taken as it is, and framed
        header, line, payload = rest.partition(b"\n")
        if line:
            yield header + b"\n", payload


def _end(held: bytearray, begin: int, ended: bool) -> int | None:
    """Where the record at `begin` ends; None when more is needed, or, at the end of the file, when nothing ends it. The same in whatever pieces it came."""
    at = held.find(SEPARATOR, begin)
    if at < 0:
        return None
    blank = _BLANK.search(held, held.find(b"\n", begin) + 1, at)
    if blank is None:
        return at
    length = content_length(bytes(held[begin : blank.start() + 1]))
    if length is None or length > _MOST or at - blank.end() >= length:
        return at
    end = blank.end() + length
    if len(held) < end + len(SEPARATOR) and not ended:
        return None
    return end if held.startswith(SEPARATOR, end) else at
