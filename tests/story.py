"""A small shop in two versions, for the story of a mirror: v2 is slower in its search, wrong in its orders, and does not know old tokens.

python story.py PORT v1|v2
"""

import http.server
import json
import sys
import time

OLD, NEW = "Bearer old-token", "Bearer new-token"


class Shop(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # a reply in one piece: no waiting for a delayed acknowledgement
    version = "v1"

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        status, path = 200, self.path.partition("?")[0]
        known = (OLD, NEW) if self.version == "v1" else (NEW,)
        if path.startswith("/account") and self.headers.get("Authorization") not in known:
            status = 401
        elif path == "/search":
            time.sleep(0.002 if self.version == "v1" else 0.04)
        elif path.startswith("/orders/") and self.version == "v2" and int(path.rpartition("/")[2]) % 3 == 0:
            status = 500
        elif path == "/orders" and self.command == "POST":
            status = 201
        elif path.startswith("/missing"):
            status = 404
        body = json.dumps({"path": path, "version": self.version}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    Shop.version = sys.argv[2]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Shop)
    print(server.server_port, flush=True)
    server.serve_forever()
