"""Expect: 100-continue. Accepted by nginx (100, then the body); refused by nginx with 413 (curl); refused with 417 by a server of ours that keeps the
connection, so the next head stands where the body would have been; and a client that does not wait."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10", "10.1.0.11", "10.1.0.1")
SERVER = """server { listen 10.1.0.10:8080; client_max_body_size 10k;
    location / { root {folder}/store; dav_methods PUT; create_full_put_path on; } }"""
small, large = b"s" * 2000, b"L" * 30000
rows = []


def refuse(one, peer):
    """417 to what expects, 200 to the rest; the connection stays open."""
    while True:
        head = rig.read_until(one, b"\r\n\r\n")
        if not head:
            return
        if b"Expect:" in head:
            one.sendall(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
        else:
            if b"Content-Length: 4" in head:
                rig.read_exactly(one, 4)
            one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


(rig.CASE / "small.bin").write_bytes(small)
(rig.CASE / "large.bin").write_bytes(large)
with rig.Nginx(SERVER) as nginx, rig.Recorder():
    url = "http://10.1.0.10:8080"
    base = ["curl", "-s", "-o", "/dev/null", "-H", "Expect: 100-continue", "-H", "Host: expect.example"]
    rig.run(*base, "-T", str(rig.CASE / "small.bin"), f"{url}/accepted")
    rig.run(*base, "-T", str(rig.CASE / "large.bin"), f"{url}/refused", check=False)
    # Does not wait for the 100 and sends at once, the next request right behind.
    one = rig.connect(("10.1.0.10", 8080), ("10.1.0.1", 41000))
    one.sendall(b"PUT /eager HTTP/1.1\r\nHost: expect.example\r\nExpect: 100-continue\r\nContent-Length: 2000\r\n\r\n" + small)
    one.sendall(b"GET /eager HTTP/1.1\r\nHost: expect.example\r\n\r\n")
    finals = 0
    while finals < 2:
        finals += rig.read_reply(one)[0] >= 200
    one.close()
    rig.serve(("10.1.0.11", 8081), refuse)
    one = rig.connect(("10.1.0.11", 8081), ("10.1.0.1", 41001))
    name, peer = one.getsockname(), one.getpeername()
    for i, wire in enumerate([
        b"POST /will-be-refused HTTP/1.1\r\nHost: expect.example\r\nExpect: 100-continue\r\nContent-Length: 500\r\n\r\n",
        b"GET /after-417 HTTP/1.1\r\nHost: expect.example\r\n\r\n",
        b"POST /chunked-refused HTTP/1.1\r\nHost: expect.example\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /after-417-too HTTP/1.1\r\nHost: expect.example\r\nContent-Length: 4\r\n\r\nbody",
    ]):
        one.sendall(wire)
        status = rig.read_reply(one)[0]
        method, target, _ = wire.decode().split(" ", 2)
        refused = {"incomplete": "body_refused"} if status == 417 else {}
        rows.append(rig.truth(name, peer, method, target, "expect.example", b"body" if i == 3 else b"", status, **refused))
    one.close()
(rig.CASE / "small.bin").unlink()
(rig.CASE / "large.bin").unlink()
rows += nginx.requests(lambda target: nginx.stored.get(target[1:], b""))
for row in rows:
    if row["target"] == "/refused":
        row["incomplete"] = "closed"  # curl hangs up; no request follows
for row in rows:
    if row["method"] == "GET":
        row["body_len"], row["body_sha256"] = 0, rig.truth("", "", "", "", "")["body_sha256"]
rig.write_truth(rows)
