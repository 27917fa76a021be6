# The walkers of pcap and pcapng: bytes of a window in, packets out, faults noted. Must not know: files, pipes, compression, other captures.
# Source: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng.

cdef extern from "fastpath/blocks.h" nogil:
    ctypedef struct BlockClock:
        pass
    uint32_t blocks_load32(const uint8_t* p, int swapped)
    uint16_t blocks_load16(const uint8_t* p, int swapped)
    int64_t blocks_load64(const uint8_t* p, int swapped)
    void blocks_clock(BlockClock* clock, uint8_t resolution, int64_t offset)
    int64_t blocks_time(const BlockClock* clock, uint64_t ticks)

cdef extern from "fastpath/mapping.h" nogil:
    enum: MAPPING_LARGE
    int mapping_open(int fd, int64_t offset, uint64_t length, const uint8_t** memory)
    void mapping_close(int which)
    int64_t mapping_broken(int which)
    bint mapping_lost(const uint8_t* p, size_t n)

cdef extern from "<stdint.h>" nogil:
    int64_t INT64_MAX

cdef enum:
    WALK_CAPLEN = 1024 * 1024             # a packet longer than this is damage
    WALK_BLOCK = 1024 * 1024 + 64 * 1024  # a block longer than this holds no packet of ours
    WALK_IFACES = 65536                   # of a section

cdef enum BlockFormat:
    FORMAT_UNKNOWN = 0
    FORMAT_PCAP = 1
    FORMAT_PCAPNG = 2

cdef enum BlockFault:             # index into FAULT_TEXT
    FAULT_MISSING = 0
    FAULT_DENIED = 1
    FAULT_FOLDER = 2
    FAULT_DEVICE = 3
    FAULT_TERMINAL = 4
    FAULT_UNREADABLE = 5
    FAULT_CHANGED = 6
    FAULT_MEMORY = 7
    FAULT_EMPTY = 8
    FAULT_UNKNOWN = 9
    FAULT_NO_ZSTD = 10
    FAULT_NESTED = 11
    FAULT_COMPRESSION = 12
    FAULT_TRAILING = 13
    FAULT_CUT = 14
    FAULT_CUT_HEADER = 15
    FAULT_CAPLEN = 16
    FAULT_BLOCK_SHORT = 17
    FAULT_BLOCK_TRAILER = 18
    FAULT_SECTION = 19
    FAULT_HEADER_BLOCK = 20
    FAULT_IFACES = 21
    FAULT_SHRUNK = 22
    FAULT_BAD_INTERFACE = 23
    FAULT_BAD_LENGTH = 24

cdef struct BlockNote:
    uint32_t file
    uint32_t kind                 # BlockFault
    int64_t offset                # -1 none
    int64_t packet                # 0 none
    int64_t count
    int64_t a                     # numbers of the message
    int64_t b
    uint8_t first[16]             # FAULT_UNKNOWN: the first bytes
    uint8_t first_len
    uint8_t begun

cdef struct BlockNotes:
    pthread_mutex_t lock          # guards the list: one thread adds, any reads
    BlockNote* list               # owns
    uint64_t count
    uint64_t room

cdef struct BlockIface:
    BlockClock clock
    uint32_t link
    uint32_t snaplen

cdef struct BlockFile:
    # Where from. blocks.pxi.
    const char* path              # borrows from Capture.paths
    BlockNotes* notes             # borrows from its Capture
    uint32_t index
    int fd                        # owns; -1 closed
    bint standard_input
    bint usable                   # the path has no NUL
    bint stream                   # a pipe: no second look, no size
    uint64_t inode
    uint64_t device
    int64_t size                  # when it was opened
    int64_t raw_at                # bytes read, as on disk
    int state                     # BlockState
    int packing                   # BlockPacking
    uint8_t* input                # owns: BLOCKS_INPUT compressed bytes
    bint raw_end                  # no more compressed bytes
    bint inflate_more             # output may come without further input
    bint inflate_whole            # the compressed bytes so far end where a member ends
    bint inflate_failed
    # The window: bytes [at, end) of it are not walked yet.
    uint8_t* window               # owns: window_size
    int64_t window_size
    uint8_t* other                # owns, with two windows: the one before, which packets may still borrow from
    int64_t other_size
    int mapped                    # … or it is the file's own memory: an index of mapping.h; -1 it is not
    bint unmappable               # it was tried
    int trial                     # which of the pieces is read that are read and mapped in turn, to see what costs less (blocks.pxi); beyond: it is known
    int64_t trial_end             # where it ends
    int64_t trial_begin           # where this piece began
    int64_t trial_cpu             # … and what this thread had used then, ns
    int64_t trial_cost[2]         # ns of CPU a MB: read, mapped
    int64_t at
    int64_t end
    int64_t base                  # offset in the (decompressed) file of window[0]
    uint64_t noted[2]             # one above the index of the note of FAULT_BAD_INTERFACE, FAULT_BAD_LENGTH
    # The walk.
    int format                    # BlockFormat
    bint swapped                  # the other byte order
    bint begun                    # its header is whole
    bint ending                   # nothing after this can be used
    bint next_known               # next_ts is the time of the packet at `at`
    int64_t next_ts
    int64_t last_ts
    int64_t packets               # given out; atomic
    int64_t number                # packets met, as Wireshark counts
    int64_t record                # pcap: bytes of a record's header
    int64_t unit                  # pcap: ns a fraction
    uint32_t link                 # pcap
    int lengths                   # pcap: 0 usual, 1 exchanged, 2 exchanged where the first is larger (versions before 2.3, 2.3)
    BlockIface* ifaces            # owns: of the section at hand
    uint32_t iface_count
    uint32_t iface_room
    uint32_t iface_base           # interfaces of earlier sections
    uint64_t skip                 # pcapng: bytes of a block that is passed over
    int64_t skip_at
    bint skip_packet              # … it was a packet


# ---- faults ---------------------------------------------------------------------------------------------------------


cdef void walk_note(BlockFile* f, uint32_t kind, int64_t offset, int64_t a, int64_t b) noexcept nogil:
    """Adds a fault, or counts a repeated one of the kinds that repeat."""
    cdef BlockNotes* notes = f.notes
    cdef BlockNote* note
    cdef uint64_t i, room
    pthread_mutex_lock(&notes.lock)
    if kind == FAULT_BAD_INTERFACE or kind == FAULT_BAD_LENGTH:
        i = f.noted[kind - FAULT_BAD_INTERFACE]
        if i:
            notes.list[i - 1].count += 1
            pthread_mutex_unlock(&notes.lock)
            return
    if notes.count == notes.room:
        room = notes.room * 2 + 8
        note = <BlockNote*>realloc(notes.list, room * sizeof(BlockNote))
        if note == NULL:
            pthread_mutex_unlock(&notes.lock)
            return
        notes.list = note
        notes.room = room
    note = &notes.list[notes.count]
    memset(note, 0, sizeof(BlockNote))
    note.file = f.index
    note.kind = kind
    note.offset = offset
    if kind >= FAULT_BAD_INTERFACE:
        note.packet = f.number
        f.noted[kind - FAULT_BAD_INTERFACE] = notes.count + 1
    elif f.begun and (kind >= FAULT_CAPLEN or kind == FAULT_CUT):
        note.packet = f.number + 1
    note.count = 1
    note.a = a
    note.b = b
    note.begun = f.begun
    notes.count += 1
    pthread_mutex_unlock(&notes.lock)


cdef void walk_unnote(BlockFile* f) noexcept nogil:
    """Takes back the notes of a file that will be read again; they are the latest."""
    pthread_mutex_lock(&f.notes.lock)
    while f.notes.count and f.notes.list[f.notes.count - 1].file == f.index:
        f.notes.count -= 1
    f.noted[0] = f.noted[1] = 0
    pthread_mutex_unlock(&f.notes.lock)


cdef void walk_unknown(BlockFile* f) noexcept nogil:
    """Notes that the first bytes are those of no capture, and which they are."""
    cdef BlockNote* note
    cdef int64_t n = f.end - f.at
    cdef uint64_t before = f.notes.count
    walk_note(f, FAULT_UNKNOWN, 0, f.packing, 0)
    pthread_mutex_lock(&f.notes.lock)
    if f.notes.count > before:
        note = &f.notes.list[f.notes.count - 1]
        note.first_len = <uint8_t>(n if n < 16 else 16)
        memcpy(note.first, f.window + f.at, note.first_len)
    pthread_mutex_unlock(&f.notes.lock)


cdef int walk_fail(BlockFile* f, uint32_t kind, int64_t at, int64_t a, int64_t b) noexcept nogil:
    walk_note(f, kind, f.base + at, a, b)
    f.ending = True
    return -1


# ---- the beginning --------------------------------------------------------------------------------------------------


cdef void walk_reset(BlockFile* f) noexcept nogil:
    """As if nothing had been read; the path, what is known of the file and next_ts stay."""
    f.raw_at = f.at = f.end = f.base = f.last_ts = f.number = 0
    f.packing = f.format = 0
    f.raw_end = f.inflate_more = f.inflate_whole = f.inflate_failed = f.swapped = f.begun = f.ending = f.next_known = f.skip_packet = False
    f.iface_count = f.iface_room = f.iface_base = 0
    f.skip = 0


cdef int walk_packing(const uint8_t* p) noexcept nogil:
    """BlockPacking of four bytes. A skippable frame begins zstd too (RFC 8878 3.1.2)."""
    cdef uint32_t magic = (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]
    if magic >> 16 == 0x1F8B:
        return 1
    if magic == 0x28B52FFDU or magic & 0xF0FFFFFFU == 0x502A4D18U:
        return 2
    return 0


cdef bint walk_is_magic(uint32_t magic) noexcept nogil:
    return magic == 0xA1B2C3D4U or magic == 0xD4C3B2A1U or magic == 0xA1B23C4DU or magic == 0x4D3CB2A1U or magic == 0xA1B2CD34U or magic == 0x34CDB2A1U


cdef bint walk_another(const uint8_t* p) noexcept nogil:
    """True when 12 bytes where a record or block should begin are the beginning of a capture: files that were joined (`cat`).

    A pcap header reads as a record without a byte (its time zone is 0), so its version counts too; a section header as one that is far too long."""
    cdef uint32_t magic = blocks_load32(p, 0)
    cdef bint swapped = magic == 0xD4C3B2A1U or magic == 0x4D3CB2A1U or magic == 0x34CDB2A1U
    if magic == 0x0A0D0D0A:
        return blocks_load32(p + 8, 0) == 0x1A2B3C4D or blocks_load32(p + 8, 0) == 0x4D3C2B1A
    return walk_is_magic(magic) and blocks_load16(p + 4, swapped) == 2 and blocks_load16(p + 6, swapped) == 4


cdef bint walk_prefix(const uint8_t* p, int64_t n) noexcept nogil:
    """True when n bytes, fewer than a header, are the beginning of a capture."""
    cdef const uint8_t* known = b"\xd4\xc3\xb2\xa1\xa1\xb2\xc3\xd4\x4d\x3c\xb2\xa1\xa1\xb2\x3c\x4d\x34\xcd\xb2\xa1\xa1\xb2\xcd\x34\x0a\x0d\x0d\x0a\x28\xb5\x2f\xfd\x1f\x8b\x08\x00"
    cdef int i
    if n > 3:
        return walk_is_magic(blocks_load32(p, 0))
    for i in range(9):
        if memcmp(p, known + 4 * i, n) == 0:
            return True
    return False


cdef int walk_format(BlockFile* f) noexcept nogil:
    """Reads the header in front. 0 (f.format stays FORMAT_UNKNOWN while it is not whole), or -1: no capture (noted)."""
    cdef const uint8_t* p = f.window + f.at
    cdef uint32_t magic = blocks_load32(p, 0)
    cdef uint32_t major, minor
    if magic == 0x0A0D0D0A:
        f.format = FORMAT_PCAPNG
        return 0
    if not walk_is_magic(magic):
        walk_unknown(f)
        return -1
    if f.end - f.at < 24:
        return 0
    f.swapped = magic == 0xD4C3B2A1U or magic == 0x4D3CB2A1U or magic == 0x34CDB2A1U
    magic = blocks_load32(p, f.swapped)
    major = blocks_load16(p + 4, f.swapped)
    minor = blocks_load16(p + 6, f.swapped)
    f.lengths = 1 if major == 543 or (major == 2 and minor < 3) else 2 if major == 2 and minor == 3 else 0
    f.record = 24 if magic == 0xA1B2CD34U else 16
    f.unit = 1 if magic == 0xA1B23C4DU else 1000
    f.link = blocks_load32(p + 20, f.swapped) & 0xFFFF       # above: length of the frame check sequence
    f.at += 24
    f.format = FORMAT_PCAP
    f.begun = True
    return 0


# ---- the walk -------------------------------------------------------------------------------------------------------


cdef int walk(BlockFile* f, Packet* out, int most, int64_t limit) noexcept nogil:
    """Up to `most` packets of the window, none of them later than `limit` once the first later one is met. Returns their number.

    next_known: there is a further whole packet, at next_ts. Otherwise the window must be filled (or `ending`: the file is done)."""
    cdef int n
    f.next_known = False
    if f.ending:
        return 0
    n = walk_pcap(f, out, most, limit) if f.format == FORMAT_PCAP else walk_pcapng(f, out, most, limit)
    if f.mapped >= 0 and mapping_broken(f.mapped) >= 0:
        n = walk_broken(f, out, n)
    if n:
        count_add(&f.packets, n)
    return n


cdef int walk_broken(BlockFile* f, const Packet* out, int n) noexcept nogil:
    """Memory of the file is not there any more: it was cut short, or cannot be read. Returns how many of the n packets lie before that."""
    cdef int64_t broken = mapping_broken(f.mapped)
    cdef BlockNote* last
    pthread_mutex_lock(&f.notes.lock)
    last = &f.notes.list[f.notes.count - 1] if f.notes.count else NULL
    if last != NULL and last.file == f.index and last.offset >= f.base + broken:
        f.notes.count -= 1        # of the zeros that are there now
    pthread_mutex_unlock(&f.notes.lock)
    while n and out[n - 1].data + out[n - 1].caplen > f.window + broken:
        n -= 1
    walk_note(f, FAULT_SHRUNK, f.base + broken, 0, 0)
    f.ending = True
    f.next_known = False
    return n


cdef int walk_pcap(BlockFile* f, Packet* out, int most, int64_t limit) noexcept nogil:
    cdef const uint8_t* window = f.window
    cdef int64_t at = f.at
    cdef int64_t end = f.end
    cdef int64_t record = f.record
    cdef int64_t unit = f.unit
    cdef int64_t number = f.number
    cdef int64_t ts
    cdef bint swapped = f.swapped
    cdef int lengths = f.lengths
    cdef uint32_t link = f.link
    cdef uint32_t index = f.index
    cdef uint32_t caplen, wirelen, other
    cdef const uint8_t* p
    cdef const volatile uint8_t* last
    cdef int n = 0
    while end - at >= record:
        p = window + at
        caplen = blocks_load32(p + 8, swapped)
        wirelen = blocks_load32(p + 12, swapped)
        if lengths and (lengths == 1 or caplen > wirelen):
            other = caplen
            caplen = wirelen
            wirelen = other
        if caplen == 0 or caplen > WALK_CAPLEN:
            if walk_another(p):
                f.number = number
                walk_fail(f, FAULT_CAPLEN, at, caplen, 1)
                break
            if caplen:
                f.number = number
                walk_fail(f, FAULT_CAPLEN, at, caplen, 0)
                break
        if end - at - record < caplen:
            break
        if f.mapped >= 0 and caplen:
            last = p + record + caplen - 1
            last[0]               # whether it is there is found out before the packet is given out
        # Seconds up to 2^32 and fractions of any size stay far below 2^63.
        ts = <int64_t>blocks_load32(p, swapped) * 1000000000 + <int64_t>blocks_load32(p + 4, swapped) * unit
        if ts > limit or n == most:
            f.next_ts = ts
            f.next_known = True
            break
        number += 1
        out.ts_ns = ts
        out.data = p + record
        out.caplen = caplen
        out.wirelen = wirelen if wirelen > caplen else caplen
        out.link = link
        out.source = index
        out.iface = 0
        out.number = <uint64_t>number
        out += 1
        n += 1
        at += record + caplen
    f.number = number
    f.at = at
    return n


cdef int walk_section(BlockFile* f, const uint8_t* p, uint32_t total) noexcept nogil:
    if total < 28:
        return walk_fail(f, FAULT_HEADER_BLOCK, p - f.window, total, 28)
    f.iface_base += f.iface_count
    f.iface_count = 0
    f.begun = True
    return 0


cdef int walk_interface(BlockFile* f, const uint8_t* p, uint32_t total) noexcept nogil:
    cdef const uint8_t* option = p + 16
    cdef const uint8_t* end = p + total - 4
    cdef BlockIface* one
    cdef uint32_t room, code, length
    cdef uint8_t resolution = 6
    cdef int64_t offset = 0
    if total < 20:
        return walk_fail(f, FAULT_HEADER_BLOCK, p - f.window, total, 20)
    if f.iface_count == f.iface_room:
        if f.iface_count >= WALK_IFACES:
            return walk_fail(f, FAULT_IFACES, p - f.window, WALK_IFACES, 0)
        room = f.iface_room * 2 if f.iface_room else 4
        one = <BlockIface*>realloc(f.ifaces, room * sizeof(BlockIface))
        if one == NULL:
            return walk_fail(f, FAULT_MEMORY, p - f.window, 0, 0)
        f.ifaces = one
        f.iface_room = room
    while end - option >= 4:
        code = blocks_load16(option, f.swapped)
        length = blocks_load16(option + 2, f.swapped)
        option += 4
        if code == 0 or <int64_t>length > end - option:
            break                     # an option longer than its block: options end there
        if code == 9 and length >= 1:
            resolution = option[0]
        elif code == 14 and length >= 8:
            offset = blocks_load64(option, f.swapped)
        if <int64_t>((length + 3) & ~<uint32_t>3) > end - option:
            break
        option += (length + 3) & ~<uint32_t>3
    one = &f.ifaces[f.iface_count]
    one.link = blocks_load16(p + 8, f.swapped)
    one.snaplen = blocks_load32(p + 12, f.swapped)
    blocks_clock(&one.clock, resolution, offset)
    f.iface_count += 1
    return 0


cdef int64_t walk_step(BlockFile* f, const uint8_t* p, uint32_t total, int64_t left) noexcept nogil:
    """Bytes from this block to the next, its length at the end being checked; 0: not whole yet, -1: damaged (noted).

    Some writers do not pad, or do not count the padding: a total that is no multiple of 4 is rounded up unless the block ends without."""
    cdef uint32_t last
    cdef int64_t padded = (<int64_t>total + 3) & ~<int64_t>3
    if left < <int64_t>total:
        return 0
    last = blocks_load32(p + total - 4, f.swapped)
    if last == total:
        return total
    if padded > <int64_t>total:
        if left < padded:
            return 0
        last = blocks_load32(p + padded - 4, f.swapped)
        if last == total or <int64_t>last == padded:
            return padded
    return walk_fail(f, FAULT_BLOCK_TRAILER, p - f.window, total, last)


cdef bint walk_is_packet(uint32_t kind) noexcept nogil:
    return kind == 6 or kind == 3 or kind == 2


cdef int walk_pcapng(BlockFile* f, Packet* out, int most, int64_t limit) noexcept nogil:
    cdef const uint8_t* p
    cdef const uint8_t* data
    cdef const BlockIface* iface
    cdef uint32_t kind, total, id, caplen, wirelen
    cdef uint64_t ticks
    cdef int64_t step, ts
    cdef int64_t left
    cdef int n = 0
    while True:
        if f.skip:
            left = f.end - f.at
            if <uint64_t>left < f.skip:
                f.at = f.end
                f.skip -= <uint64_t>left
                break
            f.at += <int64_t>f.skip
            f.skip = 0
            if f.skip_packet:
                f.number += 1
                walk_note(f, FAULT_BAD_LENGTH, f.skip_at, 0, 0)
        left = f.end - f.at
        if left < 12:
            break
        p = f.window + f.at
        kind = blocks_load32(p, f.swapped)
        if kind == 0x0A0D0D0A:        # reads the same in both orders
            id = blocks_load32(p + 8, 0)
            if id != 0x1A2B3C4D and id != 0x4D3C2B1A:
                walk_fail(f, FAULT_SECTION, f.at, id, 0)
                break
            f.swapped = id == 0x4D3C2B1A
        elif kind > 0xFFFF and walk_another(p):       # no block of ours has such a type
            walk_fail(f, FAULT_CAPLEN, f.at, 0, 1)
            break
        total = blocks_load32(p + 4, f.swapped)
        if total < 12:
            walk_fail(f, FAULT_BLOCK_SHORT, f.at, total, 0)
            break
        if total > WALK_BLOCK:
            if kind == 0x0A0D0D0A or kind == 1:
                walk_fail(f, FAULT_HEADER_BLOCK, f.at, total, 0)
                break
            f.skip = (<uint64_t>total + 3) & ~<uint64_t>3
            f.skip_at = f.base + f.at
            f.skip_packet = walk_is_packet(kind)
            continue
        step = walk_step(f, p, total, left)
        if step <= 0:
            break
        if kind == 0x0A0D0D0A:
            if walk_section(f, p, total) < 0:
                break
        elif kind == 1:
            if walk_interface(f, p, total) < 0:
                break
        elif walk_is_packet(kind):
            # Header and end: 32 bytes of an enhanced or obsolete block, 16 of a simple one.
            if total < (16 if kind == 3 else 32):
                f.number += 1
                walk_note(f, FAULT_BAD_LENGTH, f.base + f.at, 0, 0)
                f.at += step
                continue
            id = 0 if kind == 3 else blocks_load32(p + 8, f.swapped) if kind == 6 else blocks_load16(p + 8, f.swapped)
            if id >= f.iface_count:
                f.number += 1
                walk_note(f, FAULT_BAD_INTERFACE, f.base + f.at, id, f.iface_count)
                f.at += step
                continue
            iface = &f.ifaces[id]
            if kind == 3:             # no time: that of the packet before it; the captured length follows from the snap length
                wirelen = blocks_load32(p + 8, f.swapped)
                caplen = wirelen
                if iface.snaplen and caplen > iface.snaplen:
                    caplen = iface.snaplen
                if caplen > total - 16:
                    caplen = total - 16
                data = p + 12
                ts = f.last_ts
            else:
                caplen = blocks_load32(p + 20, f.swapped)
                wirelen = blocks_load32(p + 24, f.swapped)
                if caplen > total - 32:
                    f.number += 1
                    walk_note(f, FAULT_BAD_LENGTH, f.base + f.at, caplen, 0)
                    f.at += step
                    continue
                data = p + 28
                ticks = (<uint64_t>blocks_load32(p + 12, f.swapped) << 32) | blocks_load32(p + 16, f.swapped)
                ts = blocks_time(&iface.clock, ticks)
            if ts > limit or n == most:
                f.next_ts = ts
                f.next_known = True
                break
            f.number += 1
            f.last_ts = ts
            out.ts_ns = ts
            out.data = data
            out.caplen = caplen
            out.wirelen = wirelen if wirelen > caplen else caplen
            out.link = iface.link
            out.source = f.index
            out.iface = f.iface_base + id
            out.number = <uint64_t>f.number
            out += 1
            n += 1
        f.at += step
    return n


# ---- faults in words ------------------------------------------------------------------------------------------------


def walk_found(first):
    """What a file is that begins so: a name for what people mix up with captures, else the bytes."""
    for start, name in (
        (b"\xfd7zXZ", "xz; decompress it first (xz -dc FILE | … -)"), (b"BZh", "bzip2; decompress it first (bzip2 -dc FILE | … -)"),
        (b"\x04\x22\x4d\x18", "lz4; decompress it first (lz4 -dc FILE | … -)"), (b"PK\x03\x04", "a zip archive; unpack it first"),
        (b"7z\xbc\xaf", "a 7z archive; unpack it first"), (b"snoop\0", "a snoop capture; convert it (editcap -F pcapng IN OUT)"),
        (b"GMBU", "a Network Monitor capture; convert it (editcap -F pcapng IN OUT)"), (b"RTSS", "a Network Monitor capture; convert it (editcap -F pcapng IN OUT)"),
        (b"XCP\0", "a NetXRay capture; convert it (editcap -F pcapng IN OUT)"), (b"\x7fELF", "a program"), (b"%PDF", "a PDF document"),
    ):
        if first.startswith(start):
            return name
    if not first.strip(b"\0"):
        return "zeros"
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in first):
        return "text, " + repr(first.decode())
    return "the bytes " + first.hex(" ")


# Index: BlockFault. (code, fatal: None when it depends on what could be used, message of (a, b, first bytes)).
FAULT_TEXT = (
    ("missing", True, lambda a, b, first: "no such file; expected a pcap or pcapng capture, check the path"),
    ("denied", True, lambda a, b, first: "permission denied; make the capture readable for this user"),
    ("folder", True, lambda a, b, first: "is a folder, expected a file; name the captures in it"),
    ("device", True, lambda a, b, first: "is a device or a socket, expected a file or a pipe; record with tcpdump -w FILE first"),
    ("terminal", True, lambda a, b, first: "standard input is a terminal, expected a capture; pipe one into it, or name a file"),
    ("unreadable", None, lambda a, b, first: f"cannot be read: {os.strerror(a)}" + ("; raise the limit (ulimit -n)" if a in (blocks_errno.EMFILE, blocks_errno.ENFILE) else "; copy the file from a good disk or take it again")),
    ("changed", None, lambda a, b, first: "was replaced by another file while it was read; what precedes was used, start again with files that rest"),
    ("memory", None, lambda a, b, first: "not enough memory to read on"),
    ("empty", True, lambda a, b, first: "is empty, expected a pcap or pcapng capture; record it again"),
    ("unknown_format", True, lambda a, b, first: f"is no capture: expected pcap or pcapng{'' if a else ', plain or compressed with gzip or zstd, Envoy tap files, or .gor'}; found {walk_found(first)}" + (", inside the compression" if a else "")),
    ("no_zstd", True, lambda a, b, first: "is compressed with zstd, and no module here reads that; pip install backports.zstd, or decompress it first (zstd -dc FILE | … -)"),
    ("nested", True, lambda a, b, first: "is compressed twice, expected a capture inside the compression; decompress it once"),
    ("compression", None, lambda a, b, first: "the compressed data is damaged here; what comes out before it was used, make the file anew or copy it again"),
    ("trailing", False, lambda a, b, first: "bytes that are no compressed data follow the last member; they were ignored"),
    ("cut", None, lambda a, b, first: "the file ends inside a packet or block" + (f" ({a} bytes of it are there)" if a else "") + "; what precedes was used"),
    ("cut", None, lambda a, b, first: "the compressed data ends before its first block is whole; nothing could be used, make the file anew or copy it again" if b == 2 else
        f"the file ends inside its header ({a} of {'at least 28' if b else 24} bytes); nothing could be used, record it again"),
    ("corrupt", None, lambda a, b, first: "another capture begins here: files that were joined (cat, zcat) are no capture; what precedes was used, give the files one by one" if b else
        f"a captured length of {a} bytes, at most {WALK_CAPLEN} are sane; what precedes was used, the rest of the file is lost"),
    ("corrupt", None, lambda a, b, first: f"a block length of {a}, at least 12 were expected; what precedes was used, the rest of the file is lost"),
    ("corrupt", None, lambda a, b, first: f"a block says {a} as its length at its beginning and {b} at its end; what precedes was used, the rest of the file is lost"),
    ("corrupt", None, lambda a, b, first: f"a section header without the byte order magic 1a2b3c4d (found {a:08x}); what precedes was used, the rest of the file is lost"),
    ("corrupt", None, lambda a, b, first: f"a section or interface block of {a} bytes" + (f", at least {b} were expected" if b else f", at most {WALK_BLOCK} are sane") + "; what precedes was used, the rest of the file is lost"),
    ("corrupt", None, lambda a, b, first: f"more than {a} interfaces in one section; what precedes was used, the rest of the file is lost"),
    ("unreadable", None, lambda a, b, first: "the file became shorter while it was read, or its disk fails here; what precedes was used, start again with a file that rests"),
    ("bad_interface", None, lambda a, b, first: f"packets of an interface that was never described (the first one: {a} of {b}); they were left out"),
    ("bad_length", None, lambda a, b, first: "packets whose length does not fit their block; they were left out"),
)

# The codes of faults, for those who list them.
FAULTS = tuple(dict.fromkeys(code for code, _, _ in FAULT_TEXT))
