"""The verbs of `replay`, loaded when they are used; errors become exit codes in one place (`run`)."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from replay import __version__
from replay.cli import told
from replay.errors import ReplayError
from replay.extras import unbuilt

_VERBS = {
    "run": "replay captures against a shadow service (without --to: a dry run)",
    "tap": "mirror live traffic from this node",
    "show": "the requests in a capture, a line each",
    "policy": "what a policy (ours, Istio, Gateway API, Envoy) means: explained, checked, converted",
    "inspect": "how good a capture is: what is in it, what is missing, what to do about it",
    "report": "reports of runs: added up, side by side, as a page",
    "doctor": "what this machine can do; each problem with its fix",
    "sink": "an embedded shadow service: answers, counts, logs",
    "completion": "a script that completes verbs and options in bash, zsh or fish",
    "demo": "the whole story in half a minute, nothing else needed",
}


class _Verbs(click.Group):
    """A group whose verbs are modules of this package, imported on use; a wrong verb gets the nearest right one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _VERBS:
            return None
        found: click.Command = getattr(importlib.import_module(f"replay.cli.{name}"), name)
        if not gc.isenabled():  # switched off for the start (`replay.cli.main`)
            gc.freeze()
            gc.enable()
        return found

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _VERBS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], _VERBS, 1)
            if near:
                hint = f"did you mean {near[0]!r}?"
            elif os.path.exists(args[0]):
                hint = f"to replay a capture: replay run {args[0]}"
            else:
                hint = f"there are {', '.join(_VERBS)}"
            raise click.UsageError(f"no such verb: {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(_VERBS.items()))


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    subcommand_metavar="VERB ...",
    epilog="Each verb has its own --help. A first look at a capture: replay show CAPTURE\n\n"
    "Exit codes: 0 done, 1 a gate failed, 2 wrong usage, 3 refused by a guard, 4 no capture or no right to capture, 5 no target, 130 interrupted.",
)
@click.version_option(__version__, "-V", "--version", message="replay %(version)s")
def cli() -> None:
    """Replays HTTP traffic from captures against a shadow service, or mirrors it live from this node, as a mesh would, with every request accounted for."""


def run(arguments: list[str] | None = None) -> int:
    """Runs the command line and gives the exit code. Every error that a person can mend is told here."""
    code: Any
    told.begin()
    try:
        code = cli.main(arguments, prog_name="replay", standalone_mode=False)
    except click.exceptions.Exit as end:
        code = end.exit_code
    except click.UsageError as error:
        if isinstance(error, click.NoSuchOption) and error.possibilities:
            error = click.NoSuchOption(error.option_name, possibilities=_nearest(error.option_name, error.possibilities), ctx=error.ctx)
        _show(error)
        code = 2
    except click.Abort:
        code = 130
    except click.ClickException as error:
        _show(error)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 0
        close_stdout()
    except ReplayError as error:
        _say(str(error))
        code = error.exit_code
    except ImportError as error:
        code = 70
        if "_fastpath" in str(error):
            _say(unbuilt())
        else:
            _internal(error)
    except MemoryError:
        _say("out of memory; lower --max-memory or --connections")
        code = 70
    except Exception as error:
        code = 70
        _internal(error)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        close_stdout()
    return code if isinstance(code, int) else 0


def _nearest(option: str, possibilities: Sequence[str]) -> list[str]:
    """Of the options that click names, the one that is meant most likely."""
    import difflib

    return difflib.get_close_matches(option, possibilities, 1, 0.0)


def _say(text: str) -> None:
    told.say([text], before="replay: ", level="error")


def _show(error: click.ClickException) -> None:
    """As click does, with the usage, where a person reads it."""
    if told.is_json():
        _say(error.format_message())
    else:
        error.show()


def _internal(error: BaseException) -> None:
    """Our own bug: where it was, without a wall of text unless it is asked for."""
    import traceback

    if os.environ.get("REPLAY_TRACEBACK"):
        traceback.print_exception(error)
    place = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    where = f" ({os.path.basename(place.filename)}:{place.lineno})" if place else ""
    _say(f"internal error{where}: {type(error).__name__}: {error}. Please report it, with the output under REPLAY_TRACEBACK=1")


def close_stdout() -> None:
    """Whoever read our output has gone: nothing more is written to it, and the interpreter does not complain at its end."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
