# temporary
cdef class BytesSource(PacketSource):
    cdef list packets
    cdef int at
    def __init__(self, packets):
        self.packets = list(packets)
        self.at = 0
    cdef int take(self, Packet* out, int most) noexcept nogil:
        with gil:
            if self.at >= len(self.packets):
                return 0
            ts, data, link, wirelen = (tuple(self.packets[self.at]) + (1, 0))[:4]
            self.at += 1
            memset(out, 0, sizeof(Packet))
            out.ts_ns = ts
            out.data = <const uint8_t*><bytes>data
            out.caplen = len(data)
            out.wirelen = wirelen or len(data)
            out.link = link
            out.number = self.at
            return 1
