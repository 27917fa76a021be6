"""`curl -T -` and Python's http.client with chunks of many sizes; nginx stores what it got (the digests are of the stored files)."""

import http.client
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10", "10.1.0.1")
SERVER = "server { listen 10.1.0.10:8080; client_max_body_size 4m; location / { root {folder}/store; dav_methods PUT; create_full_put_path on; } }"

with rig.Nginx(SERVER) as nginx, rig.Recorder():
    for i, data in enumerate([b"one line\n", b"", b"".join(b"%06d\n" % j for j in range(4000))]):
        subprocess.run(["curl", "-s", "-T", "-", "-H", "Host: upload.example", f"http://10.1.0.10:8080/curl-{i}"], input=data, check=True, timeout=30)
    one = http.client.HTTPConnection("10.1.0.10", 8080, source_address=("10.1.0.1", 0))
    for i, parts in enumerate([[b"a"], [b"0\r\n\r\n", b"\r\n0\r\n\r\n"], [bytes([65 + j % 26]) * j for j in range(1, 80)], [b"\0" * 3000] * 3]):
        one.request("PUT", f"/python-{i}", body=iter(parts), headers={"Host": "upload.example"}, encode_chunked=True)
        one.getresponse().read()
    # By hand: extensions, a trailer, sizes with leading zeros, the end split between segments.
    one.sock.sendall(b"PUT /by-hand HTTP/1.1\r\nHost: upload.example\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5;name=value\r\nhello\r\n0006\r\n world\r\n0\r\nX-Sum: 1")
    one.sock.sendall(b"2\r\n\r")
    one.sock.sendall(b"\n")
    rig.read_reply(one.sock)
    one.close()
rig.write_truth(nginx.requests(lambda target: nginx.stored[target[1:]]))
