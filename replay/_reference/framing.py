"""Heads and chunks: docs/design.md H1 to H5, from RFC 9112 2.2, 3, 5, 6, 7.1 and RFC 9110 5.6.2. Must not know: connections."""

import re
from dataclasses import dataclass, field

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([^\n]+) HTTP/1\.([0-9])\r?\n")
# What may still become one: a method, then anything but a line end.
REQUEST_BEGINS = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{0,32}|[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32} [^\n]*")
STATUS_BEGINS = re.compile(rb"HTTP/1\.[0-9] ([0-9]{0,3})")  # the rest of a status line decides nothing
FRAMING_NAMES = (b"host", b"content-length", b"transfer-encoding")
MOST = 2**63 - 1
NO, MAYBE, YES, HTTP2 = range(4)


def request_line(data: bytes) -> int:
    """H1: does it begin with one? MAYBE: it is not whole yet."""
    if re.match(rb"PRI \* HTTP/2\.0\r?\n", data):
        return HTTP2
    if b"\n" in data:
        return YES if REQUEST_LINE.match(data) else NO
    return MAYBE if REQUEST_BEGINS.fullmatch(data) else NO


def status_line(data: bytes) -> int:
    if len(data) >= 9:
        return YES if STATUS_BEGINS.match(data) else NO
    return MAYBE if b"HTTP/1.".startswith(data[:7]) else NO


def head_length(data: bytes) -> int:
    """Through the first empty line; 0: it is not there yet."""
    found = re.search(rb"\n\r?\n", data)
    return found.end() if found else 0


@dataclass
class Head:
    method: bytes = b""
    target: bytes = b""
    version: int = 11
    status: int = 0
    framing: str = "none"  # none, length, chunked
    length: int = 0
    ambiguous: bool = False  # what follows is not trusted either
    hosts_differ: bool = False  # ambiguous as well, but the framing is certain
    malformed: bool = False
    hosts: list[bytes] = field(default_factory=list)
    upgrade: list[bytes] = field(default_factory=list)
    expects: bool = False
    marked: bool = False  # x-shadow-replay


def parse_fields(lines: list[bytes], head: Head) -> list[tuple[bytes, bytes]]:
    """(lower-case name, value without outer blanks); notes what is odd (H4). Of a folded field the first line counts."""
    fields: list[tuple[bytes, bytes]] = []
    for line in lines:
        if not line.endswith(b"\r\n"):
            head.ambiguous = True
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if b"\r" in line or b"\0" in line:
            head.ambiguous = True
        if line[:1] in (b" ", b"\t"):
            text = line.strip(b" \t").lower()
            if not fields or fields[-1][0] in FRAMING_NAMES or text.startswith(FRAMING_NAMES):
                head.ambiguous = True
            continue
        name, colon, value = line.partition(b":")
        if not colon or not TOKEN.fullmatch(name):
            head.ambiguous = True
        name = name.rstrip(b" \t").lower()
        if name in (b"content_length", b"transfer_encoding"):
            head.ambiguous = True
        if colon:
            fields.append((name, value.strip(b" \t")))
    return fields


def set_framing(head: Head, fields: list[tuple[bytes, bytes]]) -> None:
    """H3 to H5."""
    codings = [value for name, value in fields if name == b"transfer-encoding"]
    lengths = [value for name, value in fields if name == b"content-length"]
    if lengths:
        head.ambiguous |= len(lengths) > 1 or bool(codings)
        found = re.fullmatch(rb"([0-9]+)[ \t]*(,[0-9, \t]*)?", lengths[0])  # of a list the first member counts
        if found and int(found[1]) <= MOST:
            head.framing, head.length = "length", int(found[1])
            head.ambiguous |= bool(found[2])
        elif not codings:
            head.malformed = True
    if codings:
        spelled = b",".join(codings)
        each = [one.strip(b" \t").lower() for one in spelled.split(b",")]
        named = [one for one in each if one]
        head.ambiguous |= len(codings) > 1 or head.version == 10 or len(named) < len(each) or b"chunked" in named[:-1]
        head.ambiguous |= not re.fullmatch(rb"[!#$%&'*+.^_`|~0-9A-Za-z, \t-]*", spelled)
        if [one.strip(b" \t").lower() for one in codings[-1].split(b",") if one.strip(b" \t")][-1:] == [b"chunked"]:
            head.framing = "chunked"
        else:
            head.malformed = True


def parse_head(data: bytes, reply: bool = False) -> Head:
    """A whole head that begins with a request line or status line."""
    lines = re.findall(rb"[^\n]*\n", data)
    head = Head()
    if reply:
        found = STATUS_BEGINS.match(data)
        assert found
        head.status, head.version = int(found[1] or b"0"), 10 if data[7:8] == b"0" else 11
    else:
        found = REQUEST_LINE.match(data)
        assert found
        head.method, head.target, head.version = found[1], found[2], 10 if found[3] == b"0" else 11
        if re.search(rb"[\x00-\x20\x7f]", head.target):
            head.ambiguous = True
    for line in (lines[0], lines[-1]):
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            head.ambiguous = True
    fields = parse_fields(lines[1:-1], head)
    head.hosts = [value for name, value in fields if name == b"host"]
    head.hosts_differ = len(set(head.hosts)) > 1
    head.upgrade = [value for name, value in fields if name == b"upgrade" and value]
    head.expects = any(name == b"expect" and value.lower() == b"100-continue" for name, value in fields)
    head.marked = any(name == b"x-shadow-replay" for name, _ in fields)
    set_framing(head, fields)
    if head.method == b"CONNECT":  # what follows is a tunnel, or was refused
        head.ambiguous |= head.framing == "chunked" or head.length > 0 or head.malformed  # has a body, or has none (RFC 9110 9.3.6)
        head.framing, head.length, head.malformed = "none", 0, False
    return head


class Chunks:
    """A chunked body, fed in pieces (RFC 9112 7.1)."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.missing = False
        self.left = 0  # of the chunk's data
        self.line = b""
        self.state = "size"  # size, data, end (of the data), trailers, done, bad
        self.ambiguous = False
        self.begun = False
        self.fields = False  # a trailer field came

    def feed(self, data: bytes) -> int:
        """How many bytes were taken; all of them unless `done` or `bad`."""
        at = 0
        while at < len(data) and self.state not in ("done", "bad"):
            self.begun = True
            if self.state == "data":
                piece = data[at : at + self.left]
                self.body += piece
                at += len(piece)
                self.skip(len(piece))
                continue
            byte = data[at : at + 1]
            at += 1
            self.line += byte
            if self.state == "end":
                if self.line in (b"\n", b"\r\n"):
                    self.ambiguous |= self.line == b"\n"
                    self.line, self.state = b"", "size"
                elif self.line != b"\r":
                    self.state = "bad"
            elif self.state == "size":
                self.size_line()
            elif byte == b"\n":
                if not self.line.endswith(b"\r\n") or re.search(rb"[\0\r]", self.line[:-2]):
                    self.ambiguous = True
                if self.line in (b"\n", b"\r\n"):
                    self.state = "done"
                elif re.match(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:", self.line):
                    self.fields = True
                elif not self.fields or self.line[:1] not in (b" ", b"\t"):
                    self.ambiguous = True
                self.line = b""
        return at

    def size_line(self) -> None:
        line = self.line
        if not line.endswith(b"\n"):
            found = re.fullmatch(rb"[ \t]*(?:([0-9A-Fa-f]+)[ \t]*(;[^\n]*)?\r?)?", line)
            if not found or int(found[1] or b"0", 16) > MOST:
                self.state = "bad"
            return
        text = line[:-1].removesuffix(b"\r")
        found = re.fullmatch(rb"([ \t]*)([0-9A-Fa-f]+)([ \t]*)(;[^\n]*)?", text)
        if not found or int(found[2], 16) > MOST:
            self.state = "bad"
            return
        odd = found[1] or (found[3] and not found[4])
        if odd or not line.endswith(b"\r\n") or re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", found[4] or b""):
            self.ambiguous = True
        self.left = int(found[2], 16)
        self.line, self.state = b"", "data" if self.left else "trailers"

    def skip(self, length: int) -> None:
        """Bytes of the chunk's data that were read, or that are a gap."""
        self.left -= length
        if not self.left:
            self.state = "end"
