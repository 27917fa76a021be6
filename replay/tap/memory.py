"""How much memory a tap may take when nobody says so: little, and less where a cgroup allows less."""

from __future__ import annotations

__all__ = ["default_memory", "limit"]

_USUAL = 64 << 20
_LEAST = 16 << 20
_OURS = 64 << 20  # what the program itself takes


def limit(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> int | None:
    """The memory limit of this process's cgroup (version 2 or 1), the tightest of its ancestors' too; None: there is none."""
    found: list[int] = []
    try:
        with open(own, encoding="utf-8") as file:
            lines = [line.strip().split(":", 2) for line in file]
    except OSError:
        return None
    for number, names, path in (line for line in lines if len(line) == 3):
        if number != "0" and "memory" not in names.split(","):
            continue
        base, name = (root, "memory.max") if number == "0" else (f"{root}/memory", "memory.limit_in_bytes")
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            try:
                with open("/".join([base, *parts[:depth], name]), encoding="ascii") as file:
                    text = file.read().strip()
            except OSError:
                continue
            if text.isdigit() and int(text) < 1 << 60:
                found.append(int(text))
    return min(found, default=None)


def default_memory() -> int:
    """Bytes for requests that are being read or wait to be sent."""
    most = limit()
    if most is None:
        return _USUAL
    return max(_LEAST, min(_USUAL, (most - _OURS) // 2))
