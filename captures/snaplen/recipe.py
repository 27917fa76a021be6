"""tcpdump -s 200: 134 bytes of each segment are in the file. What fits is whole, the rest is known as cut, and the next head is found."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10", "10.1.0.1")
ROOM = 200 - 14 - 20 - 32  # Ethernet, IPv4, TCP with time stamps


def answer(one, peer):
    while True:
        head = rig.read_until(one, b"\r\n\r\n")
        if not head:
            return
        if b"Content-Length: " in head:
            rig.read_exactly(one, int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
        size = 500 if b"/long-reply" in head else 2
        one.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode() + b"x" * size)


rows = []
rig.serve(("10.1.0.10", 8080), answer)
with rig.Recorder(snap=200):
    one = rig.connect(("10.1.0.10", 8080), ("10.1.0.1", 46001))
    name, peer = one.getsockname(), one.getpeername()
    for method, target, head_more, body in [
        ("GET", "/fits", "", b""),
        ("POST", "/body-fits", "", b"short"),
        ("POST", "/body-cut", "", b"b" * 400),
        ("GET", "/after-cut-body", "", b""),
        ("GET", "/head-cut", "Cookie: " + "c" * 300 + "\r\n", b""),
        ("GET", "/after-cut-head", "", b""),
        ("GET", "/long-reply", "", b""),
        ("GET", "/after-long-reply", "", b""),
    ]:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        wire = f"{method} {target} HTTP/1.1\r\nHost: snap.example\r\n{length}{head_more}\r\n".encode() + body
        one.sendall(wire)
        status = rig.read_reply(one)[0]
        cut = {"incomplete": "cut_by_snaplen"} if len(wire) > ROOM else {}
        assert (len(wire) > ROOM) == ("-cut" in target and "after" not in target)
        rows.append(rig.truth(name, peer, method, target, "snap.example", body, status, **cut))
    one.close()
rig.write_truth(rows)
