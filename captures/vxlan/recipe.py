"""Two networks joined by the kernel's VXLAN, recorded on the wire between them: HTTP inside UDP, two VNIs, and a plain request beside."""

import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network()
SERVER = "server { listen 8080; location / { return 200 'over'; } }"
other = subprocess.Popen(["unshare", "-n", "sleep", "60"])
inside = ["nsenter", "-t", str(other.pid), "-n"]
time.sleep(0.3)
setup = ["ip link add v0 type veth peer name v1", f"ip link set v1 netns {other.pid}"]
for prefix, end, device in (("", 1, "v0"), (" ".join(inside) + " ", 2, "v1")):
    setup += [f"{prefix}ip addr add 10.3.0.{end}/24 dev {device}", f"{prefix}ip link set {device} up"]
    for vni in (5, 6):
        setup += [
            f"{prefix}ip link add vx{vni} type vxlan id {vni} remote 10.3.0.{3 - end} dstport 4789 dev {device}",
            f"{prefix}ip addr add 10.{vni}.0.{end}/24 dev vx{vni}",
            f"{prefix}ip link set vx{vni} up",
        ]
for command in setup:
    subprocess.run(command.split(), check=True)
time.sleep(1)
with rig.Nginx(SERVER) as nginx, rig.Recorder(interface="v0", expression="ip"):
    for i in range(4):
        for net in (5, 6, 3):
            rig.run(*inside, "curl", "-s", "-H", f"Host: net-{net}.example", f"http://10.{net}.0.1:8080/{net}/{i}", f"http://10.{net}.0.1:8080/{net}/{i}/again")
            rig.run(*inside, "curl", "-s", "-H", f"Host: net-{net}.example", "-d", "n=" + str(i) * 2000, f"http://10.{net}.0.1:8080/{net}/{i}/post")
other.kill()
rig.write_truth(nginx.requests(lambda target: b"n=" + target.split("/")[2].encode() * 2000 if target.endswith("post") else b""))
