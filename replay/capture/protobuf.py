"""The wire format of protocol buffers, and the few messages of Envoy's taps, as dicts with the names that JSON has. Hostile bytes raise ValueError.

Source of numbers: envoyproxy/envoy:api/envoy/data/tap/v3 (http, transport, common, wrapper), api/envoy/config/core/v3/address.proto.
"""

from __future__ import annotations

from typing import Any

__all__ = ["MESSAGES", "message", "varint", "walk"]

_DEPTH = 16
Schema = dict[int, tuple[str, str]]

# number: (name, kind); kind: bytes, text, int, bool, time, a message, or a message in a list (`*`)
MESSAGES: dict[str, Schema] = {
    "wrapper": {
        1: ("http_buffered_trace", "http"),
        2: ("http_streamed_trace_segment", "http_segment"),
        3: ("socket_buffered_trace", "socket"),
        4: ("socket_streamed_trace_segment", "socket_segment"),
    },
    "http": {1: ("request", "http_message"), 2: ("response", "http_message"), 3: ("downstream_connection", "connection")},
    "http_message": {1: ("headers", "header*"), 2: ("body", "body"), 3: ("trailers", "header*"), 4: ("headers_received_time", "time")},
    "http_segment": {
        1: ("trace_id", "int"),
        2: ("request_headers", "headers"),
        3: ("request_body_chunk", "body"),
        4: ("request_trailers", "headers"),
        5: ("response_headers", "headers"),
        6: ("response_body_chunk", "body"),
        7: ("response_trailers", "headers"),
    },
    "headers": {1: ("headers", "header*")},
    "header": {1: ("key", "text"), 2: ("value", "text"), 3: ("raw_value", "bytes")},
    "body": {1: ("as_bytes", "bytes"), 2: ("as_string", "text"), 3: ("truncated", "bool")},
    "socket": {
        1: ("trace_id", "int"),
        2: ("connection", "connection"),
        3: ("events", "event*"),
        4: ("read_truncated", "bool"),
        5: ("write_truncated", "bool"),
    },
    "socket_segment": {1: ("trace_id", "int"), 2: ("connection", "connection"), 3: ("event", "event"), 4: ("events", "events")},
    "events": {1: ("events", "event*")},
    "connection": {1: ("local_address", "address"), 2: ("remote_address", "address")},
    "address": {1: ("socket_address", "socket_address")},
    "socket_address": {2: ("address", "text"), 3: ("port_value", "int")},
    "event": {1: ("timestamp", "time"), 2: ("read", "said"), 3: ("write", "said"), 4: ("closed", "empty")},
    "said": {1: ("data", "body"), 2: ("end_stream", "bool")},
    "time": {1: ("seconds", "int"), 2: ("nanos", "int")},
    "empty": {},
}


def varint(data: bytes | memoryview, at: int, end: int) -> tuple[int, int]:
    """(value, where it ends). Raises ValueError."""
    value = shift = 0
    while True:
        if at >= end or shift > 63:
            raise ValueError("a number has no end")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7


def walk(data: memoryview, at: int, end: int) -> Any:
    """(field, wire type, value or (begin, end)) of each field. Raises ValueError."""
    while at < end:
        tag, at = varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise ValueError("a field has the number 0")
        if wire == 0:
            value, at = varint(data, at, end)
            yield number, wire, value
        elif wire == 2:
            length, at = varint(data, at, end)
            if length > end - at:
                raise ValueError("a field is longer than its message")
            yield number, wire, (at, at + length)
            at += length
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
            if length > end - at:
                raise ValueError("a field is longer than its message")
            yield number, wire, (at, at + length)
            at += length
        else:
            raise ValueError(f"the wire type {wire} is not known")


def message(data: memoryview, at: int, end: int, kind: str, depth: int = 0) -> dict[str, Any]:
    """A message as a dict. Unknown fields are passed over. Raises ValueError."""
    if depth > _DEPTH:
        raise ValueError("nested too deeply")
    schema = MESSAGES[kind]
    found: dict[str, Any] = {}
    for number, wire, value in walk(data, at, end):
        if number not in schema:
            continue
        name, what = schema[number]
        if what in ("int", "bool"):
            if wire != 0:
                raise ValueError(f"{name} is no number")
            found[name] = bool(value) if what == "bool" else value
            continue
        if wire != 2:
            raise ValueError(f"{name} has the wrong wire type")
        begin, stop = value
        if what in ("bytes", "text"):
            found[name] = bytes(data[begin:stop])
        elif what == "time":
            parts = message(data, begin, stop, "time", depth + 1)
            found[name] = parts.get("seconds", 0) * 10**9 + parts.get("nanos", 0)
        elif what.endswith("*"):
            found.setdefault(name, []).append(message(data, begin, stop, what[:-1], depth + 1))
        else:
            found[name] = message(data, begin, stop, what, depth + 1)
    return found
