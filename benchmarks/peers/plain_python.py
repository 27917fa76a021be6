"""As fast as plain Python makes rewritten requests out of a pcap, to compare with: prints how many it made.

The job is that of `replay`, as far as people go in a script: requests of every connection in order by sequence number (what was sent again is passed over; what comes early waits), whole by Content-Length, each built
with the shadow's Host. Left out: replies, chunked bodies, overlaps, gaps, anything but Ethernet with IPv4 and port 80. What makes it quick: the file is mapped, the four-tuple is one slice, heads are looked for in the
mapping itself, and a segment is only copied where a request goes over its end.
"""

import mmap
import struct
import sys

LENGTH = struct.Struct("<I").unpack_from
FIELDS = struct.Struct(">H8x12sI4xB").unpack_from  # from the IP length on: length, addresses and ports, sequence number, offset


def made(data):
    size, at, count = len(data), 24, 0
    flows = {}  # four-tuple: [next sequence number, bytes of a request that is not whole, segments that came early]
    find = data.find
    while at + 16 < size:
        frame = at + 16
        at = frame + LENGTH(data, at + 8)[0]
        if data[frame + 14] != 0x45 or data[frame + 23] != 6:
            continue
        length, flow, seq, offset = FIELDS(data, frame + 16)
        if flow[10:] != b"\0\x50":
            continue
        start, end = frame + 34 + (offset >> 4) * 4, frame + 14 + length
        if start == end:
            continue
        one = flows.get(flow)
        if one is None:
            one = flows[flow] = [seq, b"", {}]
        if seq != one[0]:
            if (seq - one[0]) & 0xFFFFFFFF < 1 << 31:
                one[2][seq] = data[start:end]
            continue
        one[0] = (seq + end - start) & 0xFFFFFFFF
        if one[1] or one[2]:
            more = one[1] + data[start:end]
            while one[0] in one[2]:
                early = one[2].pop(one[0])
                more += early
                one[0] = (one[0] + len(early)) & 0xFFFFFFFF
            done, one[1] = requests(more, 0, len(more), more.find)
        else:
            done, one[1] = requests(data, start, end, find)
        count += done
    return count


def requests(data, start, end, find):
    """(how many requests were whole between start and end, the bytes after them)."""
    count = 0
    while start < end:
        last = find(b"\r\n\r\n", start, end)
        if last < 0:
            break
        body = find(b"\r\nContent-Length: ", start, last)
        after = last + 4
        if body > 0:
            after += int(data[body + 18 : find(b"\r\n", body + 18, last + 2)])
            if after > end:
                break
        host = find(b"\r\nHost: ", start, last)
        if host > 0:
            stop = find(b"\r\n", host + 8, last + 2)
            name, colon, port = data[host + 8 : stop].partition(b":")
            request = b"".join((data[start : host + 8], name, b"-shadow", colon, port, data[stop:after]))
            count += len(request) > 0
        start = after
    return count, data[start:end]


with open(sys.argv[1], "rb") as file:
    print(made(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
