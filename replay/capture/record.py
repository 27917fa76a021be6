"""A request that was recorded as a request, not as packets: what Envoy tap files and .gor files give. It enters where requests are read, like any other."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Fault", "LATEST_NS", "NOWHERE", "Record", "content_length"]

#: The address of an end that was not recorded; shown as 0.0.0.0, port 0.
NOWHERE = bytes(10) + b"\xff\xff" + bytes(4)

#: Times from here on (the year 2116) are none: sums and differences of times fit into 64 bits.
LATEST_NS = 1 << 62

#: `_fastpath.WITHHELD.index("truncated")`
TRUNCATED = 8


@dataclass(slots=True)
class Fault:
    """What is wrong with a file, as `_fastpath.Capture.faults` has it."""

    path: str
    message: str
    fatal: bool = True
    offset: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"path": self.path, "message": self.message, "fatal": self.fatal, "offset": self.offset, "packet": None, "code": "record"}


@dataclass(slots=True)
class Record:
    """One request (parts: what each side said, in order), or one connection of a socket tap with several.

    ts_ns: of its first byte; 0 unknown.  data: the request's bytes as HTTP/1.  client, server: (16 bytes, port).  key: equal for requests of one connection.
    truncated: the recorder cut its body; body_len: bytes of it that are there.  parts: (side, ts_ns, bytes, missing) instead of data."""

    ts_ns: int
    data: bytes
    client: tuple[bytes, int] = (NOWHERE, 0)
    server: tuple[bytes, int] = (NOWHERE, 0)
    key: bytes = b""
    truncated: bool = False
    body_len: int = 0
    timed: bool = True
    parts: list[tuple[int, int, bytes, int]] = field(default_factory=list)

    def reply(self, status: bytes, ts_ns: int | None) -> None:
        """The final status; ts_ns: None unknown."""
        if ts_ns is None or ts_ns < self.ts_ns:
            self.timed = False
        head = b"HTTP/1.1 %s \r\n" % status + (b"" if status == b"101" else b"Content-Length: 0\r\n") + b"\r\n"
        self.parts = [(0, self.ts_ns, self.data, 0), (1, max(ts_ns or 0, self.ts_ns), head, 0)]

    def for_ingest(self, flow: int, index: int, ordinal: int) -> tuple[Any, ...]:
        """The tuple that `_fastpath.Ingest(records=…)` takes."""
        parts = self.parts or [(0, self.ts_ns, self.data, 0)]
        return parts, self.client, self.server, flow, index, ordinal, self.timed, TRUNCATED if self.truncated else 0, self.body_len


def content_length(head: bytes) -> int | None:
    """Content-Length of a head; None when there is none, or none that is a number."""
    found = re.search(rb"(?im)^content-length:[ \t]*(\d{1,18})[ \t]*\r?$", head)
    return int(found[1]) if found else None
