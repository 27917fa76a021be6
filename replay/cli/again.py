"""The options of a daemon read anew: the same command line, `--config` and the files that options name as they are now."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click

from replay.cli import options
from replay.errors import UsageError

__all__ = ["Words"]

#: Options whose values are files that a reload reads.
_NAMED = ("policy", "auth_file", "cacert", "cert", "key")


class Words:
    """A command line that can be parsed again. given: the parameters as the command got them.

    restart: the options of which a change needs a restart, all but those in `may_change`.
    """

    def __init__(self, ctx: click.Context, words: Iterable[str], may_change: Iterable[str]) -> None:
        self._command, self._words = ctx.command, list(words)
        self._may_change = frozenset(may_change)
        self._names = {param.name: param for param in ctx.command.params if param.name is not None}
        unknown = self._may_change - self._names.keys()
        if unknown:
            raise ValueError(f"no options of {ctx.command.name}: {sorted(unknown)}")
        self.given = dict(ctx.params)
        self.config = ctx.meta.get("replay.config")

    def files(self) -> list[str]:
        """The configuration, and the files that options name: with `@`, as a policy, or those of credentials and certificates."""
        found = [self.config] if self.config else []
        for name, value in self.given.items():
            texts = [one for one in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(one, str)]
            found += [one[1:] for one in texts if one.startswith("@")]
            found += texts if name in _NAMED else []
        return found

    def again(self, apply: Callable[[dict[str, Any]], None]) -> str:
        """Parses anew, then `apply(parameters)`; tells what is different. Raises ReplayError, and then the old ones hold."""
        fresh = self._parsed()
        different = [name for name in self._names if name in fresh and fresh[name] != self.given.get(name)]
        fixed = [name for name in different if name not in self._may_change]
        if fixed:
            raise UsageError(f"{', '.join(self._long(name) for name in fixed)}: cannot change while it runs; put the old value back, or restart")
        apply(dict(fresh))
        self.given = fresh
        return ", ".join(self._told(name) for name in different) or "the same options, their files read anew"

    def _parsed(self) -> dict[str, Any]:
        try:
            with self._command.make_context(self._command.name, list(self._words)) as ctx:
                return dict(ctx.params)
        except click.ClickException as error:
            raise UsageError(error.format_message()) from None
        except (click.exceptions.Exit, click.Abort):
            raise UsageError("the command line ends in something else than a run") from None

    def _long(self, name: str) -> str:
        param = self._names[name]
        return f"--{options.long_name(param)}" if isinstance(param, click.Option) else param.human_readable_name

    def _told(self, name: str) -> str:
        param = self._names[name]
        return f"{self._long(name)} {options.shown(param, self.given[name])}" if isinstance(param, click.Option) else self._long(name)
