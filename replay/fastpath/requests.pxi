# A batch as Python sees it: rows made into dicts on demand, or memory that numpy looks at. Must not know: where batches come from or go.
from cpython.buffer cimport PyBuffer_FillInfo

WITHHELD = (None, "connect", "upgrade", "ambiguous", "unconfirmed", "no_host", "bad_host", "loop", "truncated")
INCOMPLETE = (None, "gap", "cut_by_snaplen", "cut_at_end", "closed", "malformed", "head_too_large", "too_large",
              "body_refused", "evicted")
FRAMING = ("none", "length", "chunked")


cdef list request_fields():
    """(name, format of numpy, offset) of the columns of a batch."""
    cdef Request r
    cdef char* at = <char*>&r
    return [
        ("ts_ns", "<i8", <char*>&r.ts_ns - at), ("offset_ns", "<i8", <char*>&r.offset_ns - at), ("response_ns", "<i8", <char*>&r.response_ns - at),
        ("n", "<u8", <char*>&r.n - at), ("flow", "<u8", <char*>&r.flow - at), ("length", "<u8", <char*>&r.length - at), ("body_len", "<u8", <char*>&r.body_len - at),
        ("address", "<u8", <char*>&r.data - at), ("index", "<u4", <char*>&r.index - at), ("head_len", "<u4", <char*>&r.head_len - at), ("seq", "<u4", <char*>&r.seq - at),
        ("method_len", "<u4", <char*>&r.method_len - at), ("target_at", "<u4", <char*>&r.target_at - at), ("target_len", "<u4", <char*>&r.target_len - at),
        ("host_at", "<u4", <char*>&r.host_at - at), ("host_len", "<u4", <char*>&r.host_len - at), ("flags", "<u4", <char*>&r.flags - at),
        ("status", "<u2", <char*>&r.status - at), ("version", "u1", <char*>&r.version - at), ("framing", "u1", <char*>&r.framing - at),
        ("withheld", "u1", <char*>&r.withheld - at), ("incomplete", "u1", <char*>&r.incomplete - at), ("client_port", "<u2", <char*>&r.client_port - at),
        ("server_port", "<u2", <char*>&r.server_port - at), ("client", "V16", <char*>&r.client - at), ("server", "V16", <char*>&r.server - at),
    ]

REQUEST_FIELDS = request_fields()
REQUEST_SIZE = sizeof(Request)


cdef class RequestsView:
    """Memory of a batch, read only. It keeps the batch, so a view of it is good for as long as anybody has it."""
    cdef Requests owner
    cdef const void* p
    cdef Py_ssize_t n

    def __init__(self):
        raise TypeError("views come from Requests.rows() and Requests.arena()")

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void*>self.p, self.n, 1, flags)

    def __releasebuffer__(self, Py_buffer* buffer):
        pass


cdef object requests_view(Requests owner, const void* p, Py_ssize_t n):
    cdef RequestsView found = RequestsView.__new__(RequestsView)
    found.owner, found.p, found.n = owner, p, n
    return memoryview(found)


cdef class Requests:
    def __cinit__(self):
        self.batch = NULL

    def __init__(self):
        raise TypeError("Requests come from Queue.get()")

    def __dealloc__(self):
        if self.batch != NULL:
            batch_release(self.batch)

    def __len__(self):
        return self.batch.count

    def rows(self):
        """The rows as they lie in memory: REQUEST_SIZE bytes each, with the fields of REQUEST_FIELDS."""
        return requests_view(self, self.batch.rows, <Py_ssize_t>(self.batch.count * sizeof(Request)))

    def arena(self):
        """(address, bytes) that the rows' `address` points into."""
        return <size_t>self.batch.arena, requests_view(self, self.batch.arena, <Py_ssize_t>self.batch.used)

    cdef Request* row(self, Py_ssize_t i) except NULL:
        if i < 0 or i >= <Py_ssize_t>self.batch.count:
            raise IndexError(i)
        return &self.batch.rows[i]

    def data(self, Py_ssize_t i):
        """The bytes of request i: as they will be sent, or (show) its captured head."""
        cdef Request* r = self.row(i)
        return <bytes>r.data[:r.length]

    def __getitem__(self, Py_ssize_t i):
        """Request i as a dict of plain values; byte strings stay bytes, addresses are 16 bytes."""
        cdef Request* r = self.row(i)
        cdef const uint8_t* d = r.data
        return {
            "n": r.n, "ts_ns": r.ts_ns, "offset_ns": r.offset_ns + self.batch.shift_ns,
            "client": (<bytes>r.client[:16], r.client_port), "server": (<bytes>r.server[:16], r.server_port),
            "flow": r.flow, "index": r.index, "seq": r.seq,
            "method": <bytes>d[:r.method_len], "target": <bytes>d[r.target_at:r.target_at + r.target_len],
            "version": r.version,
            "host": <bytes>d[r.host_at:r.host_at + r.host_len] if r.flags & REQUEST_HAS_HOST else None,
            "authority": <bytes>d[r.authority_at:r.authority_at + r.authority_len]
            if r.flags & (REQUEST_HAS_HOST | REQUEST_AUTHORITY) else None,
            "head": <bytes>d[:r.head_len],
            "body_len": r.body_len, "body_sha256": (<bytes>r.digest[:32]).hex() if r.digest != NULL else None,
            "framing": FRAMING[r.framing], "withheld": WITHHELD[r.withheld], "incomplete": INCOMPLETE[r.incomplete],
            "status": r.status or None, "response_ns": r.response_ns if r.response_ns >= 0 else None,
            "flags": r.flags,
        }
