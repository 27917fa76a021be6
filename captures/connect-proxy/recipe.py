"""A proxy of ours: CONNECT accepted (a plain request inside the tunnel, seen once more on its way to nginx), CONNECT refused and the connection goes on, and absolute-form targets."""

import pathlib
import socket
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10", "10.1.0.20", "10.1.0.1")
SERVER = "server { listen 10.1.0.10:80; location / { return 200 'origin\\n'; } }"


def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return


def proxy(one, peer):
    while True:
        head = rig.read_until(one, b"\r\n\r\n")
        if not head:
            return
        if head.startswith(b"CONNECT 10.1.0.10:80 "):
            other = rig.connect(("10.1.0.10", 80), ("10.1.0.20", 0))
            one.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            threading.Thread(target=pump, args=(other, one), daemon=True).start()
            pump(one, other)
            return
        status = b"403 Forbidden" if head.startswith(b"CONNECT") else b"200 OK"
        one.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 6\r\n\r\nproxy\n")


rows = []
rig.serve(("10.1.0.20", 3128), proxy)
with rig.Nginx(SERVER) as nginx, rig.Recorder():
    one = rig.connect(("10.1.0.20", 3128), ("10.1.0.1", 43001))
    name, peer = one.getsockname(), one.getpeername()
    for method, target, host in (
        ("GET", "http://origin.example/absolute?q=1", "origin.example"),
        ("GET", "http://user@other.example:8080/with-port", "ignored.example"),
        ("OPTIONS", "*", "proxy.example"),
        ("CONNECT", "forbidden.example:443", "forbidden.example:443"),
        ("GET", "http://origin.example/after-refused-connect", "origin.example"),
        ("CONNECT", "10.1.0.10:80", "10.1.0.10:80"),
    ):
        one.sendall(f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        status = rig.read_reply(one, head_only=target == "10.1.0.10:80")[0]
        rows.append(rig.truth(name, peer, method, target, host, status=status, **({"withheld": "connect"} if method == "CONNECT" else {})))
    one.sendall(b"GET /inside-the-tunnel HTTP/1.1\r\nHost: tunnel.example\r\n\r\n")
    rig.read_reply(one)
    one.close()
    rig.run("curl", "-s", "-x", "http://10.1.0.20:3128", "--interface", "10.1.0.1", "--local-port", "43100", "http://shop.example/by-curl")
    rows.append(rig.truth("10.1.0.1:43100", peer, "GET", "http://shop.example/by-curl", "shop.example"))
rig.write_truth(rows + nginx.requests())
