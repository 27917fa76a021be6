"""`replay completion`: verbs and options completed by the shell."""

from __future__ import annotations

import sys

import click
from click.shell_completion import get_completion_class


@click.command(short_help="a script that completes verbs and options in bash, zsh or fish")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Prints the script for a shell; read it from the shell's start-up file:

    \b
        eval "$(replay completion bash)"        in ~/.bashrc
        eval "$(replay completion zsh)"         in ~/.zshrc
        replay completion fish | source         in ~/.config/fish/config.fish
    """
    sys.stdout.write(script(shell))


def script(shell: str) -> str:
    """The text of the script."""
    from replay.cli.group import cli

    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(cli, {}, "replay", "_REPLAY_COMPLETE")
    return made.source_template % made.source_vars() + "\n"
