"""Where to listen, as people write it."""

from __future__ import annotations

import re

__all__ = ["listen_address"]


def listen_address(text: str) -> tuple[str, int]:
    """`127.0.0.1:9917`, `[::1]:9917`, `:9917` (all addresses) as host and port. Raises ValueError."""
    host, colon, port = text.strip().rpartition(":")
    if not colon or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        raise ValueError(f"{text!r} is no address to listen on; write 127.0.0.1:9917, [::1]:9917, or :9917 for all addresses")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address stands in brackets, such as [::1]:{port}")
    return host, int(port)
