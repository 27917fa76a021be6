"""A recording that begins in the middle of what is going on and sees the clients' side alone (`dst port 8080`): no SYN, no replies. A connection that
begins later has its SYN."""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10", "10.1.0.1")
SERVER = "server { listen 10.1.0.10:8080; location / { return 200 'half'; } }"
body = b"0123456789" * 30


def ask(one, target, data=b""):
    length = f"Content-Length: {len(data)}\r\n" if data else ""
    one.sendall(f"{'POST' if data else 'GET'} {target} HTTP/1.1\r\nHost: half.example\r\n{length}\r\n".encode() + data)
    rig.read_reply(one)


with rig.Nginx(SERVER) as nginx:
    old = [rig.connect(("10.1.0.10", 8080), ("10.1.0.1", 50001 + k)) for k in range(3)]
    for one in old:
        ask(one, "/before/the-recording")
    old[2].sendall(b"POST /begun-before HTTP/1.1\r\nHost: half.example\r\nContent-Length: 300\r\n\r\n" + body[:100])
    time.sleep(0.1)
    with rig.Recorder(expression="tcp and dst port 8080"):
        old[2].sendall(body[100:])
        rig.read_reply(old[2])
        for i in range(4):
            for one in old:
                ask(one, f"/old/{i}", body if i == 2 else b"")
        new = rig.connect(("10.1.0.10", 8080), ("10.1.0.1", 50010))
        for i in range(4):
            ask(new, f"/new/{i}", body if i == 2 else b"")
        for one in [*old, new]:
            one.close()
rows = [row for row in nginx.requests(lambda target: body if target.endswith("/2") else b"") if "before" not in row["target"]]
for row in rows:
    row["status"] = None  # the replies are not in the capture
    if row["target"].startswith("/old"):
        row["withheld"] = "unconfirmed"
rig.write_truth(rows)
