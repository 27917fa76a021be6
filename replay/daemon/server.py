"""`--metrics ADDRESS`: /metrics, /healthz and /readyz over HTTP, bounded, and beside the engine's threads, which never wait for it.

At most `MOST` connections: a further one ends the oldest, so a probe gets through whoever sits on the others. Each is over after `DEADLINE_S`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from replay.daemon.metrics import Counted, registry
from replay.errors import UsageError

__all__ = ["MetricsServer"]

MOST = 16
DEADLINE_S = 10.0

_log = logging.getLogger("replay.metrics")
Start = Callable[..., Any]


class _Handler(WSGIRequestHandler):
    """One request a connection; nothing of it is logged."""

    timeout = DEADLINE_S

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def address_string(self) -> str:
        return str(self.client_address[0])  # and not a look-up of its name


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a connection, few of them."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], family: int, application: Any) -> None:
        self.address_family = family
        self._open: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__(address, _Handler)
        self.set_app(application)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._open) >= MOST:
                self._end(min(self._open, key=lambda one: self._open[one]))
            self._open[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
            super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called twice a second: ends what has taken too long."""
        late = time.monotonic() - DEADLINE_S
        with self._lock:
            for request in [one for one, began in self._open.items() if began < late]:
                self._end(request)

    def _end(self, request: socket.socket) -> None:
        del self._open[request]
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that went away is no news."""


class MetricsServer:
    """Serves until `close`. Raises UsageError when it cannot listen there. Between making and closing, `address` (or `where`, apart) says where it listens."""

    def __init__(self, address: tuple[str, int], counted: Counted, metrics: CollectorRegistry | None = None) -> None:
        self._counted = counted
        self._metrics = make_wsgi_app(registry(counted) if metrics is None else metrics)
        self._failed = ""
        self._server = _bound(address, self._answer)
        self.where = host, port = self._server.server_name, self._server.server_port
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.5}, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening; connections that are open are left to end."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path not in ("/", "/metrics", "/healthz", "/readyz"):
            return _text(start, "404 Not Found", "there are /metrics, /healthz and /readyz")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _text(start, "405 Method Not Allowed", "GET or HEAD", ("Allow", "GET, HEAD"))
        try:
            if path == "/":
                return _text(start, "200 OK", "/metrics\n/healthz\n/readyz")
            if path == "/metrics":
                # A HEAD costs what a GET does; its body is left out by the handler of the response.
                body: Iterable[bytes] = self._metrics(environ | {"REQUEST_METHOD": "GET"}, start)
                return body
            health = self._counted.health()
            good = health.alive if path == "/healthz" else health.alive and health.ready
            return _text(start, "200 OK" if good else "503 Service Unavailable", ("ok" if good else "not ok") + (f": {health.why}" if health.why else ""))
        except Exception as error:
            if repr(error) != self._failed:  # each kind is told once
                self._failed = repr(error)
                _log.error("%s could not be answered: %s: %s", path, type(error).__name__, error)
            return _text(start, "500 Internal Server Error", "the counters could not be read; the log says why")


def _text(start: Start, status: str, text: str, *headers: tuple[str, str]) -> list[bytes]:
    body = f"{text}\n".encode()
    start(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), ("Cache-Control", "no-store"), *headers])
    return [body]


def _bound(address: tuple[str, int], application: Any) -> _Server:
    """A server that listens there. All addresses: IPv6 with IPv4, or IPv4 alone where there is no IPv6."""
    host, port = address
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if not host:
            places = [(socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")]
        else:
            places = [(one[0], str(one[4][0])) for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--metrics {shown}: {getattr(error, 'strerror', None) or error}") from None
    found = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for family, where in places:
        try:
            return _Server((where, port), family, application)
        except OSError as error:
            found = error
            if error.errno == errno.EADDRINUSE:
                break
    raise UsageError(f"--metrics {shown}: cannot listen there: {found.strerror}; choose another address or port") from None
