# A live tap: the packets of an AF_PACKET socket out of the TPACKET_V3 ring that the kernel fills. The socket is opened by capture/afpacket.py.
# Must not know: what is inside a packet; filters (the kernel runs them).
#
# A block is given back at the first take after its last packet was handed out: packets borrow from it until then. When the ring is empty, one take says
# so at once (TAKE_IDLE), so that nobody's open batch waits for us; the next one sleeps.

cdef enum:
    LIVE_WAIT_MS = 50             # an idle take comes back after so long: the capture clock goes on
    LIVE_AHEAD = 6144             # bytes of the ring that are asked for before they are read
    LIVE_SNAP_MOST = 8192         # what the filter itself shortens is not longer than this; a frame that was cut fills most of a block

cdef extern from "fastpath/afpacket.h" nogil:
    ctypedef struct AfpPacket:
        int64_t ts_ns
        const uint8_t* data
        uint32_t caplen
        uint32_t wirelen
        uint32_t iface
        uint32_t vlan
        uint16_t hatype
        uint16_t protocol
        uint32_t net
        uint8_t pkttype
    int afp_block_ready(const uint8_t* block)
    int afp_block_losing(const uint8_t* block)
    void afp_block_release(uint8_t* block)
    uint32_t afp_block_packets(const uint8_t* block)
    const uint8_t* afp_block_first(const uint8_t* block)
    const uint8_t* afp_packet(const uint8_t* p, AfpPacket* out)
    void afp_ask(const uint8_t* start, const uint8_t* end)
    void* mmap(void* address, size_t size, int protection, int flags, int fd, int64_t offset)
    int munmap(void* address, size_t size)
    void* MAP_FAILED
    enum:
        PROT_READ
        PROT_WRITE
        MAP_SHARED

cdef enum:
    ARPHRD_ETHER = 1
    ARPHRD_LOOPBACK = 772
    LINK_ETHERNET = 1
    LINK_RAW = 101                # begins with the IP header


cdef class LiveRing(PacketSource):
    """Packets of one AF_PACKET socket with a TPACKET_V3 ring.

    fd: the socket, its ring set up; the caller keeps it open as long as this lives.  stop: what is in the ring is still handed out, then the source ends.
    block_size, block_count: as given to PACKET_RX_RING.  Raises OSError when the ring cannot be mapped."""
    cdef int fd
    cdef Stop stop
    cdef Recorder recorder
    cdef uint8_t* map             # owns
    cdef size_t size
    cdef uint32_t block_size
    cdef uint32_t block_count
    cdef uint32_t at              # block that comes next, or is being walked
    cdef const uint8_t* next      # packet that comes next in it; NULL: none is being walked
    cdef uint32_t left
    cdef bint held                # block `at` is walked, its packets are still borrowed
    cdef bint fresh               # packets were handed out since the last idle
    cdef uint32_t laps            # blocks handed out since the stop
    cdef int64_t n_packets        # atomic, all of them
    cdef int64_t n_takes          # a sign of life: grows even when no packet comes
    cdef int64_t n_bytes          # on the wire
    cdef int64_t n_copied         # … and in the ring
    cdef int64_t n_cut
    cdef int64_t n_short          # the filter asked for their beginning alone
    cdef int64_t n_blocks
    cdef int64_t n_losing
    cdef int64_t n_errors         # the interface went down, or away
    cdef int64_t n_most_ready     # most blocks that waited for us at once, since the last look
    cdef int64_t newest_ns

    def __cinit__(self, int fd, *, Stop stop not None, uint32_t block_size, uint32_t block_count, Recorder recorder=None):
        cdef void* found
        self.map = NULL
        if block_size < 4096 or block_count < 1:
            raise ValueError("block_size, block_count: at least a page, at least one")
        self.fd, self.stop, self.recorder = fd, stop, recorder
        self.block_size, self.block_count = block_size, block_count
        self.size = <size_t>block_size * block_count
        found = mmap(NULL, self.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if found == MAP_FAILED:
            raise OSError(errno.errno, "mmap of the ring")
        self.map = <uint8_t*>found

    def __dealloc__(self):
        if self.map != NULL:
            munmap(self.map, self.size)

    cdef inline uint8_t* block(self, uint32_t at) noexcept nogil:
        return self.map + <size_t>at * self.block_size

    cdef void rest(self, int ms) noexcept nogil:
        """Until a block is ready, the stop is asked for, or so long."""
        cdef pollfd wait[2]
        cdef int error = 0
        cdef socklen_t size = sizeof(int)
        wait[0].fd = self.fd
        wait[0].events = POLLIN
        wait[0].revents = 0
        wait[1].fd = self.stop.fd
        wait[1].events = POLLIN
        wait[1].revents = 0
        if poll(wait, 2, ms) > 0 and wait[0].revents & (POLLERR | POLLHUP):
            getsockopt(self.fd, SOL_SOCKET, SO_ERROR, &error, &size)      # reading it clears it
            count_add(&self.n_errors, 1)
            wait[0].fd = -1
            poll(wait, 2, ms)     # an interface that is down is no reason to spin

    cdef int take(self, Packet* out, int most) noexcept nogil:
        cdef AfpPacket one
        cdef uint8_t* block
        cdef const uint8_t* here
        cdef int n = 0
        cdef uint32_t ready
        cdef int64_t number = self.n_packets
        cdef int64_t size = 0
        cdef int64_t copied = 0
        count_add(&self.n_takes, 1)
        if self.held:
            self.held = False
            afp_block_release(self.block(self.at))
            self.at = self.at + 1 if self.at + 1 < self.block_count else 0
        while self.next == NULL:
            block = self.block(self.at)
            if not afp_block_ready(block):
                if self.recorder is not None:
                    self.recorder.idle(atomic_get(&self.stop.flag) != 0)
                if atomic_get(&self.stop.flag):
                    return 0
                if self.fresh:
                    self.fresh = False
                    return TAKE_IDLE
                self.rest(LIVE_WAIT_MS)
                if not afp_block_ready(block):
                    if not atomic_get(&self.stop.flag):
                        return TAKE_IDLE
                    continue
            if atomic_get(&self.stop.flag):
                self.laps += 1
                if self.laps > self.block_count:
                    if self.recorder is not None:
                        self.recorder.idle(True)
                    return 0      # it keeps coming: enough
            ready = self.at + self.block_count // 8
            if self.block_count >= 8 and not self.n_blocks & 15 and afp_block_ready(self.block(ready if ready < self.block_count else ready - self.block_count)):
                self.behind()
            self.left = afp_block_packets(block)
            count_add(&self.n_blocks, 1)
            if afp_block_losing(block):
                count_add(&self.n_losing, 1)
            if self.left == 0:
                afp_block_release(block)
                self.at = self.at + 1 if self.at + 1 < self.block_count else 0
                continue
            self.next = afp_block_first(block)
            afp_ask(self.next, self.next + LIVE_AHEAD)
        while n < most and self.left:
            here = self.next
            self.next = afp_packet(here, &one)
            self.left -= 1
            if self.next != NULL:
                afp_ask(here + LIVE_AHEAD, self.next + LIVE_AHEAD)
            out[n].ts_ns = one.ts_ns
            out[n].caplen = one.caplen
            out[n].wirelen = one.wirelen if one.wirelen > one.caplen else one.caplen
            out[n].data = one.data
            out[n].link = LINK_ETHERNET
            if one.hatype != ARPHRD_ETHER and one.hatype != ARPHRD_LOOPBACK:
                # tunnels and the like: what counts begins with the network header
                out[n].link = LINK_RAW
                if one.net <= one.caplen:
                    out[n].data += one.net
                    out[n].caplen -= one.net
                    out[n].wirelen -= one.net
                else:
                    out[n].caplen = 0
            out[n].source = 0
            out[n].iface = one.iface + (one.vlan << 20)    # told apart with --split-by-network only
            number += 1
            out[n].number = <uint64_t>number
            size += one.wirelen
            copied += one.caplen
            if one.caplen < one.wirelen:
                count_add(&self.n_short if one.caplen <= LIVE_SNAP_MOST and self.block_size > 2 * LIVE_SNAP_MOST else &self.n_cut, 1)
            if self.recorder is not None:
                self.recorder.add(&one)
            n += 1
            if self.next == NULL:
                self.left = 0     # the last one says so too
        if n:
            atomic_set(&self.newest_ns, out[n - 1].ts_ns)
            count_set(&self.n_packets, number)
            count_add(&self.n_bytes, size)
            count_add(&self.n_copied, copied)
        if self.left == 0:
            self.next = NULL
            self.held = True
        self.fresh = True
        return n

    cdef void behind(self) noexcept nogil:
        """An eighth of the ring waits for us: how much is it?"""
        cdef uint32_t i
        cdef uint32_t at = self.at
        cdef int64_t ready = 0
        for i in range(self.block_count):
            if not afp_block_ready(self.block(at)):
                break
            ready += 1
            at = at + 1 if at + 1 < self.block_count else 0
        if ready > atomic_get(&self.n_most_ready):
            atomic_set(&self.n_most_ready, ready)

    def counters(self, bint anew=True):
        """Of all packets that came out of the ring; plain values, callable from any thread. `ring_most` is the largest share of the ring that was full
        since the last call with `anew` (0 when it was below an eighth); `newest_ns` the time stamp of the newest packet."""
        most = atomic_get(&self.n_most_ready)
        if anew:
            atomic_set(&self.n_most_ready, 0)
        return {"packets": count_get(&self.n_packets), "takes": count_get(&self.n_takes), "bytes": count_get(&self.n_bytes), "copied_bytes": count_get(&self.n_copied), "cut_frames": count_get(&self.n_cut), "shortened": count_get(&self.n_short),
                "blocks": count_get(&self.n_blocks), "losing": count_get(&self.n_losing), "errors": count_get(&self.n_errors),
                "ring_most": most / self.block_count, "newest_ns": atomic_get(&self.newest_ns) or None}
