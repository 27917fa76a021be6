"""What may not be installed, and the words that say how it is: extras, and the engine itself."""

from __future__ import annotations

import os

__all__ = ["how", "unbuilt"]


def how(extra: str) -> str:
    """The command that installs an extra, from the registry or in a checkout."""
    return f"pip install 'shadow-replay[{extra}]' (in a checkout of the source: pip install '.[{extra}]')"


def unbuilt() -> str:
    """Why the engine cannot be imported, where Python has taken a source tree for the package."""
    return (
        f"the engine of replay is not in {os.path.dirname(__file__)}: that is a source tree which is not built. Python takes what lies in the current folder "
        "before what is installed; run it in another folder (or as python -P), or build it there: python setup.py build_ext --inplace"
    )
