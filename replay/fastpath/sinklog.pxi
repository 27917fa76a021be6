# The sink's log: a row of each request until somebody takes it. Nothing of it is lost: when too many wait, the sink does.


cdef void sink_digest_add(void** sha, const uint8_t* p, size_t n) noexcept with gil:
    if sha[0] == NULL:
        one = _hashlib.sha256()
        Py_INCREF(one)
        sha[0] = <void*>one
    (<object>sha[0]).update(<bytes>p[:n])


cdef void sink_digest_end(void** sha, uint8_t* digest) noexcept with gil:
    """Takes the digest (NULL: nobody wants it) and lets the object go."""
    cdef bytes got
    if digest != NULL:
        got = (<object>sha[0]).digest()
        memcpy(digest, <const uint8_t*>got, 32)
    Py_DECREF(<object>sha[0])
    sha[0] = NULL


cdef void* sink_memory(SinkServer* s, size_t size) noexcept nogil:
    """malloc() for the log, which loses nothing: waits for memory until stopped."""
    cdef void* got = malloc(size)
    while got == NULL and not atomic_get(s.stop_flag):
        poll(NULL, 0, 10)
        got = malloc(size)
    return got


cdef void sink_note_begin(SinkServer* s, SinkConnection* c, const uint8_t* p, const Head* h) noexcept nogil:
    cdef SinkNote* note = <SinkNote*>sink_memory(s, sizeof(SinkNote) + h.length)
    if note == NULL:
        return
    memset(note, 0, sizeof(SinkNote))
    note.head = h[0]
    note.size = h.length
    note.connection = c.number
    memcpy(<uint8_t*>(note + 1), p, h.length)
    c.note = note


cdef void sink_note_body(SinkServer* s, SinkConnection* c, const uint8_t* p, size_t n) noexcept nogil:
    """Bytes of the decoded body, before they are counted."""
    cdef SinkNote* note
    if c.note == NULL or n == 0:
        return
    if c.state == SINK_READS_LENGTH and c.body_len == 0 and c.left == n and n <= SINK_LOG_BODY:
        note = <SinkNote*>sink_memory(s, sizeof(SinkNote) + c.note.size + n)
        if note == NULL:
            return
        memcpy(note, c.note, sizeof(SinkNote) + c.note.size)
        free(c.note)
        c.note = note
        memcpy(<uint8_t*>(note + 1) + note.size, p, n)
        note.size += n
        note.kept = <uint32_t>n
        return
    sink_digest_add(&c.sha, p, n)


cdef void sink_note_end(SinkServer* s, SinkConnection* c, int status) noexcept nogil:
    """The request has ended: its row goes to the log, which may mean to wait until somebody reads it."""
    cdef SinkNote* note = c.note
    cdef timespec wall
    if note == NULL:
        return
    c.note = NULL
    clock_gettime(CLOCK_REALTIME, &wall)
    note.ts_ns = <int64_t>wall.tv_sec * 1000000000 + wall.tv_nsec
    note.index = c.index
    note.body_len = c.body_len
    note.status = <uint16_t>status
    if c.sha != NULL:
        sink_digest_end(&c.sha, note.digest)
    elif not note.kept:
        memcpy(note.digest, DIGEST_EMPTY_BYTES, 32)
    while atomic_get(&s.log_rows) >= SINK_LOG_ROWS or atomic_get(&s.log_bytes) >= SINK_LOG_BYTES:
        if atomic_get(s.stop_flag):
            break                         # little more can come, and nobody has to read it before the thread may end
        poll(NULL, 0, 1)
    pthread_mutex_lock(&s.lock)
    if s.log_first == NULL:
        s.log_first = note
    else:
        s.log_last.next = note
    s.log_last = note
    pthread_mutex_unlock(&s.lock)
    atomic_add(&s.log_rows, 1)
    atomic_add(&s.log_bytes, <int64_t>note.size)


cdef dict sink_note_dict(const SinkNote* note):
    cdef const uint8_t* p = <const uint8_t*>(note + 1)
    cdef const Head* h = &note.head
    cdef bytes head = p[:h.length]
    headers = []
    for line in head[h.line_len:].removesuffix(b"\r\n\r\n").split(b"\r\n") if h.lines else ():
        if line[:1] in b" \t" and headers:          # obsolete folding: part of the value, as received
            name, value = headers.pop()
            headers.append((name, value + b"\r\n" + line))
            continue
        name, _, value = line.partition(b":")
        headers.append((name, value.strip(b" \t")))
    return {
        "method": head[:h.method_len], "target": head[h.target_at:h.target_at + h.target_len], "version": "1.0" if h.version == 10 else "1.1",
        "host": head[h.host_at:h.host_at + h.host_len] if h.hosts else None, "headers": headers, "body_len": note.body_len,
        "body_sha256": _hashlib.sha256(p[h.length:h.length + note.kept]).hexdigest() if note.kept else (<bytes>note.digest[:32]).hex(),
        "status": note.status or None, "ts_ns": note.ts_ns, "connection": note.connection, "index": note.index,
    }
