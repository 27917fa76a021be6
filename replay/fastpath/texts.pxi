# Tests on a text: what a policy asks of hosts, paths, headers, cookies, parameters, and of the names of headers.
# What must live here: one test on one text. It must not know where the text stands. Patterns run with the GIL.
from cpython.ref cimport PyObject

cdef enum TestKind:
    TEST_EXACT = 0
    TEST_PREFIX = 1
    TEST_SUFFIX = 2
    TEST_CONTAINS = 3
    TEST_REGEX = 4
    TEST_SEGMENTS = 5             # the path itself, or what lies below it
    TEST_PRESENT = 6
    TEST_ABSENT = 7
    TEST_ANY = 8                  # hosts only
    TEST_RANGE = 9                # a whole number, from low on and below high

TESTS = ("exact", "prefix", "suffix", "contains", "regex", "segments", "present", "absent", "any", "range")

cdef struct Test:
    int kind                      # TestKind
    bint folded                   # ASCII case does not matter; value is lower case
    bint inverted                 # a missing value is then taken as empty
    bint missing_empty            # a missing value is taken as empty all the same
    Text value
    int64_t low
    int64_t high
    PyObject* pattern             # borrows from the owner of the test


cdef inline bint folded_same(const uint8_t* p, const uint8_t* lower, size_t n) noexcept nogil:
    cdef size_t i
    cdef uint8_t c
    for i in range(n):
        c = p[i]
        if 65 <= c <= 90:
            c |= 32
        if c != lower[i]:
            return False
    return True


cdef inline bint test_same(const Test* t, const uint8_t* p) noexcept nogil:
    return folded_same(p, t.value.p, t.value.n) if t.folded else memcmp(p, t.value.p, t.value.n) == 0


cdef bint pattern_matches(void* pattern, const uint8_t* p, size_t n, bint lower) noexcept nogil:
    """The whole text matches; with the GIL. lower: the text in lower case."""
    with gil:
        try:
            text = <bytes>p[:n]
            return (<object>pattern).fullmatch(text.lower() if lower else text) is not None
        except Exception:
            return False          # out of memory, or a pattern that gave up


cdef bint whole_number(const uint8_t* p, size_t n, int64_t* value) noexcept nogil:
    """A whole number in base 10 with an optional sign and blanks around it, as Envoy reads one. False: it is none, or too large."""
    cdef size_t i = 0
    cdef bint minus = False
    cdef uint64_t found = 0
    while i < n and (p[i] == 32 or 9 <= p[i] <= 13):
        i += 1
    while n > i and (p[n - 1] == 32 or 9 <= p[n - 1] <= 13):
        n -= 1
    if i < n and (p[i] == 43 or p[i] == 45):
        minus = p[i] == 45
        i += 1
    if i == n:
        return False
    while i < n:
        if not 48 <= p[i] <= 57:
            return False
        found = found * 10 + (p[i] - 48)
        if found > <uint64_t>1 << 63:
            return False
        i += 1
    if not minus and found == <uint64_t>1 << 63:
        return False
    value[0] = <int64_t>(0 - found) if minus else <int64_t>found
    return True


cdef bint test_finds(const Test* t, const uint8_t* p, size_t n) noexcept nogil:
    """The test of a text that is there, before it is inverted."""
    cdef size_t i
    cdef int64_t number = 0
    if t.kind == TEST_REGEX:
        return pattern_matches(<void*>t.pattern, p, n, False)
    if t.kind == TEST_RANGE:
        return whole_number(p, n, &number) and t.low <= number < t.high
    if t.kind == TEST_PRESENT:
        return True
    if n < t.value.n or t.kind == TEST_ABSENT:
        return False
    if t.kind == TEST_EXACT:
        return n == t.value.n and test_same(t, p)
    if t.kind == TEST_PREFIX:
        return test_same(t, p)
    if t.kind == TEST_SUFFIX:
        return test_same(t, p + n - t.value.n)
    if t.kind == TEST_SEGMENTS:
        return (n == t.value.n or p[t.value.n] == 47) and test_same(t, p)
    for i in range(n - t.value.n + 1):
        if test_same(t, p + i):
            return True
    return False


cdef bint test_holds(const Test* t, const uint8_t* p, size_t n, bint there) noexcept nogil:
    if t.kind == TEST_PRESENT:
        return there
    if t.kind == TEST_ABSENT:
        return not there
    if not there:
        if not t.inverted and not t.missing_empty:
            return False
        n = 0
    return test_finds(t, p, n) != t.inverted


cdef bint test_names(const Test* t, const uint8_t* p, size_t n) noexcept nogil:
    """The test of a header's name; names are in lower case for it, and the test is made for that."""
    return (pattern_matches(<void*>t.pattern, p, n, True) if t.kind == TEST_REGEX else test_finds(t, p, n)) != t.inverted


cdef bint tests_any(const Test* tests, int count, const uint8_t* p, size_t n) noexcept nogil:
    cdef int i
    for i in range(count):
        if test_holds(&tests[i], p, n, True):
            return True
    return False
