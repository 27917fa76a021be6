"""Envoy's tap files as requests: HTTP taps and socket taps, buffered and streamed; JSON (bodies as bytes or strings), binary, length-delimited, text.

What a tap leaves out is built again: Host from :authority, framing from the body (Content-Length as sent, else chunked), `HTTP/1.1`. A route's rewriting is
undone (x-envoy-original-host, -path), so that buffered and streamed taps give the same. What Envoy cut is `truncated`.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import ipaddress
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from replay.capture.protobuf import MESSAGES, message, varint, walk
from replay.capture.record import LATEST_NS, NOWHERE, Fault, Record

__all__ = ["looks_like", "read"]

_KINDS = ("http_buffered_trace", "http_streamed_trace_segment", "socket_buffered_trace", "socket_streamed_trace_segment")
_JSON = re.compile(
    rb"\s*\{\s*\"(" + "|".join(_KINDS).encode() + rb"|httpBufferedTrace|httpStreamedTraceSegment|socketBufferedTrace|socketStreamedTraceSegment)\""
)
_TEXT = re.compile(rb"\s*(" + "|".join(_KINDS).encode() + rb")\s*:?\s*\{")
_PIECE = 1 << 20
_MOST = 512 << 20  # of a file that has to be in memory as a whole
_TAGS = (0x0A, 0x12, 0x1A, 0x22)
_LEAST = 8  # bytes of a trace that tell it from something else
_FIELD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def looks_like(first: bytes) -> str | None:
    """`json`, `text`, `binary` or `delimited` for the first bytes of a file; None for anything else."""
    if _JSON.match(first):
        return "json"
    if _TEXT.match(first):
        return "text"
    view = memoryview(first)
    if _binary(view, 0):
        return "binary"
    try:
        _, at = varint(view, 0, len(view))
    except ValueError:
        return None
    return "delimited" if _binary(view, at, one=varint(view, 0, len(view))[0]) else None


def _binary(view: memoryview, at: int, one: int | None = None) -> bool:
    """A wrapper begins there: one of four fields, whose beginning is that of a trace. one: its length, when something says so."""
    if at >= len(view) or view[at] not in _TAGS:
        return False
    try:
        length, begin = varint(view, at + 1, len(view))
        if one is not None and begin - at + length != one:
            return False
        if not length or len(view) - begin < _LEAST:
            return False
        number, wire = view[begin] >> 3, view[begin] & 7
        if view[at] in (0x0A, 0x12) and wire == 2:  # a message of headers: a name follows soon
            part = bytes(view[begin : begin + 64])
            return view[at] == 0x0A and 1 <= number <= 3 and b":" in part and _fits(view, begin, begin + length, "http")
        kind = MESSAGES["wrapper"][view[at] >> 3][1]
        return wire in (0, 2) and 1 <= number <= 7 and (wire == 0) == (number == 1) and _fits(view, begin, begin + length, kind)
    except ValueError:
        return False


def _fits(view: memoryview, at: int, end: int, kind: str) -> bool:
    """What is there of a message of that kind is fields, none longer than what it is in: of a text that begins with quotation marks it is not."""
    there = min(end, len(view))
    while at < there:
        try:
            tag, at = varint(view, at, there)
            value, at = varint(view, at, there)
        except ValueError:
            return there < end
        if tag < 8 or tag & 7 not in (0, 2):
            return False
        if tag & 7 == 2:
            inside = MESSAGES[kind].get(tag >> 3, ("", ""))[1].rstrip("*")
            if at + value > end or (inside in MESSAGES and not _fits(view, at, at + value, inside)):
                return False
            at += value
    return True


# ---- reading -------------------------------------------------------------------------------------------------------------------


def read(file: BinaryIO, name: str, faults: list[Fault]) -> Iterator[Record]:
    """The requests of a tap file. What cannot be decoded is a fault; what came before it is given."""
    data = bytearray()
    try:
        while piece := file.read(_PIECE):
            data += piece
            if len(data) > _MOST:
                faults.append(Fault(name, "a tap file of more than 512 MiB is not read; let Envoy write smaller ones (one a request)"))
                return
    except EOFError:
        faults.append(Fault(name, "the gzip stream has no end; what unpacks was read", fatal=False))
    kind = looks_like(bytes(data[:4096]))
    if kind is None:
        faults.append(Fault(name, "no tap file of Envoy"))
        return
    wrappers = {"json": _json, "text": _text, "binary": _wire, "delimited": _delimited}[kind](bytes(data), name, faults)
    streams: dict[tuple[str, Any], dict[str, Any]] = {}
    for wrapper in wrappers:
        for kind, trace in wrapper.items():
            if kind not in _KINDS or not isinstance(trace, dict):
                continue
            try:
                if kind == "http_buffered_trace":
                    record = _http(trace.get("request"), trace.get("response"), trace.get("downstream_connection"), pieces=None)
                    if record is not None:
                        yield record
                elif kind == "socket_buffered_trace":
                    yield _socket(trace, trace.get("events") or [], _truth(trace.get("read_truncated")), _truth(trace.get("write_truncated")))
                else:
                    _collect(streams, kind, trace)
            except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
                faults.append(Fault(name, f"a trace cannot be read: {error}; it was passed over", fatal=False))
    for (kind, _), stream in streams.items():
        try:
            if kind == "socket_streamed_trace_segment":
                yield _socket(stream, stream["events"], False, False)
            else:
                record = _http(stream["request"], stream["response"], None, pieces=stream["pieces"])
                if record is not None:
                    yield record
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
            faults.append(Fault(name, f"a trace cannot be read: {error}; it was passed over", fatal=False))


def _collect(streams: dict[tuple[str, Any], dict[str, Any]], kind: str, part: dict[str, Any]) -> None:
    """A segment to its trace."""
    stream = streams.setdefault((kind, str(part.get("trace_id", ""))), {"request": None, "response": None, "pieces": [], "events": [], "connection": None})
    if kind == "socket_streamed_trace_segment":
        if part.get("connection"):
            stream["connection"] = part["connection"]
        if part.get("event"):
            stream["events"].append(part["event"])
        stream["events"] += (part.get("events") or {}).get("events") or []
        return
    if "request_headers" in part and stream["request"] is None:
        stream["request"] = {"headers": (part["request_headers"] or {}).get("headers")}
    if "request_body_chunk" in part:
        stream["pieces"].append(part["request_body_chunk"] or {})
    if "request_trailers" in part and stream["request"] is not None:
        stream["request"]["trailers"] = (part["request_trailers"] or {}).get("headers")
    if "response_headers" in part and stream["response"] is None:
        stream["response"] = {"headers": (part["response_headers"] or {}).get("headers")}


# ---- HTTP taps --------------------------------------------------------------------------------------------------------------------


def _http(request: Any, response: Any, connection: Any, *, pieces: list[Any] | None) -> Record | None:
    """A record of a trace. pieces: of the body, with streaming."""
    if not request or not request.get("headers"):
        return None
    pseudo: dict[bytes, bytes] = {}
    fields: list[tuple[bytes, bytes]] = []
    for name, value in _pairs(request["headers"]):
        if name.startswith(b":"):
            pseudo[name] = value
        else:
            fields.append((name, value))
    found = dict(fields)
    host = found.get(b"x-envoy-original-host", pseudo.get(b":authority", found.get(b"host", b"")))
    path = found.get(b"x-envoy-original-path", pseudo.get(b":path", b""))
    method = pseudo.get(b":method", b"")
    gone = {b"x-envoy-original-host", b"x-envoy-original-path", b"host", b"transfer-encoding"}
    for word, what in ((method, "method"), (path or b"-", "path")):
        if not word or re.search(rb"[\x00-\x20\x7f]", word):
            raise ValueError(f"its {what} is missing, or holds blanks or control bytes")
    bodies = [request.get("body") or {}] if pieces is None else pieces
    parts = [_bytes(one) for one in bodies]
    body = b"".join(parts)
    truncated = any(_truth(one.get("truncated")) for one in bodies)
    trailers = _pairs(request.get("trailers") or [])
    length = found.get(b"content-length")
    status = next((value for name, value in _pairs((response or {}).get("headers") or []) if name == b":status"), None)
    if length is not None and any("as_string" in one for one in bodies) and body and length.isdigit() and int(length) != len(body) and status is not None:
        truncated = True  # bytes that are no UTF-8 were replaced: what was sent is lost
    chunked = length is None and (bool(body) or bool(trailers) or truncated)
    lines = [b"%s %s HTTP/1.1\r\n" % (method, path if method != b"CONNECT" else host), b"host: %s\r\n" % host]
    lines += [b"%s: %s\r\n" % (name, value) for name, value in fields if name not in gone]
    lines += [b"transfer-encoding: chunked\r\n"] if chunked else []
    behind = [b"%s: %s\r\n" % pair for pair in trailers] if chunked else []
    if chunked:
        coded = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part)
        coded += b"0\r\n" + b"".join(behind) + b"\r\n"
    else:
        coded = body if length is not None else b""
    for what, one in (("header", lines[1:]), ("trailer", behind)):  # it would be a field of its own, or a request
        if any(re.search(rb"[\x00\r\n]", line[:-2]) for line in one):
            raise ValueError(f"a {what} holds a line break")
    if any(line.startswith(b":") for line in behind):
        raise ValueError("a trailer has the name of a pseudo-header")
    at = _time(request.get("headers_received_time"))
    client = _end((connection or {}).get("remote_address"))
    record = Record(
        at or 0,
        b"".join(lines) + b"\r\n" + coded,
        client,
        _end((connection or {}).get("local_address")),
        key=b"" if client[1] == 0 else b"%s%d" % client,
        truncated=truncated,
        body_len=len(body),
    )
    if status is not None and re.fullmatch(rb"\d{3}", status):
        record.reply(status, _time((response or {}).get("headers_received_time")))
    return record


def _pairs(headers: Any) -> list[tuple[bytes, bytes]]:
    found = []
    for one in headers:
        name = _raw(one.get("key"))
        raw = one.get("raw_value")
        value = _raw(one.get("value"))
        if raw:
            value = raw if isinstance(raw, bytes) else base64.b64decode(raw, validate=True)
        if not _FIELD.fullmatch(name.removeprefix(b":")):
            raise ValueError(f"{name[:40]!r} is no header name")
        found.append((name.lower(), value))
    return found


def _raw(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return str(value or "").encode("utf-8", "surrogatepass")


def _bytes(body: dict[str, Any]) -> bytes:
    value = body.get("as_bytes")
    if value:
        if isinstance(value, bytes):
            return value
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise ValueError(f"a body is no base64: {error}") from None
    return _raw(body.get("as_string"))


def _truth(value: Any) -> bool:
    return value is True or value == "true"


# ---- socket taps --------------------------------------------------------------------------------------------------------------------


def _socket(trace: dict[str, Any], events: list[Any], read_cut: bool, write_cut: bool) -> Record:
    """A connection as what its two sides said. Who sends requests is the client: the peer of a listener, Envoy itself at a cluster."""
    parts: list[tuple[int, int, bytes, int]] = []
    first = {0: b"", 1: b""}
    last = 0
    for event in events:
        last = _time(event.get("timestamp")) or last
        for side, name in ((0, "read"), (1, "write")):
            said = (event.get(name) or {}).get("data")
            if said is not None:
                data = _bytes(said)
                first[side] = first[side] or data
                parts.append((side, last, data, 1 if _truth(said.get("truncated")) else 0))
    asks = 1 if re.match(rb"[A-Z]{3,10} [^\r\n]* HTTP/1", first[1][:2000]) else 0
    for side, cut in ((0, read_cut), (1, write_cut)):
        at = max((i for i, part in enumerate(parts) if part[0] == side), default=-1)
        if cut and at >= 0:
            parts[at] = (*parts[at][:3], 1)
    parts = [(side ^ asks, at, data, missing) for side, at, data, missing in parts]
    connection = trace.get("connection") or {}
    local, remote = _end(connection.get("local_address")), _end(connection.get("remote_address"))
    client, server = (remote, local) if asks == 0 else (local, remote)
    return Record(parts[0][1] if parts else 0, b"", client, server, parts=parts or [(0, 0, b"", 0)], timed=any(part[1] for part in parts))


# ---- values ---------------------------------------------------------------------------------------------------------------------------


def _time(value: Any) -> int | None:
    """ns since 1970 of a number (binary, text) or RFC 3339 (JSON)."""
    if isinstance(value, int):
        return value if 0 < value < LATEST_NS else None
    if isinstance(value, dict):
        return _time(int(value.get("seconds", 0)) * 10**9 + int(value.get("nanos", 0)))
    found = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z", value or "")
    if found is None:
        return None
    whole = datetime.datetime.fromisoformat(found[1] + "+00:00") - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return _time((whole.days * 86400 + whole.seconds) * 10**9 + int((found[2] or "").ljust(9, "0")))


def _end(address: Any) -> tuple[bytes, int]:
    where = (address or {}).get("socket_address") or {}
    try:
        found = ipaddress.ip_address(_raw(where.get("address")).decode())
        port = int(where.get("port_value") or 0)
    except ValueError:
        return NOWHERE, 0
    packed = found.packed if isinstance(found, ipaddress.IPv6Address) else bytes(10) + b"\xff\xff" + found.packed
    return packed, port if 0 <= port < 65536 else 0


# ---- formats ----------------------------------------------------------------------------------------------------------------------------


def _wire(data: bytes, name: str, faults: list[Fault]) -> Iterator[dict[str, Any]]:
    view = memoryview(data)
    try:
        for number, wire, span in walk(view, 0, len(view)):
            if wire != 2 or not 1 <= number <= 4:
                raise ValueError("no trace")
            kind = ("http", "http_segment", "socket", "socket_segment")[number - 1]
            yield {_KINDS[number - 1]: message(view, span[0], span[1], kind)}
    except ValueError as error:
        faults.append(Fault(name, f"the file ends in the middle of a trace, or is damaged: {error}; what came before was read", fatal=False))


def _delimited(data: bytes, name: str, faults: list[Fault]) -> Iterator[dict[str, Any]]:
    view = memoryview(data)
    at = 0
    try:
        while at < len(view):
            length, at = varint(view, at, len(view))
            if length > len(view) - at:
                raise ValueError("a trace is longer than the file")
            yield message(view, at, at + length, "wrapper")
            at += length
    except ValueError as error:
        faults.append(Fault(name, f"the file ends in the middle of a trace, or is damaged: {error}; what came before was read", fatal=False, offset=at))


def _json(data: bytes, name: str, faults: list[Fault]) -> Iterator[dict[str, Any]]:
    text = data.decode("utf-8", "surrogateescape")
    decoder = json.JSONDecoder(strict=False)
    blank = re.compile(r"[\s,]*")
    at = blank.match(text, 0).end()  # type: ignore[union-attr]
    while at < len(text):
        try:
            found, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            faults.append(Fault(name, f"the file ends in the middle of a trace, or is damaged: {why}; what came before was read", fatal=False, offset=at))
            return
        if isinstance(found, dict):
            try:
                yield _snake(found)
            except RecursionError:
                faults.append(Fault(name, "a trace is nested too deeply; it was passed over", fatal=False, offset=at))
        at = blank.match(text, at).end()  # type: ignore[union-attr]


def _snake(value: Any) -> Any:
    if isinstance(value, dict):
        return {re.sub(r"(?<=[a-z])([A-Z])", lambda m: "_" + m[1].lower(), name): _snake(inner) for name, inner in value.items()}
    return [_snake(inner) for inner in value] if isinstance(value, list) else value


_TOKEN = re.compile(
    rb"\s*(?:#[^\n]*\n\s*)*(?:(?P<word>[A-Za-z_][\w.]*)|(?P<number>-?\d[\w.+-]*)|(?P<text>\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*')|(?P<sign>[{}<>:;,\[\]]))",
    re.DOTALL,
)
_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|x[0-9A-Fa-f]{1,2}|.)", re.DOTALL)
_REPEATED = ("headers", "events", "trailers")


def _unescaped(text: bytes) -> bytes:
    def one(found: re.Match[bytes]) -> bytes:
        code = found[1]
        if code[:1].isdigit():
            return bytes([int(code, 8) & 255])
        if code[:1] == b"x" and len(code) > 1:
            return bytes([int(code[1:], 16)])
        return _ESCAPES.get(code, code)

    return _ESCAPE.sub(one, text[1:-1])


def _text(data: bytes, name: str, faults: list[Fault]) -> Iterator[dict[str, Any]]:
    """The text format: `name: value` and `name { … }`, one after the other."""
    at = 0
    try:
        while True:
            found: dict[str, Any] = {}
            end = _text_field(data, at, found, 0)
            if end is None:
                if data[at:].strip():
                    raise ValueError(f"unexpected {data[at : at + 20]!r}")
                return
            at = end
            yield found
    except ValueError as error:
        faults.append(Fault(name, f"the file ends in the middle of a trace, or is damaged: {error}; what came before was read", fatal=False, offset=at))


def _token(data: bytes, at: int) -> re.Match[bytes] | None:
    return _TOKEN.match(data, at)


def _text_field(data: bytes, at: int, into: dict[str, Any], depth: int) -> int | None:
    """One field into a dict; where it ends, or None when there is none."""
    if depth > 16:
        raise ValueError("nested too deeply")
    token = _token(data, at)
    if token is None or not token["word"]:
        return None
    name, at = token["word"].decode(), token.end()
    token = _token(data, at)
    if token is not None and token["sign"] == b":":
        at = token.end()
        token = _token(data, at)
    if token is None:
        raise ValueError(f"{name} has no value")
    value: Any
    if token["sign"] in (b"{", b"<"):
        value, at = {}, token.end()
        while True:
            end = _text_field(data, at, value, depth + 1)
            if end is None:
                break
            at = end
        token = _token(data, at)
        if token is None or token["sign"] not in (b"}", b">"):
            raise ValueError(f"{name} has no end")
        at = token.end()
    elif token["text"] is not None:
        value = b""
        while token is not None and token["text"] is not None:  # pieces side by side are one text
            value += _unescaped(token["text"])
            at = token.end()
            token = _token(data, at)
    elif token["word"] is not None or token["number"] is not None:
        word = token["word"] or token["number"]
        value = word == b"true" if word in (b"true", b"false") else int(word) if word.isdigit() and len(word) < 25 else word.decode("latin-1")
        at = token.end()
    else:
        raise ValueError(f"{name} has no value")
    token = _token(data, at)
    if token is not None and token["sign"] in (b";", b","):
        at = token.end()
    if name in _REPEATED and not (name == "events" and isinstance(value, dict) and "events" in value):
        several = into.setdefault(name, [])
        if not isinstance(several, list):
            raise ValueError(f"{name} is one thing and several")
        several.append(value)
    else:
        into[name] = value
    return at
