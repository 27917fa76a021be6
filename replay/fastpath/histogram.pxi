# Counts of values by size, in the layout of HdrHistogram (lowest 1, highest one hour, 3 significant digits).
# What they mean and how they are printed is in histogram.py. Unit: microseconds.

cdef enum:
    HISTOGRAM_HALF = 1024         # values below 2 * HALF have a slot each; above, HALF slots each power of two: 3 digits
    HISTOGRAM_BUCKETS = 22        # 2048 << 21 is the first power of two beyond an hour of microseconds
    HISTOGRAM_SLOTS = (HISTOGRAM_BUCKETS + 1) * HISTOGRAM_HALF

cdef int64_t HISTOGRAM_HIGHEST = 3600000000

cdef extern from * nogil:
    int histogram_clz "__builtin_clzll"(unsigned long long v)
    int histogram_ctz "__builtin_ctzll"(unsigned long long v)


cdef struct Histogram:
    int64_t counts[HISTOGRAM_SLOTS]


cdef inline void histogram_record(Histogram* h, int64_t value_ns, int64_t times) noexcept nogil:
    """Counts a duration; below zero is zero, beyond an hour is an hour. One writing thread."""
    cdef int64_t us = value_ns // 1000 if value_ns > 0 else 0
    cdef int bucket
    if us > HISTOGRAM_HIGHEST:
        us = HISTOGRAM_HIGHEST
    bucket = 53 - histogram_clz(<unsigned long long>us | 2047)
    count_add(&h.counts[((bucket + 1) << 10) + <int>(us >> bucket) - HISTOGRAM_HALF], times)


cdef bytes histogram_bytes(Histogram* h):
    """The counts as native int64, for `replay.histogram.Histogram`."""
    return (<const char*>h.counts)[:sizeof(Histogram)]


def histogram_for_tests(list values_ns):
    """Counts of these durations (ns), as bytes."""
    cdef Histogram* h = <Histogram*>calloc(1, sizeof(Histogram))
    if h == NULL:
        raise MemoryError
    try:
        for value in values_ns:
            histogram_record(h, value, 1)
        return histogram_bytes(h)
    finally:
        free(h)
