"""HTTP/2 with prior knowledge (curl, nghttp): counted under its name, nothing found in it."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10", "10.1.0.1")
SERVER = "server { listen 10.1.0.10:8080 http2; location / { return 200 'two\\n'; } }"
with rig.Nginx(SERVER) as nginx, rig.Recorder():
    url = "http://10.1.0.10:8080"
    for i in (1, 2):
        rig.run("curl", "-s", "--http2-prior-knowledge", f"{url}/{i}")
    rig.run("curl", "-s", "--http2-prior-knowledge", "-d", "GET /not-a-request HTTP/1.1\r\nHost: no\r\n\r\n", f"{url}/post", check=False)
    rig.run("nghttp", "-n", f"{url}/3", f"{url}/4")
assert len(nginx.log) == 5
rig.write_truth([])
