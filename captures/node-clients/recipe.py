"""Node: http.request with an agent that keeps connections, bodies in chunks, and fetch, against nginx."""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10")
SERVER = "server { listen 10.1.0.10:8080; location / { return 200 '{}'; } }"
script = pathlib.Path(__file__).with_name("clients.js")
with rig.Nginx(SERVER) as nginx, rig.Recorder():
    said = rig.run("node", str(script)).stdout
bodies = {target: body.encode() for target, body in json.loads(said).items()}
rig.write_truth(nginx.requests(lambda target: bodies.get(target, b"")))
