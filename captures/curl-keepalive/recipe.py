"""curl with several URLs on one connection: HEAD, 204, 304, redirects, DELETE, a query that needs care, then a new connection."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10", "10.1.0.1")
SERVER = """server { listen 10.1.0.10:8080; server_name shop;
    location = /empty { return 204; }
    location = /moved { return 302 /elsewhere; }
    location = /page { add_header Last-Modified "Wed, 01 Jul 2026 10:00:00 GMT"; add_header ETag '"v1"'; if ($http_if_none_match) { return 304; } return 200 'a page\\n'; }
    location / { return 200 'hello $request_method\\n'; } }"""
URL = "http://10.1.0.10:8080"
BASE = ["curl", "-s", "--interface", "10.1.0.1", "-H", "Host: shop"]
PUT = b"x" * 100

with rig.Nginx(SERVER) as nginx, rig.Recorder():
    rig.run(*BASE, "-o", "/dev/null", f"{URL}/page", "-o", "/dev/null", f"{URL}/empty", "-o", "/dev/null", f"{URL}/page?a=1&b=%20+x;y", "-o", "/dev/null", f"{URL}/moved")
    rig.run(*BASE, "-I", f"{URL}/page", f"{URL}/empty", f"{URL}/one")
    rig.run(*BASE, "-o", "/dev/null", "-H", 'If-None-Match: "v1"', f"{URL}/page", "-o", "/dev/null", f"{URL}/two", "-o", "/dev/null", f"{URL}/empty")
    rig.run(*BASE, "-o", "/dev/null", "-X", "DELETE", f"{URL}/one", "--next", *BASE[1:], "-o", "/dev/null", "-X", "PROPFIND", f"{URL}/dav",
            "--next", *BASE[1:], "-o", "/dev/null", "-X", "PUT", "-d", PUT.decode(), f"{URL}/put", "--next", *BASE[1:], "-o", "/dev/null", "-X", "QUERY", f"{URL}/query")
    rig.run(*BASE, "-o", "/dev/null", "--no-keepalive", "-H", "Connection: close", f"{URL}/last")
rig.write_truth(nginx.requests(lambda target: PUT if target == "/put" else b""))
