"""A live tap: requests that reach this node, mirrored to a shadow while production runs. `Tap` is the whole of it; `TapSettings` what is asked for."""

from replay.tap.daemon import Tap
from replay.tap.settings import TapSettings

__all__ = ["Tap", "TapSettings"]
