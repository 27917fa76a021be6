"""The check of a target knows its own connection from another tap's, which may have the same maximum segment size."""

import contextlib
import subprocess
import sys
import types

import pytest
from tapmake import needs, needs_root

from replay.errors import GuardError
from replay.settings import Target
from replay.tap import probe

BESIDE = """
import contextlib, socket, subprocess, sys
from replay.capture import afpacket
from replay.tap import probe

subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
with open("/proc/sys/net/ipv4/tcp_timestamps", "w") as setting:
    setting.write(sys.argv[1])
to_production = [(0x20, 0, 0, 30), (0x15, 0, 1, 0x7F000009), (0x06, 0, 0, 65536), (0x06, 0, 0, 0)]
mapped = bytes(10) + b"\\xff\\xff"
snoop = afpacket.Snoop()
for last in 1, 9:
    with snoop.listening(to_production, 1), socket.socket() as other:
        other.setsockopt(socket.SOL_TCP, socket.TCP_MAXSEG, 777)
        with contextlib.suppress(ConnectionRefusedError):
            other.connect(("127.0.0.9", 80))
        print(probe._connect(snoop, (mapped + bytes((127, 0, 0, last)), 8080), 777, 1.0))
"""


def seen(last, port):
    return bytes(10) + b"\xff\xff\x7f\0\0" + bytes([last]), port


@needs_root
@needs("ip", "unshare")
@pytest.mark.parametrize(
    ("stamps", "shadow", "production"),
    [(1, (seen(9, 80), False), (seen(9, 8080), True)), (0, (seen(9, 80), True), (seen(9, 80), True))],
)
def test_another_taps_check_is_not_this_one(stamps, shadow, production):
    """Where nobody sends time stamps the size decides, and a shadow may be refused for another tap's check: never the other way round."""
    done = subprocess.run(["unshare", "-n", sys.executable, "-c", BESIDE, str(stamps)], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [str(shadow), str(production)]


FIRST = bytes(54) + b"\x02\x04\x03\x09"
STAMPED = FIRST + b"\x04\x02\x08\x0a\x00\x00\x10\x00\0\0\0\0"


@pytest.mark.parametrize(
    ("packet", "stamp", "ours"),
    [
        (STAMPED, 0x1000, True),
        (STAMPED, 0x1000 + 10_000, True),
        (STAMPED, 0x1000 + 10_001, False),
        (STAMPED, 0x0FFF, True),
        (STAMPED, 0x1000 - 10_001, False),
        (STAMPED, None, True),
        (STAMPED.replace(b"\x00\x00\x10\x00", b"\xff\xff\xff\xff"), 1, True),
        (STAMPED.replace(b"\x00\x00\x10\x00", b"\xf0\x00\x00\x00"), 0x1000 - 2**32, False),
        (FIRST + b"\x01\x01" + STAMPED[60:], 0xFFFFF, False),
        (FIRST + b"\x00" + STAMPED[60:], 0xFFFFF, True),
        (FIRST, 0xFFFFF, True),
        (STAMPED[:-5], 0xFFFFF, True),
        (FIRST + b"\x04\x00" + STAMPED[60:], 0xFFFFF, True),
        (FIRST + b"\x08\x0b" + STAMPED[62:], 0xFFFFF, True),
    ],
)
def test_what_a_first_packet_says(packet, stamp, ours):
    assert probe._stamped(packet[54:], stamp, 10_000) is ours


@pytest.mark.parametrize(("answers", "refused"), [([False, None], False), ([False, False, True], True), ([False] * 3, True), ([True], True), ([None], False)])
def test_the_right_size_time_and_again_is_no_other_taps(monkeypatch, answers, refused):
    """None: nothing showed up; True: with the right time stamp."""
    left = list(answers)

    def connect(*_):
        one = left.pop(0)
        return (None if one is None else seen(9, 80)), one is not False

    monkeypatch.setattr(probe, "_connect", connect)
    place = types.SimpleNamespace(settings=types.SimpleNamespace(direction="in"))
    with pytest.raises(GuardError, match="shows up at 127.0.0.9:80") if refused else contextlib.nullcontext():
        probe.check(None, place, Target("http://shadow", "shadow", 80), [seen(1, 80)], 1.0)
    assert not left
