"""dumpcap on a bridge, on the port of that bridge and on `lo` at once (pcapng with three interfaces): the same conversation is seen in two places and counts once.
Offloaded check sums are wrong, as they are on every such machine."""

import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10")
SERVER = "server { listen %s; location / { return 200 'seen'; } }"
other = subprocess.Popen(["unshare", "-n", "sleep", "60"])
inside = ["nsenter", "-t", str(other.pid), "-n"]
time.sleep(0.3)
for command in (
    ["ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"],
    ["ip", "link", "add", "br0", "type", "bridge"],
    ["ip", "link", "set", "v0", "master", "br0"],
    ["ip", "link", "set", "v1", "netns", str(other.pid)],
    ["ip", "addr", "add", "10.2.0.1/24", "dev", "br0"],
    ["ip", "link", "set", "v0", "up"],
    ["ip", "link", "set", "br0", "up"],
    [*inside, "ip", "addr", "add", "10.2.0.2/24", "dev", "v1"],
    [*inside, "ip", "link", "set", "v1", "up"],
):
    subprocess.run(command, check=True)
capture = rig.Recorder(command=["dumpcap", "-q", "-B", "64", "-i", "br0", "-i", "v0", "-i", "lo", "-f", "tcp", "-w", str(rig.CASE / "capture.pcapng")])
body = b"b" * 5000
with rig.Nginx(SERVER % "10.2.0.1:8080" + SERVER % "10.1.0.10:8080") as nginx, capture:
    (rig.CASE / "body.bin").write_bytes(body)
    time.sleep(1)
    for i in range(5):
        rig.run(*inside, "curl", "-s", "-H", "Host: far.example", f"http://10.2.0.1:8080/far/{i}", f"http://10.2.0.1:8080/far/{i}/again")
        rig.run("curl", "-s", "-H", "Host: near.example", f"http://10.1.0.10:8080/near/{i}")
    rig.run(*inside, "curl", "-s", "-H", "Host: far.example", "--data-binary", f"@{rig.CASE}/body.bin", "http://10.2.0.1:8080/far/post")
(rig.CASE / "body.bin").unlink()
other.kill()
rig.write_truth(nginx.requests(lambda target: body if target == "/far/post" else b""))
