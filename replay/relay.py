"""Targets that the sender cannot speak to itself (`https://`, Unix sockets): a thread that passes bytes on between it and them.

The sender connects to a port of this machine, as to any target, and knows nothing of TLS. Each connection that comes there gets one to the target; bytes go
both ways, buffers are bounded, so a slow side slows the other. While the target cannot be reached nobody listens on the port, so the sender sees a target that
is down. Only connections of this user are passed on.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import random
import selectors
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from replay.errors import TargetError, UsageError
from replay.settings import Target, Tls

__all__ = ["Relay", "context"]

Address = tuple[bytes, int]

_BUFFER = 256 << 10
_PIECE = 64 << 10
_AGAIN_S = 0.2
_PROBE_S = 10.0
_HANDSHAKE_S = 5.0
_RETRY = (errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNRESET)


def _bound(port: int) -> socket.socket:
    """A socket that has this port of the loopback address, 0: any."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    return made


def context(tls: Tls) -> ssl.SSLContext:
    """How TLS is spoken: servers are verified unless told otherwise. Raises UsageError for a file that cannot be used."""
    try:
        made = ssl.create_default_context(cafile=tls.cacert)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"--cacert {tls.cacert}: {_why(error)}; it holds certificates in PEM") from None
    if tls.cert is not None:
        try:
            made.load_cert_chain(tls.cert, tls.key, password=_no_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise UsageError(f"--cert {tls.cert}" + (f", --key {tls.key}" if tls.key else "") + f": {_why(error)}") from None
    if tls.insecure:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    made.set_alpn_protocols(["http/1.1"])
    return made


def _no_password() -> str:
    raise ValueError("the key is encrypted; give it without a passphrase")


def _why(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return error.reason.replace("_", " ").lower() if error.reason else str(error)
    return (os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)) or type(error).__name__


@dataclass(eq=False, slots=True)
class _Side:
    """One end of a pair. out: what waits to be written to it.  over: nothing more comes from it."""

    sock: socket.socket
    out: bytearray
    over: bool = False
    shut: bool = False
    connecting: bool = False
    wants: int = 0
    mask: int = 0


@dataclass(eq=False, slots=True)
class _Pair:
    near: _Side
    far: _Side
    deadline: float


class Relay:
    """One target's relay. `start` tries the target first, `begin` does not wait for it; `address` is where the sender connects to; `stop` ends it.

    addresses: of the target, 16 bytes and a port; empty for a Unix socket; others may be put there at any time.  timeout_s: for a connection; a handshake has
    5 s more.  ports: (first, last) of local ports that connections to the target are made from; None: any.  made: the context of `tls`, where there is
    one already.
    """

    def __init__(
        self, target: Target, tls: Tls, addresses: list[Address], timeout_s: float, ports: tuple[int, int] | None = None, made: ssl.SSLContext | None = None
    ) -> None:
        self.target, self.timeout_s = target, timeout_s
        self.addresses = addresses
        self._failed: str | None = None
        self._ports = ports
        self._kept: socket.socket | None = None
        self._spoken: tuple[ssl.SSLContext, str] | None = None  # and the name that is asked for
        if target.scheme == "https":
            self.speak(tls, made or context(tls))
        self._session: ssl.SSLSession | None = None  # of the last connection that had an answer: the next handshake is a short one
        self._session_of: ssl.SSLContext | None = None
        self._turn = 0
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._wake, self._woken = socket.socketpair()
        self._stopped = False
        self._next_try = 0.0
        self._pairs: set[_Pair] = set()
        self._thread = threading.Thread(target=self._run, name=f"relay {target.url}", daemon=True)
        self.port = 0

    @property
    def address(self) -> Address:
        return bytes(10) + b"\xff\xff" + bytes((127, 0, 0, 1)), self.port

    def speak(self, tls: Tls, made: ssl.SSLContext) -> None:
        """Connections from now on are opened so; those that stand go on. At any time."""
        self._spoken = made, tls.sni or self.target.host
        self._failed = None

    # -- before --

    def start(self, going_on: Callable[[], bool] = lambda: True) -> None:
        """Connects once, for some 10 s if it must, then listens. Raises TargetError with the reason, a certificate that is not trusted among them."""
        end = time.monotonic() + _PROBE_S
        while True:
            try:
                self._probe()
                break
            except OSError as error:
                retry = error.errno in _RETRY or isinstance(error, TimeoutError)
                if isinstance(error, ssl.SSLError) or not retry or time.monotonic() > end or not going_on():
                    self.stop()
                    raise TargetError(f"{self.target.url}: {self._told(error)}") from None
                time.sleep(_AGAIN_S)
        self._listen()
        self._go()

    def begin(self) -> None:
        """Begins at once, target or no target; again: nothing. While it is down nobody listens on the port, which stays ours."""
        if self._thread.ident is not None:
            return
        self._kept = _bound(0)
        self.port = self._kept.getsockname()[1]
        self._go()

    def _go(self) -> None:
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._thread.start()

    def _told(self, error: OSError) -> str:
        why = _why(error)
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"{why}; give its authority with --cacert, another name with --sni, or --insecure where that does not matter"
        if isinstance(error, ssl.SSLError):
            return f"TLS: {why}; does it speak TLS on this port, and does it want a client certificate (--cert, --key)?"
        return f"no connection succeeded ({why}): check that the shadow service listens there"

    def _probe(self) -> None:
        """One whole connection, and its end."""
        sock = self._dial()
        try:
            sock.settimeout(self.timeout_s)
            sock.connect(self._where())
            sock.settimeout(self.timeout_s + _HANDSHAKE_S)
            if self._spoken is not None:
                made, name = self._spoken
                sock = made.wrap_socket(sock, server_hostname=name)
                if isinstance(sock, ssl.SSLSocket) and sock.version() == "TLSv1.3":  # a server that wants a certificate says so only now
                    sock.settimeout(0.05)
                    with contextlib.suppress(TimeoutError):
                        sock.recv(1)
        finally:
            sock.close()

    def _dial(self) -> socket.socket:
        self._turn += 1
        if self.target.scheme == "unix":
            return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        addresses = self.addresses
        packed = ipaddress.IPv6Address(addresses[self._turn % len(addresses)][0])
        sock = socket.socket(socket.AF_INET if packed.ipv4_mapped else socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_MARK", 36), 0x53484457)  # as the sender's own (connection.pxi)
        if self._ports is not None:
            for _ in range(16):
                with contextlib.suppress(OSError):
                    sock.bind(("", random.randint(*self._ports)))
                    break
        return sock

    def _where(self) -> str | tuple[str, int]:
        if self.target.scheme == "unix":
            return self.target.host
        addresses = self.addresses
        packed, port = addresses[self._turn % len(addresses)]
        address = ipaddress.IPv6Address(packed)
        return str(address.ipv4_mapped or address), port

    def _listen(self) -> None:
        made = _bound(self.port)
        self.port = made.getsockname()[1]
        made.listen(1024)
        made.setblocking(False)
        self._listener = made
        self._selector.register(made, selectors.EVENT_READ, None)

    # -- during --

    def stop(self) -> None:
        """Ends all connections and the thread."""
        self._stopped = True
        with contextlib.suppress(OSError):
            self._wake.send(b"x")
        if self._thread.ident is not None:
            self._thread.join()
        else:
            self._selector.close()
        for sock in (self._wake, self._woken):
            sock.close()

    @property
    def failed(self) -> str | None:
        """Why the last connection to the target failed; None when none did."""
        return self._failed

    def _run(self) -> None:
        while not self._stopped:
            timeout = 0.2 if self._pairs or self._listener is None else None
            for key, mask in self._selector.select(timeout):
                if key.fileobj is self._woken:
                    self._woken.recv(64)
                elif key.data is None:  # the listener, unless a pair before it in this turn ended it
                    if key.fileobj is self._listener:
                        self._accept()
                else:
                    pair, side = key.data
                    if pair in self._pairs:
                        self._turned(pair, side, mask)
            now = time.monotonic()
            for pair in [pair for pair in self._pairs if pair.far.connecting and now > pair.deadline]:
                self._fail(pair, TimeoutError(errno.ETIMEDOUT, "no connection in time"))
            if self._listener is None and not self._stopped and now >= self._next_try:
                self._again()
        for pair in list(self._pairs):
            self._drop(pair)
        if self._listener is not None:
            self._listener.close()
        if self._kept is not None:
            self._kept.close()
        self._selector.close()

    def _again(self) -> None:
        """The target was down: is it there again?"""
        try:
            self._probe()
            self._listen()
        except OSError as error:
            self._failed = self._told(error)
            self._next_try = time.monotonic() + (_AGAIN_S if self._kept is None else random.uniform(0.5, 1.5))  # many taps must not come at once

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(64):
            try:
                sock, (_, port) = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # no descriptor is free: the sender is told so by its own limit
                time.sleep(0.01)
                return
            if not _is_ours(port, self.port):
                sock.close()
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not self._connect(sock):
                return

    def _connect(self, near: socket.socket) -> bool:
        """Begins a connection for this one. False: the target is down, nobody listens any more."""
        try:
            far = self._dial()
        except OSError:
            near.close()
            return True
        far.setblocking(False)
        pair = _Pair(_Side(near, bytearray()), _Side(far, bytearray(), connecting=True), time.monotonic() + self.timeout_s + _HANDSHAKE_S)
        try:
            code = far.connect_ex(self._where())
        except OSError as error:
            code = error.errno or errno.EIO
        if code not in (0, errno.EINPROGRESS, errno.EAGAIN):
            self._pairs.add(pair)
            self._fail(pair, OSError(code, os.strerror(code)))
            return False
        if self._spoken is not None:
            made, name = self._spoken
            kept = self._session if self._session is not None and self._session_of is made else None
            pair.far.sock = made.wrap_socket(far, server_hostname=name, do_handshake_on_connect=False, suppress_ragged_eofs=True, session=kept)
        pair.far.wants = selectors.EVENT_WRITE
        self._pairs.add(pair)
        self._watch(pair)
        return True

    def _fail(self, pair: _Pair, error: OSError) -> None:
        """No connection to the target: until there is one again, nobody listens."""
        self._failed = self._told(error)
        self._drop(pair, abort=True)
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
        self._next_try = time.monotonic() + _AGAIN_S

    def _drop(self, pair: _Pair, abort: bool = False) -> None:
        self._pairs.discard(pair)
        if not abort and isinstance(pair.far.sock, ssl.SSLSocket) and pair.far.sock.session is not None:
            self._session, self._session_of = pair.far.sock.session, pair.far.sock.context
        for side in (pair.near, pair.far):
            if side.mask:
                self._selector.unregister(side.sock)
                side.mask = 0
            if abort and side is pair.near:
                with contextlib.suppress(OSError):
                    side.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            with contextlib.suppress(OSError):
                side.sock.close()

    def _watch(self, pair: _Pair) -> None:
        """What is waited for: room to write where something waits, bytes where there is room for them."""
        for side, other in ((pair.near, pair.far), (pair.far, pair.near)):
            mask = side.wants
            if not side.connecting:
                if side.out:
                    mask |= selectors.EVENT_WRITE
                if not side.over and len(other.out) < _BUFFER:
                    mask |= selectors.EVENT_READ
            if mask == side.mask:
                continue
            if not side.mask:
                self._selector.register(side.sock, mask, (pair, side))
            elif not mask:
                self._selector.unregister(side.sock)
            else:
                self._selector.modify(side.sock, mask, (pair, side))
            side.mask = mask

    def _turned(self, pair: _Pair, side: _Side, mask: int) -> None:
        try:
            if side.connecting:
                self._shake(pair)
                if side.connecting:
                    self._watch(pair)
                    return
            other = pair.near if side is pair.far else pair.far
            if mask & selectors.EVENT_READ or side.wants:
                self._read(side, other)
            if side.out:
                self._write(side)
            if other.out and not other.connecting:
                self._write(other)
        except OSError as error:
            if pair.far.connecting:
                self._fail(pair, error)
            else:
                self._drop(pair, abort=True)
            return
        for one, other in ((pair.near, pair.far), (pair.far, pair.near)):
            if one.over and not other.out and not other.shut:
                other.shut = True
                if one is pair.far or not isinstance(other.sock, ssl.SSLSocket):
                    with contextlib.suppress(OSError):
                        other.sock.shutdown(socket.SHUT_WR)
        if (pair.near.over and not pair.far.out) or (pair.far.over and not pair.near.out):
            self._drop(pair)  # a client that went away wants no reply; a target that did gives none
            return
        self._watch(pair)

    def _shake(self, pair: _Pair) -> None:
        side = pair.far
        code = side.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        if isinstance(side.sock, ssl.SSLSocket):
            try:
                side.sock.do_handshake()
            except ssl.SSLWantReadError:
                side.wants = selectors.EVENT_READ
                return
            except ssl.SSLWantWriteError:
                side.wants = selectors.EVENT_WRITE
                return
        side.connecting, side.wants = False, 0

    def _read(self, side: _Side, other: _Side) -> None:
        """What can be read now, as far as there is room for it."""
        while not side.over and len(other.out) < _BUFFER:
            try:
                data = side.sock.recv(_PIECE)
            except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
                return
            except ssl.SSLWantWriteError:
                side.wants = selectors.EVENT_WRITE
                return
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                data = b""
            if not data:
                side.over = True
            other.out += data
            if len(data) < _PIECE and not (isinstance(side.sock, ssl.SSLSocket) and side.sock.pending()):
                return  # the rest will be told of; one more look costs a call and an exception

    def _write(self, side: _Side) -> None:
        side.wants = 0
        while side.out:
            try:
                with memoryview(side.out) as view:
                    sent = side.sock.send(view[:_PIECE])
            except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError):
                return
            except ssl.SSLWantReadError:
                side.wants = selectors.EVENT_READ
                return
            del side.out[:sent]


def _is_ours(port: int, to: int) -> bool:
    """The connection from this port of 127.0.0.1 to ours belongs to our user: the kernel is asked for that one, or, where it cannot be, its table is read."""
    uid = _owner(port, to)
    if uid is not None:
        return uid == os.geteuid()
    near, far = f"0100007F:{port:04X}", f"0100007F:{to:04X}"
    try:
        with open("/proc/net/tcp", encoding="ascii") as file:
            for line in file:
                words = line.split()
                if words[1] == near and words[2] == far:
                    return int(words[7]) == os.geteuid()
    except (OSError, ValueError, IndexError):
        return True
    return False


def _owner(port: int, to: int) -> int | None:
    """The user of the connection from 127.0.0.1:port to 127.0.0.1:to by sock_diag(7), for a table of all takes milliseconds to read. None: not told."""
    local = bytes((127, 0, 0, 1)) + bytes(12)
    asked = struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFFF_FFFF)
    asked += struct.pack(">HH", port, to) + local + local + struct.pack("=III", 0, 0xFFFF_FFFF, 0xFFFF_FFFF)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 4) as link:  # NETLINK_SOCK_DIAG
            link.settimeout(1)
            link.send(struct.pack("=IHHII", 16 + len(asked), 20, 1, 1, 0) + asked)  # SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST
            data = link.recv(4096)
    except OSError:
        return None
    if len(data) < 16 + 68 or struct.unpack_from("=H", data, 4)[0] != 20 or data[20:24] != struct.pack(">HH", port, to):
        return None
    return int(struct.unpack_from("=I", data, 16 + 64)[0])
