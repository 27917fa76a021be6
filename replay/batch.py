"""Requests of a capture as Python sees them: columns over the engine's memory (`Batch`), or objects made on demand (`Request`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from replay import _fastpath

if TYPE_CHECKING:
    import numpy

__all__ = ["Batch", "Request"]


class Request:
    """One request. Texts are as captured: UTF-8, or latin-1 where the bytes are not that; `head` has the bytes themselves.

    time_ns: of its first packet, since 1970.  connection: number of the captured connection; index: within it.  status, response_us: of the captured reply,
    None where it is not in the capture.  withheld, incomplete: why it would not be sent, or None.
    """

    __slots__ = ("_row",)

    def __init__(self, row: dict[str, Any]) -> None:
        self._row = row

    @property
    def number(self) -> int:
        """Ordinal among the requests found, from 0."""
        return int(self._row["n"])

    @property
    def time_ns(self) -> int:
        return int(self._row["ts_ns"])

    @property
    def connection(self) -> int:
        return int(self._row["flow"])

    @property
    def index(self) -> int:
        return int(self._row["index"])

    @property
    def client(self) -> str:
        """`10.0.0.1:50000`, `[2001:db8::1]:50000`."""
        return _endpoint(*self._row["client"])

    @property
    def server(self) -> str:
        return _endpoint(*self._row["server"])

    @property
    def method(self) -> str:
        return _text(self._row["method"])

    @property
    def target(self) -> str:
        """As in the request line: a path with its query, or an absolute URL."""
        return _text(self._row["target"])

    @property
    def path(self) -> str:
        """The target up to `?`."""
        return self.target.partition("?")[0]

    @property
    def version(self) -> str:
        """`1.0` or `1.1`."""
        return f"{self._row['version'] // 10}.{self._row['version'] % 10}"

    @property
    def host(self) -> str | None:
        """The Host field; None without one."""
        return None if self._row["host"] is None else _text(self._row["host"])

    @property
    def head(self) -> bytes:
        """Request line and headers, through the empty line."""
        return bytes(self._row["head"])

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Fields in their order, outer blanks cut; a folded line is joined."""
        found: list[tuple[str, str]] = []
        for line in self.head.split(b"\n")[1:]:
            line = line.removesuffix(b"\r")
            if line[:1] in (b" ", b"\t") and found:
                found[-1] = found[-1][0], f"{found[-1][1]} {_text(line.strip())}".strip()
            elif line:
                name, _, value = line.partition(b":")
                found.append((_text(name), _text(value.strip(b" \t"))))
        return found

    def header(self, name: str) -> str | None:
        """The first field of this name, in any case; None without one."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def body_length(self) -> int:
        """Bytes of the body, chunk framing removed."""
        return int(self._row["body_len"])

    @property
    def body_sha256(self) -> str | None:
        """Of the body, chunk framing removed; None where it is not known (`as_sent`, incomplete)."""
        found: str | None = self._row["body_sha256"]
        return found

    @property
    def framing(self) -> str:
        """`none`, `length` or `chunked`."""
        return str(self._row["framing"])

    @property
    def status(self) -> int | None:
        found: int | None = self._row["status"]
        return found

    @property
    def response_us(self) -> float | None:
        """First byte of the request to first byte of its reply."""
        return None if self._row["response_ns"] is None else self._row["response_ns"] / 1000

    @property
    def withheld(self) -> str | None:
        found: str | None = self._row["withheld"]
        return found

    @property
    def incomplete(self) -> str | None:
        found: str | None = self._row["incomplete"]
        return found

    def __repr__(self) -> str:
        return f"<Request {self.number}: {self.method} {self.target}>"


class Batch:
    """Some requests as columns, without a copy: arrays are views of the engine's memory, read only, and keep it while they live.

    len() and iteration give Requests.  `batch["ts_ns"]` is a column of `rows`.
    """

    __slots__ = ("_rows", "requests")

    def __init__(self, requests: _fastpath.Requests) -> None:
        self.requests = requests
        self._rows: numpy.ndarray[Any, Any] | None = None

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, name: str) -> numpy.ndarray[Any, Any]:
        column: numpy.ndarray[Any, Any] = self.rows[name]
        return column

    def __iter__(self) -> Iterator[Request]:
        for at in range(len(self.requests)):
            yield Request(self.requests[at])

    def request(self, at: int) -> Request:
        """Request `at` of this batch. Raises IndexError."""
        return Request(self.requests[at])

    @property
    def rows(self) -> numpy.ndarray[Any, Any]:
        """A structured array, a row a request: times in ns; `at` of a method is 0, of target and host relative to the request's first byte."""
        if self._rows is None:
            import numpy

            names, formats, offsets = zip(*_fastpath.REQUEST_FIELDS, strict=True)
            kind = numpy.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": _fastpath.REQUEST_SIZE})
            self._rows = numpy.frombuffer(self.requests.rows(), dtype=kind)
        return self._rows

    @property
    def arena(self) -> numpy.ndarray[Any, Any]:
        """uint8: the bytes of all requests of the batch."""
        import numpy

        return numpy.frombuffer(self.requests.arena()[1], dtype=numpy.uint8)

    @property
    def begins(self) -> numpy.ndarray[Any, Any]:
        """uint64: where each request begins in the arena; `length` bytes of it are there."""
        begins: numpy.ndarray[Any, Any] = self.rows["address"] - self.requests.arena()[0]
        return begins

    def data(self, at: int) -> bytes:
        """The bytes of request `at`: its captured head, or with `as_sent` the whole request as it would be sent."""
        return self.requests.data(at)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _endpoint(address: bytes, port: int) -> str:
    import ipaddress

    found = ipaddress.IPv6Address(address)
    return f"{found.ipv4_mapped}:{port}" if found.ipv4_mapped else f"[{found}]:{port}"
