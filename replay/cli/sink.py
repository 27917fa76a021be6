"""`replay sink`: an embedded shadow service that answers everything alike, counts and logs."""

import contextlib
import ipaddress
import json
import re
import signal
import socket
import sys
import threading
from typing import IO, Any

import click

from replay import process
from replay._fastpath import Sink, Stop
from replay.cli import options
from replay.report import endpoint, text


def _address(text: str) -> tuple[bytes, int]:
    """The engine's address of `127.0.0.1:8080`, `[::1]:0`, `:8080` (any IPv4), `localhost:8080`. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        raise ValueError(f"{text!r} is no address, such as 127.0.0.1:8080 or [::1]:0")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address stands in brackets, such as [::1]:{port}")
    try:
        ip = ipaddress.ip_address(host or "0.0.0.0")
    except ValueError:
        try:
            found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise ValueError(f"{host!r}: {getattr(error, 'strerror', None) or error}") from None
        ip = ipaddress.ip_address(found[0][4][0])
    return ip.packed if ip.version == 6 else bytes(10) + b"\xff\xff" + ip.packed, int(port)


def _line(row: dict[str, Any]) -> str:
    """A row of the access log."""
    row["method"], row["target"] = text(row["method"]), text(row["target"])
    row["host"] = None if row["host"] is None else text(row["host"])
    row["headers"] = [(text(name), text(value)) for name, value in row["headers"]]
    return json.dumps(row, separators=(",", ":")) + "\n"


def _drain(sink: Sink, log: IO[str]) -> bool:
    """Writes the rows that wait; False when there were none."""
    rows = sink.take()
    log.writelines(map(_line, rows))
    log.flush()
    return bool(rows)


def _totals(counters: dict[str, Any]) -> str:
    def by(name: str) -> str:
        most = sorted(counters[name].items(), key=lambda one: (-one[1], str(one[0])))
        return " ".join(f"{key if key != '' else '-'}={n}" for key, n in most) or "-"

    return (
        f"requests {counters['requests']}, connections {counters['connections']}, bytes in {counters['bytes_in']}, "
        f"bytes out {counters['bytes_out']}, bad {counters['bad']}; by method: {by('by_method')}; by host: {by('by_host')}; by status: {by('by_status')}"
    )


def _fail(message: str) -> None:
    click.echo(f"replay sink: {message}", err=True)
    sys.exit(2)


@click.command()
@click.option("--listen", default="127.0.0.1:8080", show_default=True, metavar="ADDRESS:PORT", help="Port 0: any that is free.")
@click.option("--status", default=200, show_default=True, type=click.IntRange(200, 599), help="Of each reply.")
@click.option("--delay", type=options.DURATION, default="0ms", show_default=True, help="Reply so long after the request, such as 5ms.")
@click.option("--body", default="0", show_default=True, type=options.BODY_SIZE, help="Length of each reply's body, at most 64MiB.")
@click.option("--misbehave", type=click.Choice(["close", "reset", "stall", "never", "slow"]),
              help="Close or reset instead of a reply, accept and never read, never answer, or answer a byte each 100 ms.")  # fmt: skip
@click.option("--every", default=1, show_default=True, type=click.IntRange(1), metavar="N", help="Misbehave at each Nth request (stall: connection) only.")
@click.option("--access-log", type=click.Path(dir_okay=False), metavar="FILE", help="One JSON object a request.")
@click.option("--json", "as_json", is_flag=True, help="Totals as one JSON object.")
def sink(listen: str, status: int, delay: int, body: int, misbehave: str | None, every: int, access_log: str | None, as_json: bool) -> None:
    """An embedded shadow service: answers every request alike, counts and logs.

    Prints `listening on ADDRESS:PORT` when it is ready, and its totals at the end (Ctrl-C or SIGTERM).
    """
    stop = Stop()
    with contextlib.ExitStack() as stack:
        try:
            address = _address(listen)
            server = Sink(address, stop=stop, status=status, body=body, delay_ns=delay, misbehave=misbehave or "", every=every, log=bool(access_log))
        except ValueError as error:
            return _fail(str(error))
        except OSError as error:
            return _fail(f"cannot listen on {listen}: {error.strerror}")
        try:
            log = stack.enter_context(open(access_log, "w", encoding="utf-8")) if access_log else None
        except OSError as error:
            return _fail(f"cannot write {access_log}: {error.strerror}")
        process.descriptors()
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: stop.set()))
        thread = threading.Thread(target=server.run, name="sink")
        thread.start()
        try:
            click.echo(f"listening on {endpoint(address[0], server.port)}")
            if log is None:
                while thread.is_alive():
                    thread.join(0.5)  # a signal that comes just before the wait does not end it
            else:
                while thread.is_alive():
                    if not _drain(server, log):
                        thread.join(0.02)
                while _drain(server, log):
                    pass
        finally:
            stop.set()
            thread.join()
        counters = server.counters()
    click.echo(json.dumps(counters) if as_json else _totals(counters))
