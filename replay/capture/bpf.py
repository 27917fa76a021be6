"""tcpdump expressions (`--bpf`), compiled by the system's libpcap, which is loaded when one is given and not before."""

from __future__ import annotations

import ctypes
import threading

from replay._fastpath import PacketFilter
from replay.errors import UsageError

__all__ = ["compile_filter", "instructions"]

_NAMES = ("libpcap.so.1", "libpcap.so.0.8", "libpcap.so")
_SNAPLEN = 262_144
_ETHERNET = 1
_RAW = 101
_NO_NETMASK = 0xFFFFFFFF
# Where the number in a file (LINKTYPE_) is another one than libpcap's own (DLT_) on Linux.
_DLT = {_RAW: 12}


class _Program(ctypes.Structure):
    """struct bpf_program of <pcap/bpf.h>."""

    _fields_ = [("length", ctypes.c_uint), ("instructions", ctypes.c_void_p)]


class _Compiler:
    """Compiles one expression for each link type that it is asked for; the programs live as long as it does."""

    def __init__(self, expression: str) -> None:
        self._text = expression.encode("utf-8", "surrogateescape")
        self._lock = threading.Lock()
        self._programs: list[_Program] = []
        self.length = 0
        for name in _NAMES:
            try:
                self._pcap = ctypes.CDLL(name)
                break
            except OSError:
                continue
        else:
            raise UsageError("--bpf needs libpcap, which is not installed (Debian: libpcap0.8); install it, or use --port, --client and --server")
        self._pcap.pcap_open_dead.restype = ctypes.c_void_p
        self._pcap.pcap_geterr.restype = ctypes.c_char_p
        self._pcap.pcap_geterr.argtypes = [ctypes.c_void_p]
        self._pcap.pcap_close.argtypes = [ctypes.c_void_p]
        self._pcap.pcap_compile.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Program), ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32]
        self.run = ctypes.cast(self._pcap.bpf_filter, ctypes.c_void_p).value or 0

    def compile(self, link: int) -> tuple[int, str]:
        """(address of the instructions, "") or (0, what is wrong) for packets of this link type."""
        with self._lock:
            handle = self._pcap.pcap_open_dead(_DLT.get(link, link), _SNAPLEN)
            if not handle:
                return 0, "out of memory"
            program = _Program()
            try:
                if self._pcap.pcap_compile(handle, ctypes.byref(program), self._text, 1, _NO_NETMASK) != 0:
                    return 0, self._pcap.pcap_geterr(handle).decode("utf-8", "replace")
            finally:
                self._pcap.pcap_close(handle)
            self._programs.append(program)
            self.length = int(program.length)
            return program.instructions or 0, ""


def instructions(expression: str, link: int) -> bytes:
    """The program for packets of one link type as an array of struct sock_filter, for the kernel. Raises UsageError."""
    if "\0" in expression:
        raise UsageError("--bpf: the expression holds a NUL byte")
    compiler = _Compiler(expression)
    address, fault = compiler.compile(link)
    if not address:
        raise UsageError(f"--bpf {expression!r}: {fault}; see pcap-filter(7)")
    return ctypes.string_at(address, compiler.length * 8)


def compile_filter(expression: str) -> PacketFilter:
    """A filter for `_fastpath.Ingest`. Raises UsageError for an expression that libpcap does not read, or without libpcap.

    A packet of a link type for which the expression has no meaning does not pass."""
    if "\0" in expression:
        raise UsageError("--bpf: the expression holds a NUL byte")
    compiler = _Compiler(expression)
    faults = [compiler.compile(link) for link in (_ETHERNET, _RAW)]
    if not any(address for address, _ in faults):
        raise UsageError(f"--bpf {expression!r}: {faults[0][1]}; see pcap-filter(7)")
    return PacketFilter(compiler.run, lambda link: compiler.compile(link)[0])
