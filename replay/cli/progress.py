"""Progress of a run on a terminal: position, rate, lag, statuses, drops. Nothing at all where standard error is no terminal."""

from __future__ import annotations

import sys
from typing import Any

from replay.units import show_bytes, show_count, show_duration, show_rate


class Progress:
    """One line that is drawn anew. Use as a context; `update` with snapshots of the engine."""

    def __init__(self, *, enabled: bool, span_ns: int | None = None, asked: float | None = None) -> None:
        self._live: Any = None
        self._span = span_ns
        self._asked = asked
        self._lag: float | None = None
        self._last = (0.0, 0)
        self._rate: float | None = None
        self._enabled = enabled and sys.stderr.isatty()

    def __enter__(self) -> Progress:
        if self._enabled:
            import rich.console
            import rich.live

            self._live = rich.live.Live(console=rich.console.Console(stderr=True), refresh_per_second=8, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)
            self._live = None

    @property
    def shown(self) -> bool:
        return self._live is not None

    def update(self, seen: dict[str, Any], lag_us: float | None) -> None:
        """Draws what the counters say now. lag_us: p99 of sent minus due, so far."""
        if self._live is None or seen["ingest"] is None:
            return
        self._lag = lag_us
        import rich.text

        self._live.update(rich.text.Text(self.line(seen), no_wrap=True, overflow="ellipsis"))

    def line(self, seen: dict[str, Any]) -> str:
        """The words of the line."""
        ingest, senders, read = seen["ingest"], seen["senders"], seen["read"]
        sent = sum(one["sent"] for one in senders)
        answered = sum(one["answered"] for one in senders)
        dropped = sum(sum(one["dropped"].values()) for one in senders)
        unanswered = sum(sum(one["unanswered"].values()) for one in senders)
        before, before_sent = self._last
        if seen["elapsed_s"] - before >= 0.5:
            self._rate = (sent - before_sent) / (seen["elapsed_s"] - before)
            self._last = (seen["elapsed_s"], sent)
        status: dict[int, int] = {}
        for one in senders:
            for code, n in one["status"].items():
                status[code] = status.get(code, 0) + n
        position = max((one["position_ns"] for one in senders), default=0)
        words = [show_duration(seen["elapsed_s"] * 1e9)]
        if self._span:
            words.append(f"at {show_duration(position)} of {show_duration(self._span)}")
        elif read["bytes_total"]:
            words.append(f"{100 * read['bytes_read'] / read['bytes_total']:.0f} % read")
        else:
            words.append(f"{show_bytes(read['bytes_read'])} read")
        words.append(f"found {show_count(ingest['found'])}")
        words.append(f"sent {show_count(sent)}")
        if self._rate is not None:
            words.append(show_rate(self._rate) + (f" of {show_rate(self._asked)}" if self._asked else ""))
        if self._lag is not None:
            words.append(f"lag {show_duration(self._lag * 1000)}")
        waiting = sum(one["waiting"] for one in senders)
        if waiting:
            words.append(f"late {show_count(waiting)}")
        words.append(f"answered {show_count(answered)}")
        if status:
            words.append("(" + " ".join(f"{code}:{show_count(n)}" for code, n in sorted(status.items(), key=lambda item: -item[1])[:4]) + ")")
        if unanswered:
            words.append(f"unanswered {show_count(unanswered)}")
        if dropped:
            words.append(f"dropped {show_count(dropped)}")
        return "  ".join(words)
