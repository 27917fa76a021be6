"""A memory file in place of the ring that the kernel fills (TPACKET_V3): what the capture thread reads, packet for packet, without rights or network."""

import mmap
import os
import struct
import time

from replay import _fastpath

BLOCK = 256 << 10
#: Where a packet of Ethernet begins behind its header in the ring, and where the network's part of it does.
MAC, NETWORK = 82, 96
_FIRST, _OURS, _STATUS = 48, 1, 8
SPACE = BLOCK - _FIRST


def room(frame):
    """Bytes of a block that it takes."""
    return (MAC + len(frame) + 15) // 16 * 16


def pack(packets, number=0):
    """One block: (time stamp, what was kept of the frame, its length on the wire) of each packet."""
    block, at, last = bytearray(BLOCK), _FIRST, _FIRST
    for ts, frame, length in packets:
        need = room(frame)
        struct.pack_into("=IIIIIIHHIIHH8x", block, at, need, *divmod(ts, 10**9), len(frame), length, 0, MAC, NETWORK, 0, 0, 0, 0)
        struct.pack_into("=HHiHBB8x", block, at + 48, 17, 0x0008, 1, 772, 0, 6)
        block[at + MAC : at + MAC + len(frame)] = frame
        last, at = at, at + need
    struct.pack_into("=I", block, last, 0)
    struct.pack_into("=IIIIIIQQQ", block, 0, 1, 0, _OURS, len(packets), _FIRST, at, number, 0, 0)
    return bytes(block)


class Ring:
    """So many blocks; `source` of an Ingest from `open`."""

    def __init__(self, blocks):
        self.blocks, self.at = blocks, 0
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, blocks * BLOCK)
        self.map = mmap.mmap(self.fd, blocks * BLOCK)

    def open(self, stop):
        return _fastpath.LiveRing(self.fd, stop=stop, block_size=BLOCK, block_count=self.blocks)

    def put(self, packets):
        """The next block is the engine's, and comes back when each of its packets was read."""
        place = self.at * BLOCK
        block = pack(packets)
        self.map[place + _STATUS + 4 : place + BLOCK] = block[_STATUS + 4 :]
        self.map[place + _STATUS : place + _STATUS + 4] = block[_STATUS : _STATUS + 4]
        self.at = (self.at + 1) % self.blocks
        end = time.monotonic() + 20
        while self.map[place + _STATUS] & _OURS:
            assert time.monotonic() < end, "the block is not given back"
            time.sleep(0)

    def fill(self, n, block):
        self.map[n * BLOCK : (n + 1) * BLOCK] = block

    def full(self):
        """Each block is the engine's, again."""
        for n in range(self.blocks):
            self.map[n * BLOCK + _STATUS : n * BLOCK + _STATUS + 4] = struct.pack("=I", _OURS)

    def close(self):
        self.map.close()
        os.close(self.fd)
