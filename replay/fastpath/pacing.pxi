# When a request is due: arithmetic only, on whatever clock `start_ns` is. Must not know: sockets, batches, sleeping.

cdef enum:
    PACE_ORIGINAL = 0             # due = start + offset / speed
    PACE_RATE = 1                 # due = start + n / rate, n counting what was selected
    PACE_ASAP = 2                 # due when taken up
    PACE_LIVE = 3                 # due when it was captured: taken up at once, late by what capture and queue took

cdef int64_t PACE_NEVER = 0x7FFFFFFFFFFFFFFF


cdef struct Pacer:
    int kind
    double speed
    double rate
    int64_t start_ns              # when the first request of the run was taken up
    bint started


cdef struct SharedStart:          # of all senders of a run
    int64_t first_ns              # atomic: when one of them took up its first request, CLOCK_MONOTONIC; 0 not yet
    int64_t base_ns               # atomic: CLOCK_REALTIME - CLOCK_MONOTONIC, by which they tell times; 0 not yet


cdef inline int64_t pacing_add(int64_t start_ns, double delta_ns) noexcept nogil:
    """start + delta, saturated: a broken clock in a capture makes a request wait for ever or go at once, never wrap."""
    if delta_ns >= 9.0e18 - <double>start_ns:
        return PACE_NEVER
    if delta_ns <= -<double>start_ns:
        return 0
    return start_ns + <int64_t>delta_ns


cdef int64_t pacing_due(const Pacer* pacer, int64_t offset_ns, int64_t n) noexcept nogil:
    """When it is due. offset_ns: since the first request found.  n: how many of the run were selected before it, whatever target they are for.

    Each due time is computed from the start, never from the one before it: nothing adds up to a drift."""
    if pacer.kind == PACE_RATE:
        return pacing_add(pacer.start_ns, <double>n * 1e9 / pacer.rate)
    if pacer.kind == PACE_ASAP:
        return pacer.start_ns
    if pacer.speed == 1.0:        # exact where a double is not: beyond 2^53 ns, 104 days
        if offset_ns > PACE_NEVER - pacer.start_ns:
            return PACE_NEVER
        return pacer.start_ns + offset_ns if offset_ns > -pacer.start_ns else 0
    return pacing_add(pacer.start_ns, <double>offset_ns / pacer.speed)


def pacing_for_tests(list offsets_ns, int64_t start_ns, double speed=1.0, double rate=0.0):
    """Due times of requests with these offsets."""
    cdef Pacer pacer
    pacer.kind = PACE_RATE if rate > 0 else PACE_ORIGINAL
    pacer.speed = speed
    pacer.rate = rate
    pacer.start_ns = start_ns
    return [pacing_due(&pacer, offset, n) for n, offset in enumerate(offsets_ns)]
