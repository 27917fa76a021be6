"""What held a run up, seen from looks at its counters."""

from __future__ import annotations

from typing import Any

from replay.settings import Settings

__all__ = ["Limits"]


class Limits:
    """What held the run up, from looks at its counters: `connections` (all busy, requests waiting), `capture` (the reader), or nothing."""

    def __init__(self, settings: Settings) -> None:
        self._most = settings.connections
        self._max = settings.pace.kind == "max"
        self._looks = self._full = self._late = 0

    def look(self, seen: dict[str, Any]) -> None:
        for sender in seen["senders"]:
            self._looks += 1
            self._late += sender["waiting"] > 0
            self._full += sender["waiting"] > 0 and sender["connections_open"] >= self._most

    def verdict(self, found: dict[str, Any]) -> str | None:
        if any(one["limits"].get("descriptors") for one in found["senders"]):
            return "descriptors"
        if any(one["limits"].get("local_ports") for one in found["senders"]):
            return "local_ports"
        if self._looks < 3:
            return None
        if self._full * 2 > self._looks:
            return "connections"
        if self._late * 2 > self._looks:
            return "target"
        return "capture" if self._max and self._late * 10 < self._looks else None
