"""The metrics that only a live tap has: the kernel's ring, breakers, the effective share, reloads, its log.

They are read from `snapshot()["tap"]` (the engine's) and `["daemon"]` (the main loop's). Must not know: HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from replay.daemon.metrics import FAMILIES, Family, Samples, View

__all__ = ["BREAKER", "LIVE_FAMILIES"]

#: What a breaker can be.
BREAKER = ("closed", "open", "probing")


def _tap(*path: str, scale: float = 1.0) -> Callable[[View], Samples | None]:
    """A number of the tap, or None where it has none."""

    def read(view: View) -> Samples | None:
        found: Any = view.counts.get("tap")
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return None if found is None else [((), found * scale)]

    return read


def _each_target(key: str) -> Callable[[View], Samples | None]:
    """Numbers by name of each target."""

    def read(view: View) -> Samples | None:
        found = (view.counts.get("tap") or {}).get(key)
        if found is None:
            return None
        return [((target, str(name)), count) for target, one in zip(view.targets, found, strict=False) for name, count in one.items()]

    return read


def _breaker(view: View) -> Samples | None:
    found = (view.counts.get("tap") or {}).get("breakers")
    if found is None:
        return None
    return [((target, state), int(one == state)) for target, one in zip(view.targets, found, strict=False) for state in BREAKER]


def _interfaces(view: View) -> Samples | None:
    tap = view.counts.get("tap") or {}
    found = tap.get("interfaces")
    return None if found is None else [((name,), int(bool(one["up"]))) for name, one in found.items()] + [((name,), 0) for name in tap.get("away", ())]


def _daemon(key: str) -> Callable[[View], Samples | None]:
    def read(view: View) -> Samples | None:
        found = (view.counts.get("daemon") or {}).get(key)
        return None if found is None else [((), float(found))]

    return read


def _reloads(view: View) -> Samples | None:
    found = view.counts.get("daemon")
    return None if found is None else [((result,), found[f"reloads_{result}"]) for result in ("applied", "refused")]


def _log(view: View) -> Samples | None:
    found = (view.counts.get("daemon") or {}).get("log")
    return None if found is None else [((level,), count) for level, count in found.items()]


LIVE_FAMILIES: list[Family] = [
    *FAMILIES,
    Family("replay_kernel_packets", "counter", (), "Packets that the kernel's filter let through.", _tap("kernel_packets")),
    Family("replay_kernel_dropped_packets", "counter", (), "Packets that the kernel dropped because the ring was full.", _tap("kernel_drops")),
    Family("replay_ring_bytes", "gauge", (), "Size of the ring, all interfaces together.", _tap("ring_bytes")),
    Family("replay_ring_used_ratio", "gauge", (), "Largest share of the ring that was full in the last minute, 0 to 1.", _tap("ring_used")),
    Family("replay_queue_bytes", "gauge", (), "Bytes of requests that wait to be sent, all targets together.", _tap("queued_bytes")),
    Family("replay_interface_up", "gauge", ("interface",), "1 while it is captured from, 0 while it is down or, named, away.", _interfaces),
    Family("replay_share_ratio", "gauge", (), "The share that was asked for, 0 to 1; with --policy 1, for each mirror has its own.",
           _tap("share_ppm", scale=1e-6)),
    Family("replay_effective_share_ratio", "gauge", (),
           "The share that is taken, after lowering for --max-cpu or --max-rate, 0 to 1; with --policy of what its mirrors ask for.",
           _tap("effective_ppm", scale=1e-6)),
    Family("replay_kernel_share_ratio", "gauge", (),
           "The share of connections that the kernel's filter lets through, 0 to 1 (--sample-by connection:kernel); of the others nothing is counted.",
           _tap("kernel_ppm", scale=1e-6)),
    Family("replay_replies_captured", "gauge", (), "1 while production's replies are captured, 0 while nothing needs them (--replies auto).", _tap("replies")),
    Family("replay_shortened_packets", "counter", (), "Packets of replies of which the kernel handed over the beginning alone, as asked.", _tap("shortened")),
    Family("replay_expired", "gauge", (), "1 when --expires is over and nothing is mirrored any more.", _tap("expired")),
    Family("replay_breaker_state", "gauge", ("target", "state"), "1 for what the breaker is, else 0: closed, open or probing.", _breaker),
    Family("replay_breaker_changes", "counter", ("target", "state"), "Times that the breaker became so.", _each_target("breaker_changes")),
    Family("replay_recorded_packets", "counter", (), "Packets that --record wrote.", _tap("recorded", "packets")),
    Family("replay_recorded_bytes", "counter", (), "Bytes that --record wrote.", _tap("recorded", "bytes")),
    Family("replay_record_left_out_packets", "counter", (), "Packets that --record left out (a slow or full disk).", _tap("recorded", "left_out")),
    Family("replay_config_reloads", "counter", ("result",), "Reloads of the configuration, applied or refused.", _reloads),
    Family("replay_config_last_reload_successful", "gauge", (), "1 when the last reload was applied, 0 when it was refused.", _daemon("reload_good")),
    Family("replay_config_last_reload_success_timestamp_seconds", "gauge", (), "When a configuration was applied last, seconds since 1970.",
           _daemon("reload_time_s")),
    Family("replay_log_messages", "counter", ("level",), "Messages of the log, those left out by its rate limit too.", _log),
    Family("replay_log_left_out", "counter", (), "Messages that were not written: too many of a kind, or nobody reads them.", _daemon("log_left_out")),
]  # fmt: skip
