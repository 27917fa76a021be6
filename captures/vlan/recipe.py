"""A recording into which tags were put afterwards: one connection in 802.1Q, one in QinQ (88a8 + 8100), one in three tags, one with Ethernet padding behind short packets."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10", "10.1.0.1")
SERVER = "server { listen 10.1.0.10:8080; location / { return 200 'tag'; } }"
TAGS = (b"\x81\x00\x00\x64", b"\x88\xa8\x00\xc8\x81\x00\x00\x64", b"\x91\x00\x00\x01\x81\x00\x20\x02\x81\x00\x00\x03", b"")
with rig.Nginx(SERVER) as nginx, rig.Recorder() as capture:
    for k in range(4):
        one = rig.connect(("10.1.0.10", 8080), ("10.1.0.1", 49000 + k))
        for i in range(6):
            body = b"PAD" if i % 2 else b""
            one.sendall(f"POST /tag/{k}/{i} HTTP/1.1\r\nHost: tag.example\r\nContent-Length: {len(body)}\r\n\r\n".encode())
            for at in range(len(body)):
                one.sendall(body[at : at + 1])
            rig.read_reply(one)
        one.close()
header, packets = rig.read_pcap(capture.path)
edited = []
for record, frame in packets:
    k = max(int.from_bytes(frame[34:36], "big"), int.from_bytes(frame[36:38], "big")) - 49000
    frame = frame[:12] + TAGS[k] + frame[12:]
    if k == 3:
        frame += b"GET /padding "[: max(0, 80 - len(frame))]
    size = len(frame).to_bytes(4, "little")
    edited.append((record[:8] + size + size, frame))
rig.write_pcap(capture.path, header, edited)
rig.write_truth(nginx.requests(lambda target: b"PAD" if int(target[-1]) % 2 else b""))
