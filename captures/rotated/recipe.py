"""dumpcap -b packets:40: one conversation over a dozen pcapng files; keep-alive connections and bodies go on from one to the next."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10", "10.1.0.1")
SERVER = "server { listen 10.1.0.10:8080; location / { return 200 'turn'; } }"
for old in rig.CASE.glob("*.pcapng"):
    old.unlink()
body = b"".join(b"part %03d " % i + b"." * 60 for i in range(60))
capture = rig.Recorder(command=["dumpcap", "-q", "-B", "64", "-i", "lo", "-f", "tcp", "-b", "packets:40", "-w", str(rig.CASE / "turn.pcapng")])
with rig.Nginx(SERVER) as nginx, capture:
    three = [rig.connect(("10.1.0.10", 8080), ("10.1.0.1", 48000 + k)) for k in range(3)]
    for i in range(20):
        for k, one in enumerate(three):
            if k == 2 and i % 4 == 0:
                one.sendall(f"POST /post/{i} HTTP/1.1\r\nHost: turn.example\r\nContent-Length: {len(body)}\r\n\r\n".encode())
                for at in range(0, len(body), 300):
                    one.sendall(body[at : at + 300])
            else:
                one.sendall(f"GET /get/{k}/{i} HTTP/1.1\r\nHost: turn.example\r\n\r\n".encode())
        for one in three:
            rig.read_reply(one)
    for one in three:
        one.close()
for n, old in enumerate(sorted(rig.CASE.glob("turn_*.pcapng")), 1):
    old.rename(rig.CASE / f"turn-{n:02d}.pcapng")
rig.write_truth(nginx.requests(lambda target: body if target.startswith("/post") else b""))
