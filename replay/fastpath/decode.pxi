# temporary
cdef struct Decoder:
    int64_t cut_frames
    bint split_by_network
cdef int decoder_init(Decoder* d) noexcept:
    memset(d, 0, sizeof(Decoder))
    return 0
cdef void decoder_free(Decoder* d) noexcept nogil:
    pass
cdef dict decoder_skipped(Decoder* d):
    return {}
cdef int decode(Decoder* d, const Packet* p, Segment* s) noexcept nogil:
    cdef const uint8_t* q = p.data + 14
    cdef uint32_t ihl, tl, off
    if p.caplen < 54 or q[0] >> 4 != 4 or q[9] != 6:
        return 0
    memset(s, 0, sizeof(Segment))
    ihl = (q[0] & 15) * 4
    tl = (q[2] << 8) | q[3]
    s.src[10] = s.src[11] = s.dst[10] = s.dst[11] = 255
    memcpy(s.src + 12, q + 12, 4)
    memcpy(s.dst + 12, q + 16, 4)
    q += ihl
    s.sport = (q[0] << 8) | q[1]
    s.dport = (q[2] << 8) | q[3]
    s.seq = (<uint32_t>q[4] << 24) | (q[5] << 16) | (q[6] << 8) | q[7]
    s.ack = (<uint32_t>q[8] << 24) | (q[9] << 16) | (q[10] << 8) | q[11]
    off = (q[12] >> 4) * 4
    s.flags = q[13]
    s.data = q + off
    if tl > p.caplen - 14 or ihl + off > tl or ihl < 20 or off < 20:
        return 0
    s.len = tl - ihl - off
    s.ts_ns = p.ts_ns
    s.number = p.number
    return 1
