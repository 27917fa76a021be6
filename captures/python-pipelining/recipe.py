"""Twenty requests written at once, ten more in pieces of seven bytes, several heads and bodies in one segment, against nginx."""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10", "10.1.0.1")
SERVER = "server { listen 10.1.0.10:80; location / { return 200 'ok'; } }"
bodies = {}


def request(i, body=None):
    if body is None:
        return f"GET /get/{i} HTTP/1.1\r\nHost: pipe.example\r\n\r\n".encode()
    bodies[f"/post/{i}"] = body
    return f"POST /post/{i} HTTP/1.1\r\nHost: pipe.example\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


with rig.Nginx(SERVER) as nginx, rig.Recorder():
    one = rig.connect(("10.1.0.10", 80), ("10.1.0.1", 40001))
    one.sendall(b"".join(request(i) for i in range(20)))
    for _ in range(20):
        rig.read_reply(one)
    one.close()
    one = rig.connect(("10.1.0.10", 80), ("10.1.0.1", 40002))
    wire = b"".join(request(i, b"ABC" * i if i % 2 else None) for i in range(100, 110))
    for at in range(0, len(wire), 7):
        one.sendall(wire[at : at + 7])
        time.sleep(0.001)
    for _ in range(10):
        rig.read_reply(one)
    one.close()
    one = rig.connect(("10.1.0.10", 80), ("10.1.0.1", 40003))
    one.sendall(b"".join(request(i, b"GET /in-a-body HTTP/1.1\r\nHost: no.example\r\n\r\n" * (i - 199)) for i in range(200, 206)))
    for _ in range(6):
        rig.read_reply(one)
    one.close()
rig.write_truth(nginx.requests(lambda target: bodies.get(target, b"")))
