"""Upgrade: h2c from curl and nghttp, which nginx (1.22) does not know: answered in HTTP/1.1, so ordinary requests."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10", "10.1.0.1")
SERVER = "server { listen 10.1.0.10:8080; location / { return 200 'still 1.1\\n'; } }"
with rig.Nginx(SERVER) as nginx, rig.Recorder():
    url = "http://10.1.0.10:8080"
    rig.run("curl", "-s", "--http2", "-H", "Host: h2c.example", f"{url}/curl-1", f"{url}/curl-2")
    rig.run("curl", "-s", "--http2", "-H", "Host: h2c.example", "-d", "with=body", f"{url}/curl-post")
    rig.run("nghttp", "-u", f"{url}/nghttp", check=False)
rig.write_truth(nginx.requests(lambda target: b"with=body" if target == "/curl-post" else b""))
