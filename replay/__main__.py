"""`python -m replay`: the command `replay`."""

from replay.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
