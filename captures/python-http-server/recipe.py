"""Python's http.server (HTTP/1.0 replies that end with the connection) asked by urllib and a client that half-closes; HEAD, 304, 501 and 404 replies."""

import http.server
import pathlib
import sys
import threading
import urllib.error
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10", "10.1.0.1")
rows = []


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_request(self, code="-", size="-"):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        version = self.request_version.removeprefix("HTTP/")
        rows.append(rig.truth(self.client_address, self.connection.getsockname(), self.command, self.path, self.headers.get("Host"), body, int(code), version))

    def do_POST(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"until the end")

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("10.1.0.10", 8000), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = "http://10.1.0.10:8000"
with rig.Recorder():
    for target, more in (("/rig.py", {}), ("/missing", {}), ("/rig.py", {"method": "HEAD"}), ("/form", {"data": b"a=1&b=2"}), ("/rig.py", {"method": "DELETE"}),
                         ("/rig.py", {"headers": {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"}})):
        try:
            urllib.request.urlopen(urllib.request.Request(url + target, **more), timeout=5).read()
        except urllib.error.HTTPError as answer:
            answer.close()
    for version in ("HTTP/1.0", "HTTP/1.1"):
        one = rig.connect(("10.1.0.10", 8000), ("10.1.0.1", 0))
        one.sendall(f"GET /half-close?{version} {version}\r\n{'Host: half.example' if version == 'HTTP/1.1' else 'X-No: host'}\r\n\r\n".encode())
        one.shutdown(1)
        while one.recv(65536):
            pass
        one.close()
for row in rows:
    if row["host"] is None:
        row["withheld"] = "no_host"
rig.write_truth(rows)
