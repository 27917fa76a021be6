"""The filter that a place makes of what the kernel tells, where it is too much for one."""

import random

import packetmake as net

from replay.capture import bpfasm
from replay.capture.netlink import Interface
from replay.settings import Selection, network
from replay.tap.place import Place
from replay.tap.settings import TapSettings

CLIENT, STRANGER = (b"\xc0\0\2\1", 40000), (b"\xc0\0\2\7", 8080)


def crowded(direction):
    """A node with 1,500 pods of two families whose addresses are all over, and a veth between any two other interfaces."""
    chance = random.Random(5)
    pods = [b"\x0a" + chance.randbytes(3) for _ in range(1500)]
    six = [bytes.fromhex("fd000100" + "00" * 8) + chance.randbytes(4) for _ in range(1500)]
    settings = TapSettings(captures=("any",), direction=direction, selection=Selection(ports=(8080,)))
    place = Place(settings, None, None, moving=True, known=list(range(1, 3100)), inside=set(range(2, 3000, 2)))
    place.interfaces = [Interface(n, f"v{n}", True, False, "veth", 1500, 1, True) for n in place.known]
    place.checked = set(place.known)
    place.local = [network("127.0.0.0/8"), *((bytes(10) + b"\xff\xff" + one, 128) for one in pods), *((one, 128) for one in six)]
    return place, pods, six


def passes(program, server, **more):
    client = CLIENT if len(server[0]) == 4 else (bytes.fromhex("20010db8" + "00" * 12), 40000)
    return bool(bpfasm.run(program, net.ethernet(net.ip(client[0], server[0], 6, net.tcp(client, server, 1, 1, net.ACK, b"x"))), **more))


def test_more_passes_where_not_all_can_be_said(caplog):
    place, pods, six = crowded("in")
    program = place.program((), replies=512)
    assert len(program) <= 4096 and all(passes(program, (pod, 8080)) for pod in [*pods, *six])
    assert not passes(program, STRANGER) and not passes(program, (pods[0], 81)), "the rest is left out still"
    assert "too long with the 3001 networks" in caplog.text
    caplog.clear()
    place.program((), replies=512)
    assert not caplog.text, "it is said once"


def test_at_elsewhere_nothing_is_left_out(caplog):
    place, pods, _ = crowded("out")
    program = place.program((), replies=512)
    assert passes(program, STRANGER) and passes(program, (pods[0], 8080)), "which of them are local the engine knows"
    assert "too long" in caplog.text
