"""How late each request was, by somebody else's clock: the kernel's time stamps of the packets, as tcpdump records them.

A request is known by the number in its target, and request n is due n / rate after request 0. When the first was due nobody but the sender knows; so the earliest one (the least time stamp minus n / rate) counts as
on time and all others are late against it. That makes lateness rather too large than too small. Requests that went out in one segment have that segment's time stamp.
"""

import contextlib
import mmap
import re
import signal
import struct
import subprocess
import time

import measure
import numpy

NUMBER = re.compile(rb"/customers/(\d{8})/")
NANOSECONDS = 0xA1B23C4D


@contextlib.contextmanager
def recorded(path, port, interface="lo", inside=(), core=measure.SERVER):
    """Records the packets to a port while it is entered. inside: a command that tcpdump runs in, such as a network namespace. Raises SystemExit where the kernel dropped some."""
    filter_ = f"tcp dst port {port} and greater 150"
    command = [*inside, "tcpdump", "-i", interface, "-n", "-p", "-j", "host", "--time-stamp-precision=nano", "-B", "131072", "-s", "0", "-w", str(path), filter_]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **measure.on(core))
    said = ""
    while "listening on" not in said:
        line = process.stderr.readline()
        if not line:
            raise SystemExit(f"tcpdump does not start: {said}")
        said += line
    try:
        yield
    finally:
        time.sleep(1.3)  # its ring hands over what it has after a second at the latest
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    dropped = re.search(r"(\d+) packets? dropped by kernel", said)
    if not dropped or int(dropped[1]):
        raise SystemExit(f"tcpdump lost packets, so lateness is not known: {said.strip()}")


def stamps(path):
    """(numbers, time stamps in ns) of the requests in a recording, in the order in which they went out; a segment that came twice counts once."""
    numbers, at_ns, starts = [], [], []
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if struct.unpack_from("<I", data)[0] != NANOSECONDS:
        raise SystemExit("tcpdump did not write nanoseconds")
    at, header = 24, struct.Struct("<III").unpack_from
    times = []
    while at + 16 <= len(data):
        seconds, rest, length = header(data, at)
        starts.append(at)
        times.append(seconds * 1_000_000_000 + rest)
        at += 16 + length
    for found in NUMBER.finditer(data):
        numbers.append(int(found[1]))
        at_ns.append(found.start())
    which = numpy.searchsorted(numpy.asarray(starts), numpy.asarray(at_ns), side="right") - 1
    numbers, at_ns = numpy.asarray(numbers), numpy.asarray(times, dtype="i8")[which]
    _, first = numpy.unique(numbers, return_index=True)
    first.sort()
    return numbers[first], at_ns[first]


def lateness(numbers, at_ns, rate):
    """Microseconds late of each request, by the order of their numbers."""
    order = numpy.argsort(numbers, kind="stable")
    late = at_ns[order] - (numbers[order] * (1e9 / rate)).astype("i8")
    return (late - late.min()) / 1e3


def told(late):
    """The figures of a round: percentiles, the last hundredth of a second, and how much later the end was than the beginning."""
    tenth = max(len(late) // 10, 1)
    return {
        "p50": float(numpy.percentile(late, 50)),
        "p90": float(numpy.percentile(late, 90)),
        "p99": float(numpy.percentile(late, 99)),
        "p99.9": float(numpy.percentile(late, 99.9)),
        "max": float(late.max()),
        "last": float(late[-1]),
        "drift": float(numpy.median(late[-tenth:]) - numpy.median(late[:tenth])),
    }


def caught_up(numbers, at_ns, rate, below_us=1_000.0, calm_ms=10.0):
    """(length of the longest pause in ms, ms from its end until requests were less than `below_us` late again, for `calm_ms` at least: what disturbs the machine later is not of this pause); all that was left, where they never were."""
    order = numpy.argsort(at_ns, kind="stable")
    numbers, at_ns = numbers[order], at_ns[order]
    late = at_ns - (numbers * (1e9 / rate)).astype("i8")
    late = (late - late.min()) / 1e3
    gaps = numpy.diff(at_ns)
    after = int(gaps.argmax()) + 1
    behind = numpy.flatnonzero(late[after:] >= below_us)
    if len(behind) == 0:
        return gaps.max() / 1e6, 0.0
    calm = numpy.flatnonzero(numpy.diff(at_ns[after + behind]) >= calm_ms * 1e6)
    end = after + int(behind[calm[0]] if len(calm) else behind[-1]) + 1
    return gaps.max() / 1e6, (at_ns[min(end, len(at_ns) - 1)] - at_ns[after]) / 1e6
