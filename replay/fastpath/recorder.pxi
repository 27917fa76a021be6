# What a tap captures, as blocks of pcapng in buffers for whoever writes them to disk (capture/recording.py).
# Must not know: files. Never waits: with all buffers full a packet is left out and counted.

cdef enum:
    RECORD_BUFFER = 1024 * 1024   # above the largest packet by far
    RECORD_LARGEST = 768 * 1024   # a longer packet is cut
    RECORD_INTERFACE_ETHERNET = 0
    RECORD_INTERFACE_RAW = 1

cdef int64_t RECORD_AGE_NS = 500000000       # a packet waits no longer in a buffer that does not fill

cdef struct RecordBuffer:
    uint64_t used
    int64_t packets
    int64_t captured              # their bytes, without what pcapng adds
    uint8_t bytes[RECORD_BUFFER]


cdef inline uint8_t* record_put32(uint8_t* to, uint32_t v) noexcept nogil:
    memcpy(to, &v, 4)
    return to + 4


cdef class Recorder:
    """Between one LiveRing, which adds packets, and one writer, who gets bytes.

    buffers: of 1 MiB, so many may wait.  Interface 0 of the recording is Ethernet, interface 1 raw IP; both count nanoseconds."""
    cdef PointerRing full
    cdef PointerRing empty
    cdef int rings                # that were made
    cdef RecordBuffer* now        # owns; being filled
    cdef int64_t since_ns         # its first packet came
    cdef int64_t off              # atomic: the writer gave up
    cdef int64_t n_packets
    cdef int64_t n_left_out
    cdef readonly int64_t got_packets       # in what `get` gave last, and their bytes
    cdef readonly int64_t got_bytes

    def __cinit__(self, int buffers=8):
        cdef int i
        cdef RecordBuffer* one
        if not 2 <= buffers <= 4096:
            raise ValueError("buffers: 2 to 4096")
        if ring_init(&self.full, buffers) < 0:
            raise MemoryError
        self.rings = 1
        if ring_init(&self.empty, buffers) < 0:
            raise MemoryError
        self.rings = 2
        for i in range(buffers):
            one = <RecordBuffer*>malloc(sizeof(RecordBuffer))
            if one == NULL:
                raise MemoryError
            one.used = 0
            ring_push(&self.empty, one)

    def __dealloc__(self):
        cdef void* one
        free(self.now)
        if self.rings > 0:
            one = ring_pop(&self.full)
            while one != NULL:
                free(one)
                one = ring_pop(&self.full)
            ring_free(&self.full)
        if self.rings > 1:
            one = ring_pop(&self.empty)
            while one != NULL:
                free(one)
                one = ring_pop(&self.empty)
            ring_free(&self.empty)

    cdef void add(self, const AfpPacket* p) noexcept nogil:
        cdef bint ethernet = p.hatype == ARPHRD_ETHER or p.hatype == ARPHRD_LOOPBACK
        cdef const uint8_t* data = p.data
        cdef uint32_t caplen = p.caplen
        cdef uint32_t wirelen = p.wirelen
        cdef uint32_t skip = 0
        cdef uint32_t tag = 0
        cdef uint32_t total
        cdef uint8_t* to
        if atomic_get(&self.off):
            count_add(&self.n_left_out, 1)
            return
        if not ethernet:
            skip = p.net if p.net < caplen else caplen
        data += skip
        caplen -= skip
        wirelen = wirelen - skip if wirelen > skip else 0
        if caplen > RECORD_LARGEST:
            caplen = RECORD_LARGEST
        if ethernet and p.vlan and caplen >= 12:
            tag = 4               # the kernel took it off: it is put back
        total = 32 + ((caplen + tag + 3) & ~<uint32_t>3)
        if self.now != NULL and self.now.used + total > RECORD_BUFFER:
            self.hand_over()
        if self.now == NULL:
            self.now = <RecordBuffer*>ring_pop(&self.empty)
            if self.now == NULL:
                count_add(&self.n_left_out, 1)
                return
            self.now.used = self.now.packets = self.now.captured = 0
            self.since_ns = now_ns()
        to = self.now.bytes + self.now.used
        to = record_put32(to, 6)
        to = record_put32(to, total)
        to = record_put32(to, RECORD_INTERFACE_ETHERNET if ethernet else RECORD_INTERFACE_RAW)
        to = record_put32(to, <uint32_t>(<uint64_t>p.ts_ns >> 32))
        to = record_put32(to, <uint32_t>p.ts_ns)
        to = record_put32(to, caplen + tag)
        to = record_put32(to, (wirelen if wirelen > caplen else caplen) + tag)
        if tag:
            memcpy(to, data, 12)
            to[12] = 0x81
            to[13] = 0
            to[14] = <uint8_t>((p.vlan - 1) >> 8)
            to[15] = <uint8_t>(p.vlan - 1)
            memcpy(to + 16, data + 12, caplen - 12)
        else:
            memcpy(to, data, caplen)
        to += caplen + tag
        while (to - self.now.bytes) & 3:
            to[0] = 0
            to += 1
        record_put32(to, total)
        self.now.used += total
        self.now.packets += 1
        self.now.captured += caplen
        count_add(&self.n_packets, 1)

    cdef void hand_over(self) noexcept nogil:
        if self.now != NULL:
            ring_push(&self.full, self.now)      # there are as many slots as buffers
            self.now = NULL

    cdef void idle(self, bint last) noexcept nogil:
        """Nothing comes for a moment, or no more: what is there is not kept waiting."""
        if self.now != NULL and (last or now_ns() - self.since_ns > RECORD_AGE_NS):
            self.hand_over()

    def get(self):
        """Whole blocks of pcapng, a buffer full of them; None when there is none now."""
        cdef RecordBuffer* one = <RecordBuffer*>ring_pop(&self.full)
        if one == NULL:
            return None
        found = <bytes>one.bytes[:one.used]
        self.got_packets, self.got_bytes = one.packets, one.captured
        ring_push(&self.empty, one)
        return found

    def give_up(self):
        """Nothing is recorded any more (a full disk)."""
        atomic_set(&self.off, 1)

    def counters(self):
        """packets: that were put into a buffer; whether they were written, whoever writes knows.  left_out: that were not."""
        return {"packets": count_get(&self.n_packets), "left_out": count_get(&self.n_left_out), "ended": atomic_get(&self.off) != 0}
