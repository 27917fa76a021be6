"""Upgrade accepted (what follows is frames, some of which hold the text of a request), and refused (the connection stays HTTP)."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10", "10.1.0.1")
ASK = b"Host: ws.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
INSIDE = b"GET /inside-a-frame HTTP/1.1\r\nHost: no.example\r\n\r\n"


def frame(data, mask=b""):
    assert len(data) < 126
    return bytes([0x82, len(data) | (0x80 if mask else 0)]) + mask + (bytes(b ^ mask[i % 4] for i, b in enumerate(data)) if mask else data)


def chat(one, peer):
    while True:
        head = rig.read_until(one, b"\r\n\r\n")
        if not head:
            return
        if b"GET /chat" in head:
            one.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
            while one.recv(1000):
                one.sendall(frame(INSIDE))
            return
        status = b"426 Upgrade Required" if b"Upgrade:" in head else b"200 OK"
        one.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 3\r\n\r\nno\n")


rows = []
rig.serve(("10.1.0.10", 8080), chat)
with rig.Recorder():
    one = rig.connect(("10.1.0.10", 8080), ("10.1.0.1", 42001))
    name, peer = one.getsockname(), one.getpeername()
    for target, more in (("/first", b"Host: ws.example\r\n\r\n"), ("/refused", ASK), ("/after-refusal", b"Host: ws.example\r\n\r\n"), ("/chat", ASK)):
        one.sendall(b"GET " + target.encode() + b" HTTP/1.1\r\n" + more)
        status = rig.read_reply(one)[0]
        rows.append(rig.truth(name, peer, "GET", target, "ws.example", status=status, **({"withheld": "upgrade"} if status == 101 else {})))
    for mask in (b"\x01\x02\x03\x04", b"\0\0\0\0", b"\0\0\0\0"):  # a mask of zeros leaves the text readable
        one.sendall(frame(INSIDE, mask))
        one.recv(1000)
    one.close()
rig.write_truth(rows)
