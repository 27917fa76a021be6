# The requests of a batch, counted by what `replay inspect` tells apart: few groups instead of many rows. Must not know: cards, words, other batches.

cdef enum:
    TALLY_ENDS = 16               # sizes told apart
    TALLY_KEY = 1024              # bytes that tell groups apart; hosts are cut to what is left

def tally(Requests batch not None, ends, int64_t step_ns):
    """(groups, steps, others) of the rows of a batch.

    groups: (method, endpoint, host or None, status or None, index of the first of `ends` above the length of the body, requests, bytes of heads and bodies) of those
    that are whole.  steps: {ts_ns // step_ns: requests}, of the same.  others: indexes of rows that are not whole."""
    cdef int64_t most[TALLY_ENDS]
    cdef uint8_t key[TALLY_KEY]
    cdef uint32_t count = batch.batch.count
    cdef uint32_t i, at, groups = 0
    cdef uint32_t size_count = <uint32_t>len(ends)
    cdef size_t n, host_len
    cdef uint32_t size
    cdef int64_t step, now
    cdef int64_t of_step = 0
    cdef Request* r
    cdef int64_t* requests        # of each group; then their bytes, then their first rows
    cdef int64_t* sums
    cdef uint32_t* first
    if not 0 < size_count <= TALLY_ENDS or step_ns <= 0:
        raise ValueError("ends: 1 to 16 numbers; step_ns: above 0")
    for i in range(size_count):
        most[i] = ends[i]
    found, steps, others = {}, {}, []
    requests = <int64_t*>malloc((<size_t>count + 1) * (2 * sizeof(int64_t) + sizeof(uint32_t)))
    if requests == NULL:
        raise MemoryError
    try:
        sums = requests + count
        first = <uint32_t*>(sums + count)
        step = -1
        for i in range(count):
            r = &batch.batch.rows[i]
            if r.incomplete:
                others.append(i)
                continue
            size = 0
            while size + 1 < size_count and <int64_t>r.body_len >= most[size]:
                size += 1
            key[0] = <uint8_t>size
            key[1] = 1 if r.flags & REQUEST_HAS_HOST else 0
            memcpy(key + 2, &r.status, 2)
            key[4] = <uint8_t>(r.method_len if r.method_len < 255 else 255)
            n = 5 + fold_name(r.data, r.method_len, r.data + r.target_at, r.target_len, key + 5, JUDGE_NAME)
            key[n] = 0            # no name holds it
            n += 1
            host_len = r.host_len if r.host_len < TALLY_KEY - n else TALLY_KEY - n
            if key[1]:
                memcpy(key + n, r.data + r.host_at, host_len)
                n += host_len
            text = <bytes>key[:n]
            held = found.get(text)
            if held is None:
                at = groups
                found[text] = at
                groups += 1
                first[at], requests[at], sums[at] = i, 0, 0
            else:
                at = held
            requests[at] += 1
            sums[at] += <int64_t>(r.head_len + r.body_len)
            now = r.ts_ns // step_ns
            if now != step:
                if of_step:
                    steps[step] = steps.get(step, 0) + of_step
                step, of_step = now, 0
            of_step += 1
        if of_step:
            steps[step] = steps.get(step, 0) + of_step
        rows = []
        for at in range(groups):
            r = &batch.batch.rows[first[at]]
            n = fold_name(r.data, r.method_len, r.data + r.target_at, r.target_len, key, JUDGE_NAME)
            size = 0
            while size + 1 < size_count and <int64_t>r.body_len >= most[size]:
                size += 1
            rows.append((
                <bytes>r.data[:r.method_len], <bytes>key[:n], <bytes>r.data[r.host_at:r.host_at + r.host_len] if r.flags & REQUEST_HAS_HOST else None,
                r.status or None, size, requests[at], sums[at],
            ))
        return rows, steps, others
    finally:
        free(requests)
