# The extension as Python sees it; checked against the build by stubtest.
from collections.abc import Iterable
from re import Pattern
from typing import Any

from typing_extensions import disjoint_base

FRAMING: tuple[str, ...]
INCOMPLETE: tuple[str | None, ...]
WITHHELD: tuple[str | None, ...]

# 16 bytes (IPv4 is v4-mapped) and a port.
_Address = tuple[bytes, int]

@disjoint_base
class Stop:
    fd: int
    def set(self) -> None: ...
    def is_set(self) -> bool: ...

@disjoint_base
class Guard:
    def __new__(cls, targets: Iterable[_Address] = ...) -> Guard: ...
    @property
    def tripped(self) -> bool: ...

@disjoint_base
class PacketSource: ...

@disjoint_base
class Pool:
    def __new__(cls, budget: int = ...) -> Pool: ...
    @property
    def held(self) -> int: ...
    @property
    def peak(self) -> int: ...

@disjoint_base
class Queue:
    fd: int
    def __new__(cls, pool: Pool, slots: int = ...) -> Queue: ...
    def end(self) -> None: ...
    def get(self, timeout: float = ...) -> Requests | None: ...
    @property
    def done(self) -> bool: ...

@disjoint_base
class Requests:
    def __init__(self, *args: object, **kwargs: object) -> None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> dict[str, Any]: ...
    def data(self, i: int) -> bytes: ...

FILTERED: tuple[str | None, ...]
FIXED_FIELDS: frozenset[bytes]
OTHER: tuple[str | None, ...]
SAMPLE_BY: tuple[str, ...]
TRACE: tuple[str, ...]

@disjoint_base
class Ingest:
    def __init__(
        self,
        source: PacketSource,
        queues: Iterable[Queue],
        pool: Pool,
        stop: Stop,
        *,
        show: bool = ...,
        incomplete: bool = ...,
        share: int = ...,
        sample_by: str = ...,
        seed: int = ...,
        methods: Iterable[str | bytes] | None = ...,
        path: Pattern[bytes] | bytes | None = ...,
        host: Pattern[bytes] | bytes | None = ...,
        client: Iterable[tuple[bytes, int]] = ...,
        server: Iterable[tuple[bytes, int]] = ...,
        ports: Iterable[int] = ...,
        since_ns: int | None = ...,
        until_ns: int | None = ...,
        limit: int = ...,
        suffix: bytes | None = ...,
        set_host: bytes | None = ...,
        set_headers: Iterable[tuple[bytes, bytes]] = ...,
        add_headers: Iterable[tuple[bytes, bytes]] = ...,
        remove_headers: Iterable[bytes] = ...,
        trace: str = ...,
        loose: bool = ...,
        split_by_network: bool = ...,
        max_head: int = ...,
        max_body: int = ...,
        max_connections: int = ...,
        max_memory: int = ...,
        max_gap_ns: int = ...,
        guard: Guard | None = ...,
        offset_ns: int = ...,
        loop: int = ...,
        last: bool = ...,
    ) -> None: ...
    def run(self) -> None: ...
    def counters(self) -> dict[str, Any]: ...

def shadow_host(host: bytes, suffix: bytes = ...) -> bytes: ...
def xxh64_for_tests(data: bytes, seed: int = ...) -> int: ...

@disjoint_base
class DecoderForTests:
    def __init__(self, split_by_network: bool = ...) -> None: ...
    def decode(self, data: bytes, link: int = ..., wirelen: int | None = ..., ts_ns: int = ...) -> dict[str, Any] | None: ...
    @property
    def cut_frames(self) -> int: ...
    def skipped(self) -> dict[str, int]: ...
    @property
    def fragment_bytes(self) -> int: ...

SINK_MISBEHAVIOURS: tuple[str, ...]

@disjoint_base
class Sink:
    port: int
    def __new__(
        cls,
        address: _Address,
        *,
        stop: Stop,
        status: int = ...,
        body: int = ...,
        delay_ns: int = ...,
        misbehave: str = ...,
        every: int = ...,
        log: bool = ...,
    ) -> Sink: ...
    def run(self) -> None: ...
    def counters(self) -> dict[str, Any]: ...
    def take(self, most: int = ...) -> list[dict[str, Any]]: ...
