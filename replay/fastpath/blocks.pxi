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
            ts, data = self.packets[self.at]
            self.at += 1
            memset(out, 0, sizeof(Packet))
            out.ts_ns = ts
            out.data = <const uint8_t*><bytes>data
            out.caplen = out.wirelen = len(data)
            out.link = 1
            out.number = self.at
            return 1
