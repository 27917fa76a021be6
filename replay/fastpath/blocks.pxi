# Captures as packets: files and pipes, compressed or not, walked and merged by time. The walkers of the formats are in walk.pxi.
# Must not know: what is inside a packet.
#
# A capture's bytes pass through its window (owned, at most BLOCKS_WINDOW). Packets borrow from windows, so a window is filled only at the beginning of a
# take, when nothing is borrowed any more: the walk that comes to the end of a window ends its take, and the next take fills it.
from cpython.exc cimport PyErr_CheckSignals

import errno as blocks_errno
import importlib
import os
import stat as blocks_stat
import zlib

include "walk.pxi"

cdef enum:
    BLOCKS_WINDOW = 2 * 1024 * 1024      # above the largest record, so that each record fits
    BLOCKS_READ = 256 * 1024             # at once, so that it is still in the second cache when it is looked at
    BLOCKS_LEFT = 64 * 1024              # what is left of a window is moved to its beginning when it is less
    BLOCKS_BUDGET = 64 * 1024 * 1024     # of all windows; when most of it is spent, windows get smaller, down to …
    BLOCKS_SMALL = 16 * 1024
    BLOCKS_INPUT = 64 * 1024             # compressed bytes read at once
    BLOCKS_KEEP = 16                     # so many captures stay open from the first look on
    BLOCKS_DESCRIPTORS = 64              # files beyond it are opened for each read
    BLOCKS_WAIT_MS = 50
    BLOCKS_MAP = 8 * 1024 * 1024         # of a file that is mapped, at once
    BLOCKS_MAP_FILES = 2                 # so many at once

cdef enum:                        # BlockFile.trial: pieces of BLOCKS_MAP
    TRIAL_BEGIN = 0               # read, and not counted: everything is cold
    TRIAL_FIRST = 1               # read, mapped, read, mapped
    TRIAL_OVER = 5
    TRIAL_LASTS = 64              # pieces that are done in the way that cost less, before both are tried again

cdef extern from "<time.h>" nogil:
    enum: CLOCK_THREAD_CPUTIME_ID

cdef enum:                        # of the environment's REPLAY_READ
    BLOCKS_EITHER = 0             # mapped where that costs less
    BLOCKS_NEVER_MAP = 1
    BLOCKS_ALWAYS_MAP = 2         # … whatever is a file and not compressed (tests)

cdef enum BlockState:
    BLOCKS_NEW = 0                # its first packet was not looked for yet
    BLOCKS_WAITING = 1            # closed; the time of its first packet is known
    BLOCKS_OPEN = 2
    BLOCKS_DONE = 3

cdef enum BlockPacking:
    BLOCKS_PLAIN = 0
    BLOCKS_GZIP = 1
    BLOCKS_ZSTD = 2

cdef enum BlockResult:            # of a fill: bytes (0: the end), or one of
    BLOCKS_IDLE = -10             # nothing came for a moment
    BLOCKS_STOPPED = -11
    BLOCKS_FAILED = -12           # noted as a fault
    BLOCKS_ENOUGH = -13           # most_bytes are read
    BLOCKS_READY = 1              # of a refill: a packet is there, next_ts is known
    BLOCKS_GONE = 2               # of a refill: no further packet; closed


cdef class _Inflater:
    """gzip or zstd undone, piece by piece; members and frames that follow one another are one stream (RFC 1952 2.2, RFC 8878 3.1)."""
    cdef object module            # zlib, or the module that speaks zstd
    cdef object one               # decompressor of the member at hand; None between members
    cdef bytes tail               # compressed bytes not yet taken
    cdef bint gzip
    cdef bint more                # there may be output without further input
    cdef bint failed              # damaged: nothing comes any more
    cdef bint trailing            # bytes that are no member followed the last one
    cdef bint begun               # a member was seen
    cdef readonly str reason

    def __cinit__(self, bint gzip):
        self.gzip = gzip
        self.tail = b""
        self.module = zlib if gzip else blocks_zstd()

    cdef bint whole(self) except -1:
        """True when the input so far ends where a member does."""
        return self.one is None and not self.tail

    cdef bint open(self) except -1:
        """The next member, if the tail begins one; False when it is too short to tell."""
        if self.begun:
            if self.gzip:
                self.tail = self.tail.lstrip(b"\0")     # tapes and block devices pad
            if not self.tail:
                return False
            start = self.tail[:4]
            if self.gzip:
                fits = b"\x1f\x8b".startswith(start[:2])
            else:
                fits = b"\x28\xb5\x2f\xfd".startswith(start) or (start[0] & 0xF0 == 0x50 and b"\x2a\x4d\x18".startswith(start[1:]))
            if not fits:
                self.trailing = True
                self.tail = b""
                return False
            if len(start) < (2 if self.gzip else 4):
                return False
        elif not self.tail:
            return False
        self.one = self.module.decompressobj(31) if self.gzip else self.module.ZstdDecompressor()
        self.begun = True
        return True

    cdef bytes step(self, Py_ssize_t room):
        """Some output, perhaps none; sets `more`, `failed`."""
        cdef bytes out
        if self.gzip:
            before = self.one.copy()
            try:
                out = self.one.decompress(self.tail, room)
            except zlib.error as error:
                return self.salvage(before, room, str(error))
            self.more = len(out) >= room
            self.tail = self.one.unused_data if self.one.eof else self.one.unconsumed_tail
        else:
            given = self.tail[:4096] if self.one.needs_input else b""     # small pieces: less is lost when one is damaged
            try:
                out = self.one.decompress(given, max_length=room)
            except self.module.ZstdError as error:
                self.failed = True
                self.reason = str(error)
                return b""
            self.tail = self.tail[len(given):]
            self.more = not self.one.needs_input
            if self.one.eof:
                self.tail = self.one.unused_data + self.tail
        if self.one.eof:
            self.one = None
            self.more = False
        return out

    cdef bytes salvage(self, one, Py_ssize_t room, str reason):
        """What comes out of a damaged piece before the damage, byte by byte."""
        cdef Py_ssize_t at = 0
        out = bytearray()
        while len(out) < room and at < len(self.tail):
            try:
                out += one.decompress(self.tail[at:at + 1], room - len(out))
            except zlib.error:
                self.failed = True
                break
            at += 1 - len(one.unconsumed_tail)
        if at >= len(self.tail):
            self.failed = True            # it was the whole that failed
        self.reason = reason
        self.one = one
        self.more = True
        self.tail = self.tail[at:]
        return bytes(out)

    cdef bytes feed(self, bytes data, Py_ssize_t room, const int64_t* stop):
        """Up to `room` bytes of output; fewer: it wants further input (or it failed, or trailing bytes follow)."""
        cdef Py_ssize_t got = 0
        cdef bytes out
        self.tail = self.tail + data if self.tail else data
        parts = []
        while got < room and not self.failed and not self.trailing and not atomic_get(stop):
            if self.one is None and not self.open():
                break
            out = self.step(room - got)
            got += len(out)
            if out:
                parts.append(out)
            if not self.tail and not self.more:
                break
        return b"".join(parts)


def blocks_zstd():
    """The module that speaks zstd: the standard library's from Python 3.14 on. Raises ImportError."""
    try:
        return importlib.import_module("compression.zstd")
    except ImportError:
        return importlib.import_module("backports.zstd")


cdef struct RetiredWindow:
    RetiredWindow* next
    uint8_t* window               # owns; NULL: it was mapped
    int mapped                    # … as this one of mapping.h
    int64_t fill                  # at which it was put away


cdef class Capture(PacketSource):
    """The packets of captures, merged by time.

    paths: files, or "-" for standard input; a path may be bytes.  stop: ends it early.  most_bytes: end after about that many (decompressed) bytes; 0: all.
    Within a capture the order of the file is kept; of packets with equal times the capture that was named first comes first.
    Nothing is raised for what is in a file, or when there is none: see `faults`.
    """
    cdef Stop stop
    cdef BlockFile* files         # owns: count
    cdef int32_t* heap            # owns: captures whose next time is known, the earliest at 0
    cdef int32_t* pending         # owns: captures that must be filled before anything else goes on, the last first
    cdef int32_t count
    cdef int32_t heap_count
    cdef int32_t pending_count
    cdef int32_t descriptors
    cdef int64_t window_bytes
    cdef int64_t most_bytes
    cdef int64_t bytes_used       # decompressed; against most_bytes
    cdef int64_t bytes_read       # atomic: on disk
    cdef int64_t packets          # atomic
    cdef int64_t finished         # atomic: 1 all was read, 2 ended early
    cdef int how                  # BLOCKS_EITHER, …
    cdef int32_t maps             # files that are mapped now
    cdef bint two_windows         # packets stay valid until the fill after the next (`Ingest` with two threads)
    cdef int64_t fills            # with two windows
    cdef RetiredWindow* retired   # owns: windows of captures that ended, until nothing borrows from them
    cdef BlockNotes notes
    cdef list names               # as given, for messages
    cdef list paths               # bytes; keeps BlockFile.path alive
    cdef list inflaters           # _Inflater or None
    cdef object total

    def __cinit__(self, paths, *, Stop stop not None, int64_t most_bytes=0):
        cdef int32_t i
        cdef BlockFile* f
        self.names = [os.fsdecode(path) for path in paths]
        self.paths = [os.fsencode(path) for path in self.names]
        if len(self.paths) > 0x7FFFFFF:
            raise ValueError("too many captures")
        self.stop = stop
        self.most_bytes = most_bytes if most_bytes > 0 else 0
        self.count = <int32_t>len(self.paths)
        self.inflaters = [None] * self.count
        pthread_mutex_init(&self.notes.lock, NULL)
        self.files = <BlockFile*>calloc(self.count + 1, sizeof(BlockFile))
        self.heap = <int32_t*>calloc(self.count + 1, sizeof(int32_t))
        self.pending = <int32_t*>calloc(self.count + 1, sizeof(int32_t))
        if self.files == NULL or self.heap == NULL or self.pending == NULL:
            raise MemoryError
        for i in range(self.count):
            f = &self.files[i]
            f.index = <uint32_t>i
            f.path = <const char*>(<bytes>self.paths[i])
            f.fd = f.mapped = -1
            f.notes = &self.notes
            f.usable = b"\0" not in <bytes>self.paths[i]
            f.standard_input = self.paths[i] == b"-"
            self.pending[self.count - 1 - i] = i
        self.pending_count = self.count
        self.total = blocks_total(self.paths)
        self.how = {"read": BLOCKS_NEVER_MAP, "map": BLOCKS_ALWAYS_MAP}.get(os.environ.get("REPLAY_READ"), BLOCKS_EITHER)

    def __dealloc__(self):
        cdef int32_t i
        if self.files != NULL:
            for i in range(self.count):
                self.put_away(&self.files[i])
        self.free_retired(-1)
        free(self.files)
        free(self.heap)
        free(self.pending)
        free(self.notes.list)
        pthread_mutex_destroy(&self.notes.lock)

    # ---- bytes ------------------------------------------------------------------------------------------------------

    cdef int open(self, BlockFile* f) noexcept nogil:
        """A descriptor to read from, kept in f.fd. 0, or BLOCKS_FAILED (noted)."""
        cdef file_stat about
        if f.standard_input:
            if f.fd < 0:
                if isatty(0):
                    walk_note(f, FAULT_TERMINAL, -1, 0, 0)
                    return BLOCKS_FAILED
                f.fd = 0
                f.stream = True
            return 0
        if not f.usable:
            walk_note(f, FAULT_MISSING, -1, 0, 0)
            return BLOCKS_FAILED
        f.fd = open_file(f.path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
        if f.fd < 0 or fstat(f.fd, &about) < 0:
            if errno.errno == errno.ENOENT or errno.errno == errno.ENOTDIR:
                walk_note(f, FAULT_MISSING, -1, 0, 0)
            elif errno.errno == errno.EACCES or errno.errno == errno.EPERM:
                walk_note(f, FAULT_DENIED, -1, 0, 0)
            elif errno.errno == errno.ENXIO:
                walk_note(f, FAULT_DEVICE, -1, 0, 0)      # a socket, or a device without hardware
            else:
                walk_note(f, FAULT_UNREADABLE, -1, errno.errno, 0)
            return BLOCKS_FAILED
        self.descriptors += 1
        if S_ISDIR(about.st_mode):
            walk_note(f, FAULT_FOLDER, -1, 0, 0)
            return BLOCKS_FAILED
        if not S_ISREG(about.st_mode) and not S_ISFIFO(about.st_mode):
            walk_note(f, FAULT_DEVICE, -1, 0, 0)
            return BLOCKS_FAILED
        if f.inode and (f.inode != about.st_ino or f.device != about.st_dev) and f.raw_at > 0:
            walk_note(f, FAULT_CHANGED, -1, 0, 0)
            return BLOCKS_FAILED
        f.stream = S_ISFIFO(about.st_mode) != 0
        f.inode = about.st_ino
        f.device = about.st_dev
        f.size = about.st_size
        return 0

    cdef inline void shut(self, BlockFile* f) noexcept nogil:
        if f.fd >= 0 and not f.standard_input:
            close(f.fd)
            self.descriptors -= 1
        f.fd = -1

    cdef int64_t raw(self, BlockFile* f, uint8_t* into, int64_t room) noexcept nogil:
        """Bytes as they are on disk or in the pipe: their number, 0 at the end, BLOCKS_IDLE, BLOCKS_STOPPED or BLOCKS_FAILED."""
        cdef pollfd wait[2]
        cdef int64_t got
        if f.fd < 0 and self.open(f) < 0:
            return BLOCKS_FAILED
        while True:
            if atomic_get(&self.stop.flag):
                return BLOCKS_STOPPED
            if f.stream:
                wait[0].fd = f.fd
                wait[0].events = POLLIN
                wait[0].revents = 0
                wait[1].fd = self.stop.fd
                wait[1].events = POLLIN
                wait[1].revents = 0
                if poll(wait, 2, BLOCKS_WAIT_MS) >= 0:
                    if atomic_get(&self.stop.flag):
                        return BLOCKS_STOPPED
                    if not wait[0].revents:
                        return BLOCKS_IDLE
                    got = read(f.fd, into, room)
                else:
                    got = -1
            else:
                got = pread(f.fd, into, room, f.raw_at)
            if got >= 0:
                break
            if errno.errno == errno.EAGAIN:
                return BLOCKS_IDLE
            if errno.errno != errno.EINTR:
                walk_note(f, FAULT_UNREADABLE, f.raw_at, errno.errno, 0)
                return BLOCKS_FAILED
        f.raw_at += got
        count_add(&self.bytes_read, got)
        if not f.stream and self.descriptors > BLOCKS_DESCRIPTORS:
            self.shut(f)
        return got

    cdef int64_t inflate(self, BlockFile* f, int64_t given, uint8_t* into, int64_t room) noexcept with gil:
        """f.input[:given] decompressed. The bytes at `into`, which may be none."""
        cdef _Inflater one
        cdef bytes out
        cdef int64_t got = 0
        try:
            one = self.inflaters[f.index]
            out = one.feed(<bytes>f.input[:given], room, &self.stop.flag)
            got = len(out)
            memcpy(into, <const uint8_t*>out, got)
            f.inflate_more = one.more or got == room
            f.inflate_whole = one.whole()
            if one.failed:
                f.inflate_failed = True
                f.inflate_more = False
            elif one.trailing:
                f.raw_end = True
                f.inflate_more = False
                walk_note(f, FAULT_TRAILING, f.raw_at, 0, 0)
        except MemoryError:
            walk_note(f, FAULT_MEMORY, -1, 0, 0)
            return BLOCKS_FAILED
        except BaseException:
            f.inflate_failed = True
            f.inflate_more = False
        return got

    cdef int unpack(self, BlockFile* f, int packing) noexcept with gil:
        """From now on the bytes are decompressed; those in the window are the first. 0 or BLOCKS_FAILED (noted)."""
        cdef _Inflater one
        try:
            one = _Inflater(packing == BLOCKS_GZIP)
            one.tail = <bytes>f.window[f.at:f.end]
            self.inflaters[f.index] = one
        except ImportError:
            walk_note(f, FAULT_NO_ZSTD, -1, 0, 0)
            return BLOCKS_FAILED
        except BaseException:
            walk_note(f, FAULT_MEMORY, -1, 0, 0)
            return BLOCKS_FAILED
        f.packing = packing
        f.inflate_more = True
        f.at = f.end = 0
        return 0

    cdef void forget(self, BlockFile* f) noexcept with gil:
        self.inflaters[f.index] = None

    cdef int64_t fill(self, BlockFile* f) noexcept nogil:
        """Bytes put at the end of the window; 0 at the end, or a BlockResult."""
        cdef int64_t got
        cdef uint8_t* into = f.window + f.end
        cdef int64_t room = f.window_size - f.end
        if f.packing == BLOCKS_PLAIN:
            got = self.raw(f, into, room if room < BLOCKS_READ else BLOCKS_READ)
        else:
            if f.input == NULL:
                f.input = <uint8_t*>malloc(BLOCKS_INPUT)
                if f.input == NULL:
                    walk_note(f, FAULT_MEMORY, -1, 0, 0)
                    return BLOCKS_FAILED
            while True:
                got = 0
                if f.inflate_failed:
                    return 0
                if not f.inflate_more:
                    if f.raw_end:
                        return 0
                    got = self.raw(f, f.input, BLOCKS_INPUT)
                    if got < 0:
                        return got
                    if got == 0:
                        f.raw_end = True
                        return 0
                got = self.inflate(f, got, into, room)
                if atomic_get(&self.stop.flag):
                    return BLOCKS_STOPPED
                if got != 0:
                    break
        if got > 0:
            f.end += got
            self.bytes_used += got
        return got

    # ---- a capture --------------------------------------------------------------------------------------------------

    cdef int grow(self, BlockFile* f) noexcept nogil:
        """A first or a larger window. 0 or BLOCKS_FAILED (noted)."""
        cdef int64_t size = f.window_size * 2
        cdef uint8_t* larger
        if f.window == NULL:
            size = BLOCKS_WINDOW
            if f.state == BLOCKS_NEW and self.count > BLOCKS_KEEP:
                size = BLOCKS_SMALL
            while size > BLOCKS_SMALL and (size > (BLOCKS_BUDGET - self.window_bytes) // 8 or (self.most_bytes and size > self.most_bytes // 8)):
                size //= 2
        if size > BLOCKS_WINDOW:
            size = BLOCKS_WINDOW
        larger = <uint8_t*>realloc(f.window, size)
        if larger == NULL:
            walk_note(f, FAULT_MEMORY, -1, 0, 0)
            return BLOCKS_FAILED
        self.window_bytes += size - f.window_size
        f.window = larger
        f.window_size = size
        return 0

    cdef void put_away(self, BlockFile* f) noexcept nogil:
        """Frees all that it holds; nothing of it is borrowed any more."""
        self.unmap(f)
        self.shut(f)
        self.window_bytes -= f.window_size
        self.retire(f.window)
        self.retire(f.other)
        f.other = NULL
        f.other_size = 0
        free(f.input)
        free(f.ifaces)
        f.window = NULL
        f.input = NULL
        f.ifaces = NULL
        f.window_size = 0

    cdef void retire(self, uint8_t* window) noexcept nogil:
        """Frees a window, with two of them when nothing can borrow from it any more."""
        cdef RetiredWindow* one = NULL
        if window != NULL and self.two_windows:
            one = <RetiredWindow*>malloc(sizeof(RetiredWindow))
        if one == NULL:
            free(window)
            return
        one.window = window
        one.fill = self.fills
        one.next = self.retired
        self.retired = one

    cdef void retire_mapped(self, int which) noexcept nogil:
        """The same of a mapping."""
        cdef RetiredWindow* one = NULL
        if self.two_windows:
            one = <RetiredWindow*>malloc(sizeof(RetiredWindow))
        if one == NULL:
            mapping_close(which)
            return
        one.window = NULL
        one.mapped = which
        one.fill = self.fills
        one.next = self.retired
        self.retired = one

    cdef void free_retired(self, int64_t before) noexcept nogil:
        """Frees what was put away before that fill; -1: all."""
        cdef RetiredWindow** at = &self.retired
        cdef RetiredWindow* one
        while at[0] != NULL:
            one = at[0]
            if before < 0 or one.fill < before:
                at[0] = one.next
                if one.window == NULL:
                    mapping_close(one.mapped)
                free(one.window)
                free(one)
            else:
                at = &one.next

    cdef int change_windows(self, BlockFile* f) noexcept nogil:
        """What is left goes to the other window, which is filled now; this one stays as it is for a while. 0, or BLOCKS_FAILED (noted)."""
        cdef int64_t left = f.end - f.at
        cdef uint8_t* window
        cdef int64_t size
        if f.window == NULL:
            return 0
        if f.other_size < f.window_size:
            window = <uint8_t*>realloc(f.other, f.window_size)
            if window == NULL:
                walk_note(f, FAULT_MEMORY, -1, 0, 0)
                return BLOCKS_FAILED
            f.other = window
            f.other_size = f.window_size
        memcpy(f.other, f.window + f.at, left)
        window, size = f.window, f.window_size
        f.window, f.window_size = f.other, f.other_size
        f.other, f.other_size = window, size
        f.base += f.at
        f.at = 0
        f.end = left
        return 0

    cdef void close(self, BlockFile* f) noexcept nogil:
        f.state = BLOCKS_DONE
        self.put_away(f)
        if f.packing != BLOCKS_PLAIN:
            self.forget(f)

    cdef void wait_its_turn(self, BlockFile* f) noexcept nogil:
        """Back to the beginning, closed; only the time of the first packet is kept."""
        if f.mapped < 0:
            free(f.window)            # of which no packet was given out
            f.window = NULL
        self.put_away(f)
        if f.packing != BLOCKS_PLAIN:
            self.forget(f)
        count_add(&self.bytes_read, -f.raw_at)
        self.bytes_used -= f.base + f.end
        walk_unnote(f)
        walk_reset(f)
        f.state = BLOCKS_WAITING

    cdef bint enough(self, BlockFile* f) noexcept nogil:
        if not self.most_bytes or f.state == BLOCKS_NEW or self.bytes_used < self.most_bytes:
            return False
        return f.stream or f.packing != BLOCKS_PLAIN or f.fd < 0 or f.raw_at < f.size

    cdef void end(self, BlockFile* f) noexcept nogil:
        """The bytes are over: what is left in the window, and was it all?"""
        cdef int64_t left = f.end - f.at
        cdef bint cut = f.packing != BLOCKS_PLAIN and not f.inflate_failed and not f.inflate_whole
        if f.inflate_failed:
            walk_note(f, FAULT_COMPRESSION, f.raw_at, 0, 0)
        if f.begun:
            if left or f.skip or cut:
                walk_note(f, FAULT_CUT, f.skip_at if f.skip else f.base + f.at, left, 0)
        elif f.inflate_failed:
            pass
        elif cut or (left and (f.format != FORMAT_UNKNOWN or walk_prefix(f.window + f.at, left))):
            walk_note(f, FAULT_CUT_HEADER, f.base + f.at, left, 2 if cut and not left else f.format == FORMAT_PCAPNG)
        elif left:
            walk_unknown(f)
        else:
            walk_note(f, FAULT_EMPTY, 0, 0, 0)

    cdef int begin(self, BlockFile* f) noexcept nogil:
        """Looks at the first bytes. 0, or BLOCKS_FAILED (noted): no capture."""
        cdef int packing
        if f.end - f.at < 4:
            return 0
        packing = walk_packing(f.window + f.at)
        if packing == BLOCKS_PLAIN:
            return 0 if walk_format(f) >= 0 else BLOCKS_FAILED
        if f.packing != BLOCKS_PLAIN:
            walk_note(f, FAULT_NESTED, 0, 0, 0)
            return BLOCKS_FAILED
        return self.unpack(f, packing)

    # ---- the file itself as the window --------------------------------------------------------------------------------

    cdef void unmap(self, BlockFile* f) noexcept nogil:
        """As if the file had been read up to where the walk is."""
        if f.mapped < 0:
            return
        self.retire_mapped(f.mapped)
        f.mapped = -1
        self.maps -= 1
        f.window = NULL
        f.window_size = 0
        count_add(&self.bytes_read, f.at - f.end)
        self.bytes_used += f.at - f.end
        f.base += f.at
        f.at = f.end = 0
        f.raw_at = f.base

    cdef bint maps_it(self, BlockFile* f) noexcept nogil:
        """The next bytes are to be mapped. What is cheaper depends on the processor and on how the page cache holds the file, so both are tried."""
        if f.unmappable or self.how == BLOCKS_NEVER_MAP or f.format == FORMAT_UNKNOWN or f.packing != BLOCKS_PLAIN or f.stream or f.standard_input or f.fd < 0:
            return False
        if f.state == BLOCKS_NEW and self.count > BLOCKS_KEEP:
            return False              # it is put back at once
        if f.mapped < 0 and self.maps >= BLOCKS_MAP_FILES:
            return False
        if self.how == BLOCKS_ALWAYS_MAP:
            return True
        if f.base + f.at >= f.trial_end:
            self.try_next(f)
        if f.trial < TRIAL_OVER:
            return f.trial > TRIAL_BEGIN and f.trial % 2 == 0
        return f.trial_cost[1] < f.trial_cost[0]

    cdef void try_next(self, BlockFile* f) noexcept nogil:
        cdef timespec now
        cdef int64_t cpu, cost
        cdef int64_t at = f.base + f.at
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now)
        cpu = <int64_t>now.tv_sec * 1000000000 + now.tv_nsec
        if f.trial_end == 0:
            f.trial = TRIAL_BEGIN
        elif f.trial >= TRIAL_OVER:
            f.trial = TRIAL_FIRST
            f.trial_cost[0] = f.trial_cost[1] = 0
        else:
            if f.trial > TRIAL_BEGIN and at > f.trial_begin:
                cost = (cpu - f.trial_cpu) * 1024 // ((at - f.trial_begin + 1023) // 1024) + 1
                if f.trial_cost[1 - f.trial % 2] == 0 or cost < f.trial_cost[1 - f.trial % 2]:
                    f.trial_cost[1 - f.trial % 2] = cost
            f.trial += 1
        f.trial_begin = at
        f.trial_cpu = cpu
        f.trial_end = at + BLOCKS_MAP * (TRIAL_LASTS if f.trial >= TRIAL_OVER else 1)

    cdef int64_t map_next(self, BlockFile* f) noexcept nogil:
        """The window is the file's memory from where the walk is. How many bytes are new: 0 at the end; BLOCKS_FAILED: it is not to be mapped (now it is as if it never was)."""
        cdef file_stat about
        cdef const uint8_t* memory = NULL
        cdef int64_t at = f.base + f.at
        cdef int64_t seen = f.base + f.end
        cdef int64_t begin = at - at % MAPPING_LARGE
        cdef int64_t end = begin + BLOCKS_MAP
        cdef int which
        if fstat(f.fd, &about) < 0:
            return BLOCKS_FAILED
        if end > about.st_size:
            end = about.st_size
        if end <= seen:
            return 0
        if f.mapped >= 0:
            self.retire_mapped(f.mapped)
            self.maps -= 1
        else:
            self.window_bytes -= f.window_size
            self.retire(f.window)
        f.mapped = -1
        f.window = NULL
        f.window_size = 0
        which = mapping_open(f.fd, begin, <uint64_t>(end - begin), &memory)
        if which < 0:
            f.unmappable = True
            f.base = f.raw_at = at
            f.at = f.end = 0
            count_add(&self.bytes_read, at - seen)
            self.bytes_used += at - seen
            return BLOCKS_FAILED
        self.maps += 1
        f.mapped = which
        f.window = <uint8_t*>memory   # nothing writes to it
        f.base = begin
        f.at = at - begin
        f.end = end - begin
        f.raw_at = end
        count_add(&self.bytes_read, end - seen)
        self.bytes_used += end - seen
        return end - seen

    cdef int refill(self, BlockFile* f) noexcept nogil:
        """Fills the window until a packet is whole. BLOCKS_READY, BLOCKS_GONE, BLOCKS_IDLE, BLOCKS_STOPPED or BLOCKS_ENOUGH."""
        cdef int64_t got
        while not f.ending and self.maps_it(f):
            if self.enough(f):
                return BLOCKS_ENOUGH
            got = self.map_next(f)
            if got == BLOCKS_FAILED:
                break                 # read on
            if got == 0:
                self.end(f)
                self.close(f)
                return BLOCKS_GONE
            walk(f, NULL, 0, INT64_MAX)
            if f.next_known:
                return BLOCKS_READY
        self.unmap(f)
        if self.two_windows and not f.ending and self.change_windows(f) < 0:
            f.ending = True
        while not f.ending:
            if f.at == f.end:
                f.base += f.at
                f.at = f.end = 0
            elif f.at and (f.end - f.at < BLOCKS_LEFT or f.window_size - f.end < f.window_size // 2):
                memmove(f.window, f.window + f.at, f.end - f.at)
                f.base += f.at
                f.end -= f.at
                f.at = 0
            if self.enough(f):
                return BLOCKS_ENOUGH
            if f.end == f.window_size and self.grow(f) < 0:
                break
            got = self.fill(f)
            if got == BLOCKS_FAILED:
                break
            if got < 0:
                return <int>got
            if got == 0:
                self.end(f)
                break
            if f.format == FORMAT_UNKNOWN and self.begin(f) < 0:
                break
            if f.format != FORMAT_UNKNOWN:
                walk(f, NULL, 0, INT64_MAX)
                if f.next_known:
                    return BLOCKS_READY
        self.close(f)
        return BLOCKS_GONE

    # ---- all of them ------------------------------------------------------------------------------------------------

    cdef inline bint earlier(self, int32_t a, int32_t b) noexcept nogil:
        cdef int64_t x = self.files[a].next_ts
        cdef int64_t y = self.files[b].next_ts
        return x < y or (x == y and a < b)

    cdef void sift(self, int32_t at) noexcept nogil:
        """Puts the entry at `at` down to where it belongs."""
        cdef int32_t one = self.heap[at]
        cdef int32_t child
        while True:
            child = 2 * at + 1
            if child >= self.heap_count:
                break
            if child + 1 < self.heap_count and self.earlier(self.heap[child + 1], self.heap[child]):
                child += 1
            if not self.earlier(self.heap[child], one):
                break
            self.heap[at] = self.heap[child]
            at = child
        self.heap[at] = one

    cdef void add(self, int32_t one) noexcept nogil:
        cdef int32_t at = self.heap_count
        cdef int32_t parent
        self.heap_count += 1
        while at:
            parent = (at - 1) // 2
            if not self.earlier(one, self.heap[parent]):
                break
            self.heap[at] = self.heap[parent]
            at = parent
        self.heap[at] = one

    cdef void drop_top(self) noexcept nogil:
        self.heap_count -= 1
        if self.heap_count:
            self.heap[0] = self.heap[self.heap_count]
            self.sift(0)

    cdef int64_t limit(self) noexcept nogil:
        """The latest time up to which the top may go on before another's turn comes."""
        cdef int32_t second
        if self.heap_count < 2:
            return INT64_MAX
        second = 1
        if self.heap_count > 2 and self.earlier(self.heap[2], self.heap[1]):
            second = 2
        second = self.heap[second]
        # The top is earlier, so a second of a lower index has a later time than the top's: no underflow.
        return self.files[second].next_ts - (1 if second < self.heap[0] else 0)

    cdef int fill_pending(self) noexcept nogil:
        """Fills all that wait for bytes. 0, or why it could not: BLOCKS_IDLE, BLOCKS_STOPPED, BLOCKS_ENOUGH."""
        cdef BlockFile* f
        cdef int32_t one
        cdef int result
        if self.two_windows and self.pending_count:
            self.fills += 1
            self.free_retired(self.fills - 1)
        while self.pending_count:
            one = self.pending[self.pending_count - 1]
            f = &self.files[one]
            result = self.refill(f)
            if result < 0:
                return result
            self.pending_count -= 1
            if result == BLOCKS_READY:
                if f.state == BLOCKS_NEW and self.count > BLOCKS_KEEP and not f.stream:
                    self.wait_its_turn(f)
                else:
                    f.state = BLOCKS_OPEN
                self.add(one)
        return 0

    cdef bint keeps(self) noexcept nogil:
        return self.pending_count == 0        # only then nothing is filled

    cdef const uint8_t* cold_until(self, const uint8_t* at) noexcept nogil:
        cdef const BlockFile* f
        if self.maps == 0 or self.heap_count != 1:
            return NULL
        f = &self.files[self.heap[0]]
        # The latest packet may be another file's, whose bytes are over: behind it is nothing.
        return f.window + f.end if f.mapped >= 0 and f.window <= at <= f.window + f.end else NULL

    cdef int take(self, Packet* out, int most) noexcept nogil:
        cdef BlockFile* f
        cdef int32_t one
        cdef int n = 0
        cdef int result
        if atomic_get(&self.stop.flag):
            atomic_set(&self.finished, 2)
        if atomic_get(&self.finished):
            return 0
        while n == 0:
            result = self.fill_pending()
            if result == BLOCKS_IDLE:
                return TAKE_IDLE
            if result < 0:
                atomic_set(&self.finished, 2)
                return 0
            if self.heap_count == 0:
                atomic_set(&self.finished, 1)
                return 0
            while n < most and self.heap_count:
                one = self.heap[0]
                f = &self.files[one]
                if f.state == BLOCKS_WAITING:
                    f.state = BLOCKS_OPEN
                    self.drop_top()
                    self.pending[self.pending_count] = one
                    self.pending_count += 1
                    break
                n += walk(f, out + n, most - n, self.limit())
                if f.next_known:
                    self.sift(0)
                else:
                    self.drop_top()
                    self.pending[self.pending_count] = one
                    self.pending_count += 1
                    if n == 0:
                        return TAKE_IDLE      # a mapping broke: who was told that this keeps everything must own it before the window goes
                    break
        count_add(&self.packets, n)
        return n

    # ---- for Python -------------------------------------------------------------------------------------------------

    def progress(self):
        """{bytes_read, bytes_total (None with a pipe), packets, complete}; from any thread, at any time. Bytes as they are on disk.

        complete: all was read to the end; False before that, and when `stop` or `most_bytes` ended it."""
        cdef int64_t bytes_read = count_get(&self.bytes_read)
        total = self.total
        if total is not None and total < bytes_read:
            total = bytes_read        # a file that grows
        return {
            "bytes_read": bytes_read, "bytes_total": total, "packets": count_get(&self.packets),
            "complete": atomic_get(&self.finished) == 1,
        }

    @property
    def faults(self):
        """What was wrong with captures, in the order it was met: list of {path, code, message, offset, packet, count, fatal}.

        code: a name of FAULTS.  offset: in the decompressed file, or None (compression, trailing: in the file on disk).  packet: number of the packet
        it is about, or None.  count: how often.  fatal: nothing of this file could be used, which is an error for a command; else what precedes
        the fault, or all but some packets, was used."""
        cdef BlockNote note
        cdef uint64_t i
        found = []
        pthread_mutex_lock(&self.notes.lock)
        try:
            for i in range(self.notes.count):
                note = self.notes.list[i]
                found.append((note.file, note.kind, note.offset, note.packet, note.count, note.a, note.b, <bytes>note.first[:note.first_len], note.begun))
        finally:
            pthread_mutex_unlock(&self.notes.lock)
        return [self.fault(*each) for each in found]

    def fault(self, uint32_t file, kind, offset, packet, count, a, b, first, begun):
        cdef int32_t i
        code, always, message = FAULT_TEXT[kind]
        packets = count_get(&self.files[file].packets)
        if code == "empty":  # beside files with packets it is one that a recorder did not get to
            always = not any(count_get(&self.files[i].packets) > 0 for i in range(self.count))
        return {
            "path": self.names[file],
            "code": code,
            "message": message(a, b, first),
            "offset": offset if offset >= 0 else None,
            "packet": packet if packet > 0 else None,
            "count": count,
            "fatal": always if always is not None else not begun if code == "cut" else packets == 0,
        }


def blocks_total(list paths):
    """Bytes of all regular files among the paths; None with a pipe. A file that is not there counts nothing."""
    total = 0
    for path in paths:
        try:
            about = os.fstat(0) if path == b"-" else os.stat(path)
            if blocks_stat.S_ISFIFO(about.st_mode) or (path == b"-" and not blocks_stat.S_ISREG(about.st_mode)):
                return None
            if blocks_stat.S_ISREG(about.st_mode):
                total += max(0, about.st_size - (os.lseek(0, 0, os.SEEK_CUR) if path == b"-" else 0))
        except (OSError, ValueError):
            continue
    return total


def packets_for_tests(PacketSource source not None, most=None, int batch=256):
    """The packets of a source as (ts_ns, bytes, wirelen, link, source, iface, number); for tests only.

    most: ends after so many.  batch: how many are taken at once."""
    cdef Packet* out
    cdef int n, i
    found = []
    out = <Packet*>malloc(max(1, batch) * sizeof(Packet))
    if out == NULL:
        raise MemoryError
    try:
        while most is None or len(found) < most:
            with nogil:
                n = source.take(out, batch)
            PyErr_CheckSignals()
            if n == 0:
                break
            for i in range(n):
                found.append((out[i].ts_ns, <bytes>out[i].data[:out[i].caplen], out[i].wirelen, out[i].link, out[i].source, out[i].iface, out[i].number))
    finally:
        free(out)
    return found if most is None else found[:most]


def count_packets_for_tests(PacketSource source not None, int batch=256):
    """(packets, sum of captured lengths, idle takes) of a source, without a Python object each; for tests and benchmarks."""
    cdef Packet* out
    cdef int n, i
    cdef int64_t packets = 0
    cdef int64_t length = 0
    cdef int64_t idle = 0
    out = <Packet*>malloc(max(1, batch) * sizeof(Packet))
    if out == NULL:
        raise MemoryError
    with nogil:
        while True:
            n = source.take(out, batch)
            if n == 0:
                break
            if n < 0:
                idle += 1
                continue
            packets += n
            for i in range(n):
                length += out[i].caplen
    free(out)
    return packets, length, idle
