# A batch as Python sees it: rows made into tuples on demand. Must not know: where batches come from or go.

WITHHELD = (None, "connect", "upgrade", "ambiguous", "unconfirmed", "no_host", "bad_host", "loop")
INCOMPLETE = (None, "gap", "cut_by_snaplen", "cut_at_end", "closed", "malformed", "head_too_large", "too_large",
              "body_refused", "evicted")
FRAMING = ("none", "length", "chunked")


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
            "n": r.n, "ts_ns": r.ts_ns, "offset_ns": r.offset_ns,
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
