"""The variants of the quick scan of heads against each other, at the end of what may be read: AVX2, and NEON, which a cross compiler builds and an emulator runs, say what SSE2 says."""

import pathlib
import platform
import random
import shutil
import struct
import subprocess

import pytest
from test_head_scan import VARIANTS

SOURCE = pathlib.Path(__file__).with_name("headscan_main.c")
CROSS = "aarch64-linux-gnu-gcc"
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")

NAMES = [
    b"Host",
    b"host",
    b"Content-Length",
    b"Transfer-Encoding",
    b"Connection",
    b"Keep-Alive",
    b"Expect",
    b"Upgrade",
    b"Proxy-Connection",
    b"X-Shadow-Replay",
    b"Accept",
    b"Cookie",
    b"X-" + b"n" * 70,
    b"a b",
    b"",
    b"H\xefst",
    b"x_y",
]
USUAL = [b"Accept", b"Cookie", b"X-" + b"n" * 20, b"User-Agent", b"Accept-Language", b"a", b"Date"]
VALUES = [
    b"shop.example:8080",
    b"a",
    b"",
    b"17",
    b"chunked",
    b"close",
    b"keep-alive",
    b"c" * 200,
    b" padded ",
    b"tab\there",
    b"nul\0",
    b"\x7f\x80\xff",
    b"1, 1",
    b"[::1]:80",
    b"bare\rcr",
    b"bare\nlf",
]
FIRSTS = [
    b"GET / HTTP/1.1",
    b"POST /a?b=c HTTP/1.0",
    b"CONNECT /x HTTP/1.1",
    b"GET http://a/ HTTP/1.1",
    b"GET /a b HTTP/1.1",
    b"GET /\x7f HTTP/1.1",
    b"HTTP/1.1 200 OK",
    b"HTTP/1.0 404 Not Found",
    b"HTTP/1.1 99 x",
    b"G\xc5T / HTTP/1.1",
]


def heads():
    """Usual heads at every length of a line, mixtures of usual and odd lines, and beginnings of both."""
    chance = random.Random(20260101)
    for n in range(160):
        yield (
            b"POST /"
            + b"t" * n
            + b" HTTP/1.1\r\nHost: shop.example:8080\r\nUser-Agent: "
            + b"u" * (n * 3 % 140)
            + b"\r\nConnection: keep-alive\r\nContent-Length: 17\r\n\r\n"
        )
        yield b"HTTP/1.1 200 " + b"o" * n + b"\r\nServer: nginx\r\nContent-Length: 5\r\n\r\nhello"
        yield b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x" * n  # ends within a name: one of a whole vector, too
    for _ in range(40):  # … and anywhere else
        first = chance.choice([b"GET /" + b"t" * chance.randrange(80) + b" HTTP/1.1", b"HTTP/1.1 200 " + b"o" * chance.randrange(40)])
        lines = [b"x" * chance.randrange(1, 40) + b": " + b"v" * chance.randrange(70) for _ in range(chance.randrange(6))]
        lines += chance.sample([b"Host: a.example:80", b"Content-Length: 17", b"Connection: close", b"Transfer-Encoding: chunked", b"Expect: 100-continue"], 3)
        chance.shuffle(lines)
        whole = b"\r\n".join([first, *lines]) + b"\r\n\r\nbody"
        yield from (whole[:n] for n in range(len(whole) + 1))
    for _ in range(6000):
        first = chance.choice(FIRSTS) if chance.random() < 0.7 else b"GET /" + b"t" * chance.randrange(140) + b" HTTP/1.1"
        odd = chance.random() < 0.5
        lines = [
            chance.choice(NAMES if odd else USUAL) + b":" + b" " * chance.randrange(3) + chance.choice(VALUES if odd else VALUES[:1])
            for _ in range(chance.randrange(12))
        ]
        head = b"\r\n".join([first, *lines]) + b"\r\n\r\n" + bytes(chance.randrange(256) for _ in range(chance.randrange(80)))
        if chance.random() < 0.3:
            head = head[: chance.randrange(len(head))]
        if chance.random() < 0.3 and head:
            at = chance.randrange(len(head))
            head = head[:at] + bytes([chance.randrange(256)]) + head[at + 1 :]
        yield head


def built(compiler, target, *flags):
    subprocess.run([compiler, "-std=c11", "-D_GNU_SOURCE", "-O3", "-Wall", "-Wno-unused-function", *flags, "-o", target, SOURCE], check=True)
    return target


def said(program, variant, cases, *runner):
    """What a variant says of each case. None of them may touch the byte behind a case: the program would be killed for it."""
    given = b"".join(struct.pack("<I", len(case)) + case for case in cases)
    lines = subprocess.run([*runner, program, variant], input=given, capture_output=True, check=True).stdout.split(b"\n")
    assert len(lines) == len(cases) + 1
    return lines


def agree(cases, here, there):
    for case, one, other in zip(cases, here, there, strict=False):
        assert one == other, case
    assert sum(len(one) > 4 for one in here) > 1000, "most heads must be usual, or nothing was compared"
    assert sum(one == b"0" for one in here) > 500, "and some must not be"


def test_avx2_says_what_sse2_says(tmp_path):
    if "avx2" not in VARIANTS:
        pytest.skip("needs a processor with AVX2")
    cases = list(heads())
    program = built("cc", tmp_path / "here")
    agree(cases, said(program, "sse2", cases), said(program, "avx2", cases))


def test_neon_says_what_sse2_says(tmp_path):
    emulator = next((name for name in EMULATORS if shutil.which(name)), None)
    if platform.machine() != "x86_64":
        pytest.skip("needs x86_64, to compare NEON with SSE2")
    if not shutil.which(CROSS) or emulator is None:
        pytest.skip(f"needs {CROSS} and one of {', '.join(EMULATORS)} (packages gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user-static)")
    cases = list(heads())
    agree(cases, said(built("cc", tmp_path / "here"), "sse2", cases), said(built(CROSS, tmp_path / "there", "-static"), "neon", cases, emulator))
