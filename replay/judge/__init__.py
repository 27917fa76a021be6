"""Judging a run: endpoints, gates, hints. What the numbers are stands in `replay.report`."""

__all__: list[str] = []
