"""When to stop sending to a target, and when to try again: a decision from counters, without clocks or sockets of its own."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from typing import Any

__all__ = ["Breaker"]

_WINDOW_S = 2.0
_LEAST = 10  # outcomes below which a share means nothing
_SILENT = 3  # failures without one answer between them that say enough, when they last for a window: on a few connections there are no ten of them
_FIRST_S, _MOST_S = 0.5, 30.0
_PROBES = 3
_RETRY_AFTER_MOST_S = 300.0


class Breaker:
    """`look` at a target's counters some ten times a second; `passes` is what its senders let through: -1 everything, 0 nothing, n so many.

    closed: everything is sent.  open: nothing, until `until`.  probing: a few requests, by whose fate it closes or opens again, for twice as long.
    The waits are spread by chance, so that two hundred nodes do not come back at once.
    """

    def __init__(self, timeout_s: float, chance: random.Random | None = None) -> None:
        self.state = "closed"
        self.reason = ""
        self.changes = dict.fromkeys(("closed", "open", "probing"), 0)
        self.until = 0.0
        self._timeout_s = timeout_s
        self._chance = chance or random.Random()
        self._delay_s = _FIRST_S
        self._seen: deque[tuple[float, dict[str, int]]] = deque()
        self._failed, self._failing_at = (0, 0), -1.0  # (answered, failed) at the last answer; the first failure behind it
        self._probe: dict[str, int] = {}
        self._probed_at: float | None = None  # when a probe was on its way at the latest

    @property
    def passes(self) -> int:
        return {"closed": -1, "open": 0, "probing": _PROBES}[self.state]

    def look(self, now: float, counters: Mapping[str, Any]) -> bool:
        """now: seconds, monotonic.  counters: of a target's senders, added up.  True when the state changed."""
        seen = _seen(counters)
        self._seen.append((now, seen))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _WINDOW_S:
            self._seen.popleft()
        before = self.state
        if self.state == "closed":
            reason = self._bad(_since(self._seen[0][1], seen), seen) or self._silent(now, seen)
            if reason:
                self._open(now, reason, counters)
        elif self.state == "open":
            if now >= self.until:
                self.state, self._probe, self._probed_at = "probing", seen, None
        else:
            self._judge(now, seen, counters)
        if self.state == before:
            return False
        self.changes[self.state] += 1
        return True

    def renewed(self) -> None:
        """The target's senders are new ones: what they count begins at nothing, and they have to be told what passes."""
        self._seen.clear()
        self._probe, self._probed_at, self._failed, self._failing_at = {}, None, (0, 0), -1.0

    def _bad(self, recent: dict[str, int], seen: dict[str, int]) -> str:
        """Why nothing should be sent, or ""."""
        ended = recent["answered"] + recent["failed"]
        if recent["connect_failed"] and not seen["open"] and not recent["answered"]:
            return "no connection"
        if ended >= _LEAST and recent["failed"] * 2 >= ended:
            return f"{recent['failed']} of {ended} without an answer"
        if ended >= _LEAST and recent["refused"] * 2 >= ended:
            return f"{recent['refused']} of {ended} answered 429 or 503"
        if recent["expired"] >= _LEAST and recent["expired"] * 2 >= recent["taken"]:
            return f"{recent['expired']} of {recent['taken']} too old when it was their turn"
        return ""

    def _silent(self, now: float, seen: dict[str, int]) -> str:
        """Why nothing should be sent, when it has not answered once for a while; or ""."""
        answered, failed = self._failed
        if seen["answered"] != answered:
            self._failed, self._failing_at = (seen["answered"], seen["failed"]), -1.0
        elif seen["failed"] > failed:
            if self._failing_at < 0:
                self._failing_at = now
            if seen["failed"] - failed >= _SILENT and now - self._failing_at >= _WINDOW_S:
                return f"{seen['failed'] - failed} without an answer between them"
        return ""

    def _open(self, now: float, reason: str, counters: Mapping[str, Any]) -> None:
        self.state, self.reason = "open", reason
        wait = self._delay_s * self._chance.uniform(0.5, 1.5)
        asked = min(float(counters.get("retry_after_s", 0) or 0), _RETRY_AFTER_MOST_S)
        if asked and "429" in reason:
            wait = max(wait, asked * self._chance.uniform(1.0, 1.2))
        self.until = now + wait
        self._delay_s = min(self._delay_s * 2, _MOST_S)
        self._seen.clear()

    def _judge(self, now: float, seen: dict[str, int], counters: Mapping[str, Any]) -> None:
        fate = _since(self._probe, seen) if self._probe else seen
        if self._probed_at is None and fate["passed"] > 0:
            self._probed_at = now
        fine = fate["answered"] - fate["refused"]
        if fine > 0 and fate["failed"] == 0:
            self.state, self.reason, self._delay_s = "closed", "", _FIRST_S
            self._failed, self._failing_at = (seen["answered"], seen["failed"]), -1.0
            self._seen.clear()
        elif fate["failed"] or fate["refused"] or (fate["connect_failed"] and not seen["open"]):
            self._open(now, _fell(fate), counters)
        elif self._probed_at is not None and now - self._probed_at > self._timeout_s + 1:
            self._open(now, "probes without an answer", counters)


def _fell(fate: dict[str, int]) -> str:
    """Why probes did not help: what became of them, not what had opened it."""
    if fate["refused"]:
        return f"{fate['refused']} probes answered 429 or 503"
    return f"{fate['failed']} probes without an answer" if fate["failed"] else "no connection"


_BAD_STATUS = (429, 503)


def _seen(counters: Mapping[str, Any]) -> dict[str, int]:
    unanswered, dropped = counters["unanswered"], counters["dropped"]
    return {
        "taken": counters["taken"],
        "passed": counters["taken"] - dropped.get("breaker", 0) - dropped.get("max_rate", 0),
        "sent": counters["sent"],
        "answered": counters["answered"],
        "failed": sum(n for reason, n in unanswered.items() if reason != "stopped") + dropped.get("target_down", 0),
        "refused": sum(counters["status"].get(code, 0) for code in _BAD_STATUS),
        "expired": dropped.get("expired", 0),
        "connect_failed": counters["connect_failed"],
        "open": counters["connections_open"],
    }


def _since(before: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    return {key: now[key] - before[key] for key in now}
