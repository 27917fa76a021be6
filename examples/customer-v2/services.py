"""Customer (v1 and v2), preference and recommendation: small HTTP services in threads, each on a port of its own on the loopback device, each with a log."""

import contextlib
import http.client
import http.server
import threading


class Log:
    """What the services saw: one dict a request. Safe from several threads."""

    def __init__(self):
        self._rows = []
        self._lock = threading.Lock()

    def add(self, **row):
        with self._lock:
            self._rows.append(row)

    def __len__(self):
        return len(self._rows)

    def take(self):
        """The rows so far; the log begins anew."""
        with self._lock:
            rows, self._rows = self._rows, []
        return rows


class Handler(http.server.BaseHTTPRequestHandler):
    """Asks the next service, if there is one, and answers with its own name in front of what that one said."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # a reply in one piece
    service = version = ""
    upstream = None  # (name, port) of the next service
    log: Log

    def setup(self):
        super().setup()
        # A connection for each of ours; http.client connects at the first request.
        self.calls = self.upstream and http.client.HTTPConnection("127.0.0.1", self.upstream[1], timeout=10)

    def finish(self):
        if self.calls:
            self.calls.close()
        super().finish()

    def do_GET(self):
        number = self.headers.get("X-Request-Id", "")
        self.log.add(
            service=f"{self.service} {self.version}",
            host=self.headers.get("Host", ""),
            caller=self.headers.get("User-Agent", ""),
            target=self.path,
            request_id=number,
        )
        text, status = f"{self.service} {self.version}", 200
        if self.calls:
            name, _ = self.upstream
            headers = {"Host": f"{name}:8080", "User-Agent": text, "X-Request-Id": number}
            try:
                self.calls.request("GET", f"/{name}", headers=headers)
                text += " => " + self.calls.getresponse().read().decode().strip()
            except (OSError, http.client.HTTPException) as error:
                self.calls.close()
                text, status = f"{text} => {name}: {error}", 503
        body = text.encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128


@contextlib.contextmanager
def running(log):
    """The four, by name, with their ports."""
    servers = {}

    def start(service, version, upstream=None):
        handler = type("Handler", (Handler,), {"service": service, "version": version, "upstream": upstream, "log": log})
        servers[f"{service} {version}"] = server = Server(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server.server_port

    try:
        recommendation = start("recommendation", "v1")
        preference = start("preference", "v1", ("recommendation", recommendation))
        for version in ("v1", "v2"):
            start("customer", version, ("preference", preference))
        yield {name: server.server_port for name, server in servers.items()}
    finally:
        for server in servers.values():
            server.shutdown()
            server.server_close()
