"""Two IPv6 addresses that differ in one byte, the same ports on both, curl -6 and Python, with and without brackets in Host."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("fd00::10", "fd00:0:1::1", "fd00:0:2::1")
SERVER = "server { listen [fd00::10]:8080; listen [::1]:8080; location / { return 200 'six\\n'; } }"
with rig.Nginx(SERVER) as nginx, rig.Recorder():
    rig.run("curl", "-s", "-6", "http://[fd00::10]:8080/curl", "http://[fd00::10]:8080/curl?again", "http://[::1]:8080/loopback")
    # Two clients whose last four address bytes and ports are the same, interleaved.
    both = [rig.connect(("fd00::10", 8080), (f"fd00:0:{n}::1", 45000)) for n in (1, 2)]
    for i in range(10):
        for k, one in enumerate(both):
            body = f"client {k}, request {i}".encode()
            one.sendall(f"POST /interleaved/{k}/{i} HTTP/1.1\r\nHost: six.example\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[: 5 + i % 3])
            both[k - 1].getsockname()
            one.sendall(body[5 + i % 3 :])
        for one in both:
            rig.read_reply(one)
    for one in both:
        one.close()


def body_of(target):
    _, kind, *rest = target.split("/")
    return f"client {rest[0]}, request {rest[1]}".encode() if kind == "interleaved" else b""


rig.write_truth(nginx.requests(body_of))
