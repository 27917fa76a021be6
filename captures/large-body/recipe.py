"""A body of one megabyte with Content-Length, one in chunks, and a reply of one megabyte; zstd."""

import hashlib
import http.client
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10", "10.1.0.1")
SERVER = "server { listen 10.1.0.10:8080; client_max_body_size 4m; location / { root {folder}/store; dav_methods PUT; create_full_put_path on; } }"
line = b"".join(b"%07d\n" % i for i in range(512))
body = b"".join(line[i % 97 :] + bytes([65 + i % 26]) * (i % 97) for i in range(256))
assert len(body) == 1 << 20, len(body)

with rig.Nginx(SERVER) as nginx, rig.Recorder() as capture:
    one = http.client.HTTPConnection("10.1.0.10", 8080, source_address=("10.1.0.1", 0))
    host = {"Host": "large.example"}
    one.request("PUT", "/length", body=body, headers=host)
    one.getresponse().read()
    one.request("GET", "/length", headers=host)
    assert one.getresponse().read() == body
    one.request("PUT", "/chunks", body=(body[at : at + 50_000] for at in range(0, 1 << 19, 50_000)), headers=host, encode_chunked=True)
    one.getresponse().read()
    one.request("GET", "/length?after", headers=host)
    one.getresponse().read()
    one.close()
rig.compress(capture.path, "zst")
rows = nginx.requests()
for row in rows:
    if row["method"] == "PUT":
        stored = nginx.stored[row["target"][1:]]
        row["body_len"], row["body_sha256"] = len(stored), hashlib.sha256(stored).hexdigest()
rig.write_truth(rows)
