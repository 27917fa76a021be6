"""The usual recipe with dpkt, to compare with: prints how many requests it found in a pcap. In-order packets only; bytes of a flow are joined and parsed again until a request is whole."""

import sys

import dpkt

flows = {}
found = 0
with open(sys.argv[1], "rb") as file:
    for _, frame in dpkt.pcap.Reader(file):
        ip = dpkt.ethernet.Ethernet(frame).data
        if not isinstance(ip, dpkt.ip.IP) or not isinstance(ip.data, dpkt.tcp.TCP):
            continue
        tcp = ip.data
        if tcp.dport != 80 or not tcp.data:
            continue
        key = (ip.src, tcp.sport, ip.dst, tcp.dport)
        data = flows.pop(key, b"") + tcp.data
        while data:
            try:
                request = dpkt.http.Request(data)
            except dpkt.UnpackError:
                flows[key] = data
                break
            found += 1
            data = request.data
print(found)
