"""Frames of connections that never stand, made and sent as fast as asked: SYNs of as many flows, payload out of nowhere, half heads. A program of its own, so that it can run in another network namespace.

    python benchmarks/flooding.py eth0 02:00:00:00:00:01 10.201.1.1 8080 --flows 1m --rate 20k --seed 1        (as root)

Of each eight flows six send a SYN and nothing more, one a segment of garbage without a connection, one a SYN and the beginning of a request whose end never comes. Sources are of 10.0.0.0/9 and never the same twice.
"""

import argparse
import random
import socket
import struct
import time

import inputs

SYN, ACK, PSH = 2, 16, 8
HALF = b"GET /never HTTP/1.1\r\nHost: flood.example\r\nX-Half: "


def folded(total):
    """The Internet checksum of a sum of 16 bit words."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def words(data):
    return sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) & 1)))


class Frames:
    """Ethernet frames to one server."""

    def __init__(self, mac, server, port):
        self.link = bytes.fromhex(mac.replace(":", "")) + b"\x02\0\0\0\0\x02" + b"\x08\0"
        self.server, self.port = socket.inet_aton(server), port
        self.to = words(self.server)

    def one(self, client, client_port, sequence, flags, payload=b""):
        """client: 4 bytes."""
        length = 40 + len(payload)
        source = words(client)
        header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, length, 0, 0x4000, 64, 6, folded(0x4500 + length + 0x4000 + 0x4006 + source + self.to), client, self.server)
        total = source + self.to + 6 + length - 20 + client_port + self.port + (sequence >> 16) + (sequence & 0xFFFF) + (0x5000 | flags) + 0xFAF0 + (words(payload) if payload else 0)
        return self.link + header + struct.pack(">HHIIBBHHH", client_port, self.port, sequence, 0, 0x50, flags, 0xFAF0, folded(total), 0) + payload


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("interface")
    parser.add_argument("mac")
    parser.add_argument("server")
    parser.add_argument("port", type=int)
    parser.add_argument("--flows", type=inputs.count, default=1_000_000)
    parser.add_argument("--rate", type=inputs.count, default=20_000, help="flows a second; 0: as fast as it goes")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    frames, sent = Frames(asked.mac, asked.server, asked.port), 0
    kinds = [0, 0, 0]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.bind((asked.interface, 0))
        began = time.monotonic()
        for flow in range(asked.flows):
            client = struct.pack(">I", 0x0A000000 | (flow * 2_654_435_761 & 0x7FFFFF))  # an odd factor: each address once before one comes again
            port, sequence = 1024 + flow % 60_000, chance.getrandbits(32)
            if flow & 7 == 7:
                kinds[1] += 1
                out.send(frames.one(client, port, sequence, ACK | PSH, b"\0" + chance.randbytes(200)))
            elif flow & 7 == 3:
                kinds[2] += 1
                out.send(frames.one(client, port, sequence, SYN))
                out.send(frames.one(client, port, sequence + 1 & 0xFFFFFFFF, ACK | PSH, HALF + b"a" * chance.randrange(1000)))
                sent += 1
            else:
                kinds[0] += 1
                out.send(frames.one(client, port, sequence, SYN))
            sent += 1
            if asked.rate and not flow & 63:
                ahead = began + flow / asked.rate - time.monotonic()
                if ahead > 0:
                    time.sleep(ahead)
    print(f"{sent} frames of {asked.flows} flows: {kinds[0]} half-open, {kinds[1]} garbage, {kinds[2]} half heads, in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
