"""ab speaks HTTP/1.0: with and without Keep-Alive, with a body; replies end with the connection."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10", "10.1.0.1")
SERVER = "server { listen 10.1.0.10:8080; location / { return 200 'ten of them\\n'; } }"
body = b"name=value&more=" + b"z" * 300
(rig.CASE / "body.bin").write_bytes(body)
with rig.Nginx(SERVER) as nginx, rig.Recorder():
    for options in ([], ["-k"], ["-p", str(rig.CASE / "body.bin"), "-T", "application/x-www-form-urlencoded"], ["-k", "-i"]):
        target = "/post" if "-p" in options else "/get"
        rig.run("ab", "-q", "-n", "12", "-c", "3", "-B", "10.1.0.1", *options, f"http://10.1.0.10:8080{target}")
(rig.CASE / "body.bin").unlink()
rig.write_truth(nginx.requests(lambda target: body if target == "/post" else b""))
