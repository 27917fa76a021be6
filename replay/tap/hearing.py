"""When production's replies are captured: while something needs them. A decision from a counter, without clocks or sockets of its own."""

from __future__ import annotations

__all__ = ["Hearing"]

#: The wait grows where a need comes back soon, up to so many times what it was asked to be.
_LONGEST = 16


class Hearing:
    """`look` some ten times a second at the engine's count of requests of which a reply decides something; `wanted` says whether replies are.

    settle_s: after the last such request, and after the start, so long. A need that comes back within ten waits doubles the next, so that a client that asks
    now and then does not make the filter change for each time."""

    def __init__(self, settle_s: float) -> None:
        self.wanted = True
        self.settle_s = settle_s
        self.changes = 0
        self._times = 1
        self._since: float | None = None  # when a need was seen last, or when it ended to be heard; None: from the next look on
        self._asking = 0

    @property
    def _wait_s(self) -> float:
        return self._times * self.settle_s

    def look(self, now: float, asking: int) -> bool:
        """now: seconds, of any clock that goes on.  asking: such requests, so far. True when `wanted` has changed."""
        if self._since is None:
            self._since = now
        asks, self._asking = asking != self._asking, asking
        if self.wanted:
            if asks:
                self._since = now
            elif now - self._since >= self._wait_s:
                return self._change(now)
        elif asks:
            soon = now - self._since < 10 * self._wait_s
            self._times = min(2 * self._times, _LONGEST) if soon else 1
            return self._change(now)
        return False

    def rest(self) -> None:
        """Nothing is captured: a wait that is under way begins again when something is."""
        if self.wanted:
            self._since = None

    def _change(self, now: float) -> bool:
        self.wanted = not self.wanted
        self.changes += 1
        self._since = now
        return True
