# Doors for tests into a queue and a guard.


def push_for_tests(Queue queue not None, rows, *, Stop stop=None, int rows_per_batch=512, int64_t times=1, nth=None):
    """Makes batches of these requests and pushes them. Does not mark the end. Waits while the ring is full or the budget is spent.

    rows: tuples (bytes, offset_ns, flow, flags, status, response_ns, server 16 bytes, server port); all but the bytes may be left out.
    times: only rows of one batch may come more than once; the same batch is pushed again, without the GIL.
    nth: the ordinal of each among the selected of the run; else they count from 0.  Returns how many were pushed."""
    cdef Batch* batch = NULL
    cdef int64_t left
    cdef Request* row
    cdef bytes data
    cdef int64_t never = 0
    cdef const int64_t* flag = &never if stop is None else &stop.flag
    cdef uint64_t size
    cdef uint64_t n = 0
    rows = list(rows)
    if times > 1 and (len(rows) > min(rows_per_batch, BATCH_ROWS) or sum(len(one[0]) for one in rows) > BATCH_BYTES):
        raise ValueError("times: rows of one batch")
    at = 0
    while at < len(rows):
        some = []
        size = 0
        while at < len(rows) and len(some) < min(rows_per_batch, BATCH_ROWS) and (not some or size + len(rows[at][0]) <= BATCH_BYTES):
            some.append(rows[at])
            size += len(rows[at][0])
            at += 1
        with nogil:
            batch = batch_take(&queue.pool.pool, size, flag)
        if batch == NULL:
            return n
        for one in some:
            one = tuple(one) + (0, 0, 0, 0, -1, bytes(16), 0)[len(one) - 1:]
            data, offset, flow, flags, status, response, server, port = one
            row = &batch.rows[batch.count]
            memset(row, 0, sizeof(Request))
            memcpy(batch.arena + batch.used, <const uint8_t*>data, len(data))
            row.data = batch.arena + batch.used
            row.length = <uint64_t>len(data)
            row.n = n
            row.nth = n if nth is None else nth[n]
            row.offset_ns = offset
            row.ts_ns = offset
            row.flow = flow
            row.flags = flags
            row.status = status
            row.response_ns = response
            row.version = 10 if flags & REQUEST_HTTP10 else 11
            memcpy(row.server, <const uint8_t*>(<bytes>server), 16)
            row.server_port = port
            head = data.find(b"\r\n\r\n")
            row.head_len = <uint32_t>(head + 4 if head >= 0 else len(data))
            words = data.split(b" ", 2)
            if len(words) == 3:
                row.method_len = <uint32_t>len(words[0])
                row.target_at = <uint32_t>(len(words[0]) + 1)
                row.target_len = <uint32_t>len(words[1])
            batch.used += row.length
            batch.count += 1
            n += 1
        if times > 1:
            batch_keep(batch, 1)             # ours, until the last time
        with nogil:
            while not queue.push(batch):
                if atomic_get(flag):
                    batch_release(batch)
                    batch = NULL
                    break
                poll(NULL, 0, 1)
        if batch == NULL:
            return n - <uint64_t>len(some)
    if times > 1:
        left = times - 1
        with nogil:
            while left > 0 and not atomic_get(flag):
                batch_keep(batch, 1)
                if queue.push(batch):
                    left -= 1
                else:
                    batch_release(batch)
                    poll(NULL, 0, 1)
            batch_release(batch)
        n *= <uint64_t>(times - left)
    return n


def guard_trip_for_tests(Guard guard not None):
    """What ingest does when a captured server is a target."""
    atomic_set(&guard.hit, 1)
