# Packets that a tcpdump expression lets through. The program is compiled by libpcap (capture/bpf.py) and run by its bpf_filter().
# Must not know: what an expression means.

ctypedef unsigned int (*bpf_run)(const void* program, const uint8_t* packet, unsigned int wirelen, unsigned int caplen) noexcept nogil

cdef enum:
    BPF_LINKS = 32                # link types in one run; packets of more do not pass

cdef class PacketFilter:
    """run: address of libpcap's bpf_filter.  compile: link type -> address of instructions, which it keeps alive; 0: nothing passes."""
    cdef bpf_run run
    cdef object compile
    cdef uint32_t links[BPF_LINKS]
    cdef const void* programs[BPF_LINKS]
    cdef int count

    def __cinit__(self, size_t run, compile):
        if run == 0:
            raise ValueError("run: the address of bpf_filter")
        self.run = <bpf_run>run
        self.compile = compile
        self.count = 0

    cdef int learn(self, uint32_t link) noexcept with gil:
        cdef size_t address = 0
        try:
            address = self.compile(link)
        except Exception:
            address = 0
        self.links[self.count] = link
        self.programs[self.count] = <const void*>address
        self.count += 1
        return self.count - 1

    cdef bint passes(self, const Packet* packet) noexcept nogil:
        cdef int i = 0
        while i < self.count and self.links[i] != packet.link:
            i += 1
        if i == self.count:
            if i == BPF_LINKS:
                return False
            i = self.learn(packet.link)
        if self.programs[i] == NULL:
            return False
        return self.run(self.programs[i], packet.data, packet.wirelen, packet.caplen) != 0
