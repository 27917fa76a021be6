"""tcpdump -i any (Linux cooked v2) with nanoseconds, gzip: each packet between two namespaces is seen on the bridge and on its port."""

import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10")
SERVER = "server { listen 8080; location / { return 200 'cooked'; } }"
other = subprocess.Popen(["unshare", "-n", "sleep", "60"])
inside = ["nsenter", "-t", str(other.pid), "-n"]
time.sleep(0.3)
for command in (
    "ip link add v0 type veth peer name v1",
    "ip link add br0 type bridge",
    "ip link set v0 master br0",
    f"ip link set v1 netns {other.pid}",
    "ip addr add 10.2.0.1/24 dev br0",
    "ip link set v0 up",
    "ip link set br0 up",
    " ".join(inside) + " ip addr add 10.2.0.2/24 dev v1",
    " ".join(inside) + " ip link set v1 up",
):
    subprocess.run(command.split(), check=True)
time.sleep(1)
path = rig.CASE / "capture.pcap"
capture = rig.Recorder(command=["tcpdump", "-i", "any", "-y", "LINUX_SLL2", "--time-stamp-precision=nano", "-w", str(path), *rig.RING, "-Z", "root", "tcp"])
with rig.Nginx(SERVER) as nginx, capture:
    for i in range(6):
        rig.run(*inside, "curl", "-s", "-H", "Host: far.example", f"http://10.2.0.1:8080/far/{i}", f"http://10.2.0.1:8080/far/{i}/again")
        rig.run("curl", "-s", "-H", "Host: near.example", "-d", f"n={i}", f"http://10.1.0.10:8080/near/{i}")
other.kill()
rig.compress(path, "gz")
rig.write_truth(nginx.requests(lambda target: b"n=" + target[-1].encode() if target.startswith("/near") else b""))
