"""A shadow service inside this process, for tests and examples: it answers every request and counts it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from replay import _fastpath, units
from replay.settings import network

__all__ = ["sink"]


@contextlib.contextmanager
def sink(*, status: int = 200, body: int = 40, delay: float | str = 0, host: str = "127.0.0.1") -> Iterator[str]:
    """The URL of a service on a free port of this machine, which lives as long as the block.

    >>> import replay, urllib.request
    >>> with replay.sink(status=204) as url:
    ...     urllib.request.urlopen(url).status
    204
    """
    stop = _fastpath.Stop()
    served = _fastpath.Sink((network(host)[0], 0), stop=stop, status=status, body=body, delay_ns=units.duration(str(delay)))
    thread = threading.Thread(target=served.run, name="sink", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{served.port}"
    finally:
        stop.set()
        thread.join()
