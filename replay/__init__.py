"""Capture and replay of HTTP traffic: what a service mesh calls mirroring, and replay of the past at any speed."""

__version__ = "0.1.0"
__all__ = ["__version__"]
