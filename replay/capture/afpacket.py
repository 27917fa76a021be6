"""Opening a tap: the AF_PACKET socket, its ring, its filter, its place (an interface, several, a network namespace), and what it needs for that.

The packets come out of `_fastpath.LiveRing`; which packets the kernel lets through is decided in `bpfasm`. Source: packet(7), the kernel's
Documentation/networking/packet_mmap.rst.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fnmatch
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from replay.capture.bpfasm import Instruction
from replay.capture.netlink import Interface, Netlink
from replay.errors import ReplayError, UsageError
from replay.units import show_bytes

__all__ = ["BLOCK", "Snoop", "TapError", "Tapped", "check_ring", "choose", "in_namespace", "is_name", "open_socket"]

T = TypeVar("T")

#: Bytes of a ring that is never refused.
_SMALL_RING = 64 << 20
#: Bytes of a block of the ring: above the largest frame (65,549 bytes on a loopback interface, and super-packets), so that none is cut.
BLOCK = 256 << 10

_SOL_PACKET = 263
_RX_RING, _STATISTICS, _VERSION, _FANOUT, _IGNORE_OUTGOING = 5, 6, 10, 18, 23
_TPACKET_V3 = 2
_FANOUT_HASH, _FANOUT_DEFRAG, _FANOUT_UNIQUE = 0, 0x8000, 0x2000
_ALL = 0x0003  # ETH_P_ALL
_NOBODY = 0xFFFF  # reserved (RFC 1701): no frame has it as its EtherType
_SO_ATTACH_FILTER = 26
_CLONE_NEWNET = 0x40000000

#: What a person can do about a missing right, in their order.
GRANTS = (
    "as root it needs nothing more (it drops its rights when the sockets are open)",
    "for one binary: setcap cap_net_raw+ep on a copy of the python that runs it",
    "in a systemd unit: AmbientCapabilities=CAP_NET_RAW; in a pod: securityContext.capabilities.add: [NET_RAW]",
)


class TapError(ReplayError):
    """The tap cannot be opened: a missing right, interface or kernel feature."""

    exit_code = 4


@dataclass(slots=True)
class Tapped:
    """An open tap. number: of the interface that it is bound to, 0: all.  ethernet: packets begin with an Ethernet header.  program: the filter of now."""

    socket: socket.socket
    number: int
    ethernet: bool
    block_size: int
    block_count: int
    drops: int = 0
    program: Sequence[Instruction] = ()

    def attach(self, program: Sequence[Instruction]) -> None:
        """From now on the kernel lets these through; one program replaces the other without a packet in between. Raises OSError."""
        code = b"".join(struct.pack("=HBBI", *one) for one in program)
        buffer = ctypes.create_string_buffer(code, len(code))
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(buffer)))
        self.program = program

    def would_take(self, program: Sequence[Instruction]) -> None:
        """Whether `attach` would work: the memory of a socket for filters is small, and while they change holds both. Raises OSError."""
        with contextlib.closing(Tapped(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0, True, 0, 0)) as other:
            for one in (self.program, program):
                if one:
                    other.attach(one)

    def statistics(self) -> int:
        """Packets that the kernel dropped because the ring was full, since the tap was opened."""
        _, drops, _ = struct.unpack("=III", self.socket.getsockopt(_SOL_PACKET, _STATISTICS, 12))
        self.drops += drops
        return self.drops

    @property
    def unhooked(self) -> bool:
        """What it is bound to is gone, or left this namespace; the kernel forgets that for good, also when it comes back under the same number."""
        return self.number != 0 and not self.socket.getsockname()[0]

    def bind(self, number: int) -> None:
        """To another interface (the old one went away and came back with another number). Raises OSError."""
        _bind(self.socket, number)
        self.number = number

    def close(self) -> None:
        self.socket.close()


def _bind(tap: socket.socket, number: int, protocol: int = _ALL) -> None:
    """bind(2) by interface number: Python's own takes names only, and 0 (all) has none."""
    libc = ctypes.CDLL(None, use_errno=True)
    address = struct.pack("=HHiHBB8s", socket.AF_PACKET, socket.htons(protocol), number, 0, 0, 0, bytes(8))
    if libc.bind(tap.fileno(), address, len(address)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def open_socket(
    interface: Interface | None,
    program: Sequence[Instruction],
    *,
    ring_bytes: int,
    block_ms: int,
    block_size: int = BLOCK,
    fanout: Tapped | bool = False,
) -> Tapped:
    """A socket with a ring that hears one interface, or with None all of them, through a filter; nothing else was heard before the filter stood.

    ring_bytes: of the whole ring.  block_ms: a block that is not full is handed over after so long.  fanout: True: the first of several sockets that
    share connections out; of the others, that first one.  Raises TapError.
    """
    where = interface.name if interface is not None else "all interfaces"
    try:
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)  # protocol 0: hears nothing until it is bound
    except PermissionError:
        ways = "; ".join(f"({n}) {one}" for n, one in enumerate(GRANTS, 1))
        raise TapError(f"tap {where}: this needs the right CAP_NET_RAW. Three ways to grant it: {ways}") from None
    except OSError as error:
        raise TapError(f"tap {where}: no packet socket: {error.strerror} (is the kernel built without CONFIG_PACKET?)") from None
    tapped = Tapped(tap, interface.number if interface is not None else 0, interface is None or interface.ethernet, block_size, 0)
    try:
        tap.setsockopt(_SOL_PACKET, _VERSION, _TPACKET_V3)
        if interface is not None and interface.loopback:
            with contextlib.suppress(OSError):  # before Linux 4.20 the filter alone does it
                tap.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        tapped.attach(program)
        tapped.block_count = _ring(tap, ring_bytes, block_size, block_ms, where)
        _bind(tap, tapped.number)
        if fanout is not False:
            tap.setsockopt(_SOL_PACKET, _FANOUT, _group(None if fanout is True else fanout))
    except BaseException as error:
        tap.close()
        if isinstance(error, OSError):
            raise TapError(f"tap {where}: {error.strerror}") from None
        raise
    return tapped


def _group(first: Tapped | None) -> bytes:
    """What PACKET_FANOUT takes: a group that nobody has, or that of another socket. The kernel chooses: groups are those of a network namespace, where two
    taps may have the same number of a process (containers with hostNetwork)."""
    if first is None:
        return struct.pack("=HH", 0, _FANOUT_HASH | _FANOUT_DEFRAG | _FANOUT_UNIQUE)
    return first.socket.getsockopt(_SOL_PACKET, _FANOUT, 4)


def check_ring(ring_bytes: int, meminfo: str = "/proc/meminfo") -> None:
    """Raises TapError for a ring of more than half of the memory that is available: the kernel gives it, and kills processes for what is missing.

    ring_bytes: of all sockets together. Where Linux does not tell (or up to 64 MiB, which becomes smaller by itself) nothing is refused."""
    try:
        with open(meminfo, encoding="ascii") as file:
            available = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return
    if ring_bytes > max(available // 2, _SMALL_RING):
        raise TapError(
            f"--ring {show_bytes(ring_bytes)}: more than half of the {show_bytes(available)} of memory that is available; the kernel would kill others for it."
            " Lower --ring"
        )


def _ring(tap: socket.socket, ring_bytes: int, block_size: int, block_ms: int, where: str) -> int:
    """Sets the ring up, smaller where the kernel has not the memory for it. Returns the number of blocks."""
    count = max(ring_bytes // block_size, 2)
    while True:
        frames = count * (block_size // 2048)
        try:
            tap.setsockopt(_SOL_PACKET, _RX_RING, struct.pack("=7I", block_size, count, 2048, frames, block_ms, 0, 0))
            return count
        except OSError as error:
            if error.errno != errno.ENOMEM or count <= 8:
                raise TapError(f"tap {where}: no ring of {count} blocks of {block_size >> 10} KiB: {error.strerror}; lower --ring") from None
            count //= 2


# ---- where -------------------------------------------------------------------------------------------------------------------


def is_name(word: str) -> bool:
    """It names one interface, which may be away."""
    return word not in ("any", "default") and not any(c in word for c in "*?[")


def choose(words: Sequence[str], netlink: Netlink, *, away: bool = False) -> tuple[list[Interface], bool]:
    """The interfaces that words name: names, patterns (`veth*`), `default` (where the default routes go), `any`. And whether they may come and go.

    away: a name may stand for one that comes back. Raises TapError for a name that is not there otherwise."""
    every = netlink.interfaces()
    names = {one.name: one for one in every}
    found: dict[int, Interface] = {}
    moving = False
    for word in words:
        if word == "any":
            moving = True
            found |= {one.number: one for one in every}
        elif word == "default":
            moving = True
            ways = {one.number for one in netlink.routes() if one.network[1] in (0, 96)}
            ways -= {one.number for one in every if one.loopback}
            found |= {one.number: one for one in every if one.number in ways}
        elif not is_name(word):
            moving = True
            found |= {one.number: one for one in every if fnmatch.fnmatchcase(one.name, word)}
        elif word in names:
            found[names[word].number] = names[word]
        elif not away:
            near = ", ".join(sorted(names)) or "none"
            raise TapError(f"tap {word}: there is no such interface here; there are {near}, and any, default and patterns such as veth*")
    return list(found.values()), moving


def in_namespace(name: str | None, body: Callable[[], T]) -> T:
    """body() with this thread in a network namespace: a name of `ip netns`, a path, or the number of a process. Sockets stay where they were opened.

    Raises UsageError for a namespace that is not there, TapError without the right (CAP_SYS_ADMIN)."""
    if name is None:
        return body()
    path = f"/proc/{name}/ns/net" if name.isdigit() else name if "/" in name else f"/run/netns/{name}"
    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.ExitStack() as stack:
        try:
            home = stack.enter_context(open("/proc/thread-self/ns/net", "rb"))
            there = stack.enter_context(open(path, "rb"))
        except OSError as error:
            raise UsageError(f"--netns {name}: {path}: {error.strerror}; give a name of `ip netns list`, a path, or the number of a process") from None
        if libc.setns(there.fileno(), _CLONE_NEWNET) < 0:
            code = ctypes.get_errno()
            raise TapError(f"--netns {name}: {os.strerror(code)}" + ("; entering a namespace needs CAP_SYS_ADMIN" if code == errno.EPERM else ""))
        try:
            return body()
        finally:
            if libc.setns(home.fileno(), _CLONE_NEWNET) < 0:
                raise TapError("the way back out of the network namespace failed: " + os.strerror(ctypes.get_errno()))


# ---- a look at single packets ----------------------------------------------------------------------------------------------------


class Snoop:
    """The first packets that a filter lets through, for a moment, without a ring: what the check of the target looks at.

    Made while there is the right to, it rests until `listening`: a socket that hears all protocols costs whoever sends a copy of each packet's description,
    whatever its filter says of it, so that one that waits for an occasion is bound to a protocol that nobody speaks.

    blind: what it listened to was not there, or went down: that nothing showed up says nothing."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self.blind = False
        _bind(self._socket, 0, _NOBODY)

    @contextlib.contextmanager
    def listening(self, program: Sequence[Instruction], number: int) -> Iterator[None]:
        """Hears what the filter lets through from now on. number: of the interface, as it is now; 0: all."""
        self.blind = False
        Tapped(self._socket, 0, True, 0, 0).attach(program)
        self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # reading it clears it: the interface may have been down since the last time
        self._socket.setblocking(False)
        with contextlib.suppress(OSError):
            for _ in range(100_000):  # what nobody looked at then
                self._socket.recv(1)
        try:
            _bind(self._socket, number)
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.ENXIO, errno.ENETDOWN):
                raise
            self.blind = True
        try:
            yield
        finally:
            _bind(self._socket, 0, _NOBODY)

    def packets(self, seconds: float) -> Iterator[bytes]:
        """Those that came, and that come in so many seconds."""
        end = time.monotonic() + seconds
        while not self.blind and (left := end - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                yield self._socket.recv(65536)
            except TimeoutError:
                return
            except OSError:  # the interface is down
                self.blind = True

    def close(self) -> None:
        self._socket.close()
