# The extension as Python sees it; checked against the build by stubtest.
from collections.abc import Callable, Iterable
from re import Pattern
from typing import Any

from typing_extensions import disjoint_base

FRAMING: tuple[str, ...]
INCOMPLETE: tuple[str | None, ...]
REQUEST_FIELDS: list[tuple[str, str, int]]
REQUEST_SIZE: int
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
    def rows(self) -> memoryview: ...
    def arena(self) -> tuple[int, memoryview]: ...

@disjoint_base
class RequestsView:
    def __init__(self, *args: object, **kwargs: object) -> None: ...

DECODE_LAYERS: tuple[str, ...]
DECODE_LINKS: dict[int, str]
FILTERED: tuple[str | None, ...]
FIXED_FIELDS: frozenset[bytes]
OTHER: tuple[str | None, ...]
SAMPLE_BY: tuple[str, ...]
TRACE: tuple[str, ...]

CHANGES: tuple[str, ...]
TESTS: tuple[str, ...]

@disjoint_base
class Routes:
    def __init__(
        self, blocks: Iterable[dict[str, Any]], routes: Iterable[Iterable[int]], mirrors: Iterable[dict[str, Any]], queues: int, *, seed: int = ...
    ) -> None: ...
    def counters(self) -> dict[str, Any]: ...

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
        record: bool = ...,
        digests: bool = ...,
        share: int = ...,
        sample_by: str = ...,
        seed: int = ...,
        shard: tuple[int, int] | None = ...,
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
        append_headers: Iterable[tuple[bytes, bytes]] = ...,
        add_headers: Iterable[tuple[bytes, bytes]] = ...,
        remove_headers: Iterable[bytes] = ...,
        trace: str = ...,
        credentials: tuple[bytes | None, Iterable[tuple[bytes, bytes]]] | None = ...,
        loose: bool = ...,
        split_by_network: bool = ...,
        max_head: int = ...,
        max_body: int = ...,
        max_connections: int = ...,
        max_memory: int = ...,
        max_gap_ns: int = ...,
        guard: Guard | None = ...,
        packet_filter: PacketFilter | None = ...,
        offset_ns: int = ...,
        loop: int = ...,
        last: bool = ...,
        threads: int = ...,
        routes: Routes | None = ...,
    ) -> None: ...
    def run(self) -> None: ...
    def run_scout(self) -> None: ...
    def counters(self) -> dict[str, Any]: ...

def fold_endpoint(method: bytes, target: bytes, room: int = ...) -> bytes: ...
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

@disjoint_base
class PacketFilter:
    def __new__(cls, run: int, compile: Callable[[int], int]) -> PacketFilter: ...

@disjoint_base
class Outcomes:
    def __new__(cls, slots: int = ..., head: int = ..., wait: bool = ...) -> Outcomes: ...
    def get(self, most: int = ...) -> list[dict[str, Any]]: ...

@disjoint_base
class Lines:
    def __new__(cls, blocks: int = ...) -> Lines: ...
    def name(self, names: list[str]) -> None: ...
    def take(self) -> bytes | None: ...
    @property
    def lines(self) -> int: ...
    @property
    def lost(self) -> int: ...

@disjoint_base
class Judge:
    forward_lost: int
    def __new__(cls, sources: Iterable[Outcomes], *, forward: Iterable[Outcomes] = ..., lines: Lines | None = ..., names: Iterable[str] = ...) -> Judge: ...
    def run(self) -> None: ...
    def end(self) -> None: ...
    def counters(self) -> dict[str, int]: ...
    def response(self) -> bytes: ...
    def endpoints(self) -> list[dict[str, Any]]: ...
    def timeline(self) -> tuple[int | None, int, list[dict[str, Any]]]: ...

@disjoint_base
class Sender:
    def __new__(
        cls,
        queue: Queue,
        addresses: Iterable[_Address],
        *,
        stop: Stop,
        speed: float = ...,
        rate: float = ...,
        asap: bool = ...,
        connections: int = ...,
        pipeline: int = ...,
        connect_timeout_ns: int = ...,
        timeout_ns: int = ...,
        drain_ns: int = ...,
        never_ns: int = ...,
        dry_run: bool = ...,
        guard: Guard | None = ...,
        outcomes: Outcomes | None = ...,
        driver: str = ...,
        start_at_ns: int = ...,
    ) -> Sender: ...
    def run(self) -> None: ...
    def finish(self) -> None: ...
    def sweep(self) -> int: ...
    def counters(self) -> dict[str, Any]: ...
    def histograms(self) -> dict[str, bytes]: ...

@disjoint_base
class Capture(PacketSource):
    def __new__(cls, paths: Iterable[str | bytes], *, stop: Stop, most_bytes: int = ...) -> Capture: ...
    def progress(self) -> dict[str, Any]: ...
    def fault(self, file: int, kind: int, offset: int, packet: int, count: int, a: int, b: int, first: bytes, begun: bool) -> dict[str, Any]: ...
    @property
    def faults(self) -> list[dict[str, Any]]: ...

FAULTS: tuple[str, ...]
FAULT_TEXT: tuple[tuple[str, bool | None, Callable[[int, int, bytes], str]], ...]
SENDER_OUTCOMES: tuple[str | None, ...]
SENDER_REASONS: tuple[str | None, ...]

def blocks_total(paths: list[bytes]) -> int | None: ...
def blocks_zstd() -> Any: ...
def walk_found(first: bytes) -> str: ...

# Doors of the tests.
def count_packets_for_tests(source: PacketSource, batch: int = ...) -> tuple[int, int, int]: ...
def packets_for_tests(source: PacketSource, most: int | None = ..., batch: int = ...) -> list[tuple[Any, ...]]: ...
def guard_trip_for_tests(guard: Guard) -> None: ...
def histogram_for_tests(values_ns: Iterable[int]) -> bytes: ...
def pacing_for_tests(offsets_ns: list[int], start_ns: int, speed: float = ..., rate: float = ...) -> list[int]: ...
def push_for_tests(queue: Queue, rows: Iterable[tuple[Any, ...]], *, stop: Stop | None = ..., rows_per_batch: int = ..., times: int = ...) -> int: ...

@disjoint_base
class ReplyForTests:
    bad: bool
    def feed(self, data: bytes | bytearray | memoryview, head: bool = ...) -> Any: ...
    def end(self) -> Any: ...
    @property
    def begun(self) -> bool: ...

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

def head_parse_for_tests(data: bytes, reply: bool = False, variant: str | None = None) -> dict[str, Any] | None: ...
def head_index_for_tests(data: bytes, plain: bool = ...) -> tuple[int, list[int], bool] | None: ...
