"""What is installed only on demand, and the words that say how: `pip install 'shadow-replay[NAME]'`."""

from __future__ import annotations

__all__ = ["how"]


def how(extra: str) -> str:
    """The command that installs an extra, from the registry or in a checkout."""
    return f"pip install 'shadow-replay[{extra}]' (in a checkout of the source: pip install '.[{extra}]')"
