"""Line ends of a head: the SIMD scanner against its plain twin, at every length and at the end of the bytes that may be read."""

import random

from hypothesis import example, given
from hypothesis import strategies as st

from replay._fastpath import head_index_for_tests

PIECES = st.sampled_from([b"\r\n", b"\n", b"\r", b"\0", b"a", b": ", b"x" * 15, b"y" * 63, b"z" * 200, b"\r\n\r\n"])


@given(st.lists(PIECES, max_size=40).map(b"".join))
@example(b"GET / HTTP/1.1\r\n\r\n")
@example(b"a" * 63 + b"\r\n\r\n")
@example(b"a" * 62 + b"\r\n\r\n" + b"\0")
@example(b"\n" * 300)
def test_both_find_the_same(data):
    assert head_index_for_tests(data) == head_index_for_tests(data, True)


def test_each_place_of_the_end():
    for n in range(200):
        for end in (b"\r\n\r\n", b"\n\n", b"\r\n\n", b"\n\r\n"):
            data = b"x" * n + b"y" + end
            length, lines, odd = head_index_for_tests(data + b"more\r\n\0")
            assert length == len(data) and lines == [i for i, b in enumerate(data) if b == 10] and odd == (end != b"\r\n\r\n")
            assert head_index_for_tests(data[:-1]) is None


def test_what_is_odd():
    for odd in (b"a\rb", b"a\nb", b"a\0b", b"\r\r\n", b"a\r"):
        assert head_index_for_tests(b"GET / HTTP/1.1\r\nA: " + odd + b"\r\n\r\n")[2], odd


def test_more_lines_than_are_noted():
    data = b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 1000 + b"\r\n"
    length, lines, odd = head_index_for_tests(data)
    assert length == len(data) and len(lines) == 260 and not odd
    rng = random.Random(1)
    noise = bytes(rng.choice(b"\r\nab") for _ in range(5000))
    assert head_index_for_tests(noise) == head_index_for_tests(noise, True)
