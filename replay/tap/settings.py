"""What is asked of a tap, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

from replay.settings import Selection, Settings, Target, Tls

__all__ = ["TapSettings"]

Network = tuple[bytes, int]


@dataclass(frozen=True, slots=True)
class TapSettings:
    """A whole tap.

    captures: interfaces as the person named them.  direction: in (servers of this node), out (servers elsewhere) or both.
    exclude_clients: None: the addresses of the targets, unless they are this host's.  max_age_ns: an older request is not sent.
    replies: what is captured of production's replies: heads, whole ones, or none; auto: heads while something needs them and for settle_ns
    after that, none otherwise. A recording has them whole.
    max_rate: requests a second, to each target.  max_cpu: a share of a core, 0 to n.  expires_at: seconds since 1970.
    """

    captures: tuple[str, ...]
    selection: Selection = field(default_factory=Selection)
    targets: tuple[Target, ...] = ()
    dry_run: bool = False
    allow_production: bool = False
    direction: str = "in"
    netns: str | None = None
    exclude_clients: tuple[Network, ...] | None = None
    ring_bytes: int = 64 << 20
    block_ms: int = 5
    workers: int = 1
    connections: int = 64
    pipeline: int = 1
    connect_timeout_ns: int = 10**9
    timeout_ns: int = 5 * 10**9
    drain_ns: int = 5 * 10**9
    max_age_ns: int = 10 * 10**9
    max_rate: float = 0.0
    max_cpu: float = 0.0
    duration_ns: int | None = None
    expires_at: float | None = None
    user: str = "nobody"
    replies: str = "auto"
    settle_ns: int = 60 * 10**9
    tls: Tls = Tls()
    access_log: str | None = None
    results: str | None = None
    record: str | None = None
    record_size: int = 256 << 20
    record_every_ns: int = 0
    record_files: int = 8

    def for_report(self) -> Settings:
        """As a report sees it."""
        return Settings(captures=self.captures, selection=self.selection, targets=self.targets, dry_run=self.dry_run)
