"""A real recording from which packets were taken, doubled and exchanged: a lost request, a lost piece of a body, a lost half of a head, a lost reply, every packet twice, and
neighbours exchanged. What was taken is known by its content, so the truth is too."""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10", "10.1.0.1")
SERVER = "server { listen 10.1.0.10:8080; location / { add_header X-Target $request_uri; return 200 'ok'; } }"
rows, lost = [], set()
SIX = ("a", "b", "c", "d", "e", "f")

with rig.Nginx(SERVER) as nginx, rig.Recorder() as capture:
    for k, kind in enumerate(SIX):
        one = rig.connect(("10.1.0.10", 8080), ("10.1.0.1", 47001 + k))
        name, peer = one.getsockname(), one.getpeername()
        for i in range(8):
            target, row = f"/{kind}/{i}", {}
            if kind in "bf" and i % 3 == 1:
                body = b"".join(b"segment-%d-" % j + b"." * 900 for j in range(4))
                one.sendall(f"POST {target} HTTP/1.1\r\nHost: loss.example\r\nContent-Length: {len(body)}\r\n\r\n".encode())
                for at in range(0, len(body), len(body) // 4):
                    time.sleep(0.002)
                    one.sendall(body[at : at + len(body) // 4])
                row = {"incomplete": "gap"} if (kind, i) == ("b", 4) else {}
                rows.append(rig.truth(name, peer, "POST", target, "loss.example", body, **row))
            else:
                head = f"GET {target} HTTP/1.1\r\nHost: loss.example\r\nX-Rest: of-{kind}-{i}-\r\n\r\n".encode()
                cut = len(head) if (kind, i) != ("c", 3) else head.index(b"X-Rest")
                one.sendall(head[:cut])
                if cut < len(head):
                    time.sleep(0.002)
                    one.sendall(head[cut:])
                    row = {"incomplete": "gap"}
                if (kind, i) != ("a", 3):
                    rows.append(rig.truth(name, peer, "GET", target, "loss.example", status=None if (kind, i) == ("d", 3) else 200, **row))
            rig.read_reply(one)
            time.sleep(0.03)
        one.close()

header, packets = rig.read_pcap(capture.path)


def take(frame):
    """True for what the capture shall lack."""
    ip = frame[14:]
    payload = ip[20 + (ip[32] >> 4) * 4 : int.from_bytes(ip[2:4], "big")]
    from_client = ip[12:16] == bytes([10, 1, 0, 1])
    port = int.from_bytes(ip[20:22] if from_client else ip[22:24], "big")
    kind = SIX[port - 47001]
    if from_client:
        # the body's third piece of b/4 is the second one sent of its kind, see `twice`
        return (kind == "a" and b"/a/3 " in payload) or (kind == "c" and payload.startswith(b"X-Rest: of-c-3-")) or (kind == "b" and b"segment-2-" in payload and twice.pop(0))
    return kind == "d" and b"X-Target: /d/3\r\n" in payload


twice = [False, True, False]  # b/1, b/4, b/7
edited, held = [], None
for record, frame in packets:
    if take(frame):
        lost.add(frame)
        continue
    port = max(int.from_bytes(frame[34:36], "big"), int.from_bytes(frame[36:38], "big"))
    edited.append((record, frame))
    if port == 47005:
        edited.append((record, frame))
    if port == 47006 and b"segment-1-" in frame[60:]:
        held = edited.pop()
    elif held is not None:
        edited.append(held)
        held = None
assert len(lost) == 4, len(lost)
rig.write_pcap(capture.path, header, edited)
rig.write_truth(rows)
