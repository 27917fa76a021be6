"""Capture and replay of HTTP traffic: what a service mesh calls mirroring, and replay of the past at any speed.

    import replay

    for request in replay.read("traffic.pcap", methods="GET"):
        print(request.method, request.target, request.status)

    report = replay.run("traffic.pcap", to="http://shadow:8080", percent=5, fail_if="status_change > 0.5%")
    print(report.summary(), report.passed)

Names are loaded when they are used. Errors are in `replay.errors`; all of them are `replay.errors.ReplayError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replay.api import Capture, Report, read, run
    from replay.batch import Batch, Request
    from replay.embedded import sink

__version__ = "0.1.0"
__all__ = ["Batch", "Capture", "Report", "Request", "__version__", "read", "run", "sink"]

_HOMES = {"Capture": "api", "Report": "api", "read": "api", "run": "api", "Batch": "batch", "Request": "batch", "sink": "embedded"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        try:
            return getattr(importlib.import_module(f"replay.{_HOMES[name]}"), name)
        except ImportError as error:
            if "_fastpath" not in str(error):
                raise
            from replay.extras import unbuilt

            raise ImportError(unbuilt()) from error
    raise AttributeError(f"module 'replay' has no attribute {name!r}")
