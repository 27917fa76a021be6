"""Writes what is made from the command line itself: the man page, a page a verb (docs/verbs/), the scripts for shells. `python docs/manual.py` after an option changed;
a test compares the result with what is committed."""

from __future__ import annotations

import pathlib
import re
import sys

import click

DOCS = pathlib.Path(__file__).resolve().parent
EXAMPLES = {
    "run": [
        ("replay run traffic.pcap", "a dry run: what would be sent, and the exact command to send it"),
        ("replay run traffic.pcap --to http://shadow:8080 --percent 5", "five requests in a hundred, the same ones each time, at the captured pace"),
        ("replay run 'day-*.pcapng.zst' --to https://shadow.example --pace 2x --report out.json --html out.html", "several files as one, twice as fast, with a page to look at"),
        ("replay run traffic.pcap --to http://shadow:8080 --fail-if 'status_change > 0.5%' --fail-if 'latency_us.p99 > 250ms'", "a gate of a pipeline: exit code 1 when it fails"),
        ("ssh node tcpdump -w - port 8080 | replay run - --to http://shadow:8080", "from a node, as it happens"),
    ],
    "show": [
        ("replay show traffic.pcap", "a line a request"),
        ("replay show --json --path '^/orders' --methods POST traffic.pcap", "an object a request, with headers and the digest of the body"),
        ("replay show --incomplete traffic.pcap", "also what is not whole, with the reason"),
    ],
    "inspect": [("replay inspect traffic.pcap", "what is in it, what is missing, what to do about it")],
    "report": [
        ("replay report node-*.json --html all.html", "several reports as one, with a page"),
        ("replay report --compare before.json after.json", "two runs side by side"),
    ],
    "doctor": [("replay doctor --to http://shadow:8080", "this machine, and whether the target is there")],
    "sink": [("replay sink --listen 127.0.0.1:9090 --delay 5ms", "something that answers, for tests")],
    "demo": [("replay demo", "everything in half a minute"), ("replay demo --save traffic.pcap", "the shipped capture, to try other verbs on it")],
    "completion": [('eval "$(replay completion bash)"', "in ~/.bashrc")],
}
PREFACE = {"man": "docs/man/replay.1", "verbs": "docs/verbs"}


def commands() -> dict[str, click.Command]:
    from replay.cli.group import _VERBS, cli

    context = click.Context(cli)
    return {name: command for name in _VERBS if (command := cli.get_command(context, name)) is not None}


def options(command: click.Command) -> list[tuple[str, str, str]]:
    """(names and value, help, default) of each option."""
    found = []
    for param in command.params:
        if not isinstance(param, click.Option) or param.hidden:
            continue
        names = ", ".join([*param.opts, *param.secondary_opts])
        value = "" if param.is_flag else " " + (param.metavar or param.type.name or "VALUE")
        text = re.sub(r"\s*\[default: ([^\]]*)\]", "", param.help or "")
        default = re.search(r"\[default: ([^\]]*)\]", param.help or "")
        shown = default[1] if default else str(param.default) if param.show_default and isinstance(param.default, str) else ""
        found.append((names + value, text.strip(), shown))
    return found


def arguments(command: click.Command) -> str:
    return " ".join(argument(param) for param in command.params if isinstance(param, click.Argument))


def argument(param: click.Argument) -> str:
    if param.metavar is not None:
        return param.metavar
    return "|".join(param.type.choices) if isinstance(param.type, click.Choice) else str(param.name).upper()


def prose(command: click.Command) -> str:
    return re.sub(r"\n\s+", "\n", (command.help or "").replace("\b", "")).strip()


# ---- pages ---------------------------------------------------------------------------------------------------------------------------


def verb_page(name: str, command: click.Command) -> str:
    lines = [f"# replay {name}", "", prose(command), "", f"    replay {name} [OPTIONS] {arguments(command)}".rstrip(), ""]
    if name in EXAMPLES:
        wide = max(len(text) for text, _ in EXAMPLES[name])
        lines += ["## Examples", "", *(f"    {text:<{wide}}    # {what}" for text, what in EXAMPLES[name]), ""]
    lines += ["## Options", "", "| option | | default |", "| --- | --- | --- |"]
    lines += [f"| `{escaped(names)}` | {escaped(text)} | {f'`{escaped(default)}`' if default else ''} |" for names, text, default in options(command)]
    return "\n".join([*lines, "", "What they mean in more words: [docs/usage.md](../usage.md). This page is made by docs/manual.py.", ""])


def escaped(text: str) -> str:
    return text.replace("|", "\\|")


def man_page(verbs: dict[str, click.Command]) -> str:
    def roff(text: str) -> str:
        text = text.replace("\\", "\\e").replace("-", "\\-")
        return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in text.splitlines())

    lines = [
        '.TH REPLAY 1 "" "replay" "User Commands"', ".SH NAME", "replay \\- replays HTTP traffic from captures against a shadow service", ".SH SYNOPSIS",
        ".B replay", ".I VERB", "[OPTIONS] ...", ".SH DESCRIPTION",
        roff("Reads HTTP requests from captures (pcap, pcapng), takes a share of them, gives their Host its shadow form as a service mesh does, sends them to a shadow service and accounts for each."),
        ".SH VERBS",
    ]  # fmt: skip
    for name, command in verbs.items():
        lines += [f".SS replay {roff(name)} [OPTIONS] {roff(arguments(command))}".rstrip(), roff(prose(command).replace("\n\n", "\n"))]
        for names, text, default in options(command):
            lines += [".TP", f"\\fB{roff(names)}\\fR", roff(text + (f" (default: {default})" if default else "")) or "\\&"]
        if name in EXAMPLES:
            lines += [".PP", "Examples:"]
            for text, what in EXAMPLES[name]:
                lines += [".TP", f"\\fB{roff(text)}\\fR", roff(what)]
    codes = ["0 done", "1 a gate failed; doctor: something will not work", "2 wrong option or configuration", "3 refused or stopped by a guard", "4 a capture is missing, unreadable or holds no request; tap: no right to capture, or no such interface",
             "5 the name of the target cannot be resolved, or no connection to it ever succeeded", "70 our own bug", "130 interrupted; the summary still comes"]  # fmt: skip
    lines += [".SH EXIT STATUS"]
    for code in codes:
        number, _, text = code.partition(" ")
        lines += [".TP", f".B {number}", roff(text)]
    return "\n".join(lines) + "\n"


def pages() -> dict[pathlib.Path, str]:
    """Everything that is made: path -> text."""
    from replay.cli.completion import script

    verbs = commands()
    made = {DOCS / "verbs" / f"{name}.md": verb_page(name, command) for name, command in verbs.items()}
    made[DOCS / "man" / "replay.1"] = man_page(verbs)
    for shell, file in (("bash", "replay"), ("zsh", "_replay"), ("fish", "replay.fish")):
        made[DOCS / "completion" / file] = script(shell)
    return made


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(path.relative_to(DOCS.parent), file=sys.stderr)
