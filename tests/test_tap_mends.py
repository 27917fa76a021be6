"""A tap in this process on lo, of which steps fail: a reload that is refused has changed nothing, what could not be done is done again, and the tap goes on."""

import contextlib
import dataclasses
import errno
import http.server
import threading
import time
import urllib.request

import pytest
from tapmake import needs_root

from replay.capture.afpacket import TapError, Tapped
from replay.errors import ReplayError, UsageError
from replay.settings import Selection, Target
from replay.tap import daemon, targets
from replay.tap.daemon import Tap
from replay.tap.settings import TapSettings
from replay.tap.workshop import Workshop

pytestmark = needs_root


class Server:
    """Answers each request, and knows its path."""

    def __init__(self, stack):
        self.got = got = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                got.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def handle(self):
                with contextlib.suppress(ConnectionError):  # the check of a target closes without a word
                    super().handle()

            def log_message(self, *words):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        stack.callback(server.server_close)
        stack.callback(thread.join)
        stack.callback(server.shutdown)

    @property
    def target(self):
        return Target(f"http://127.0.0.1:{self.port}", "127.0.0.1", self.port)

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as reply:
            reply.read()


@pytest.fixture
def place(monkeypatch):
    """(production, two shadows, what makes a tap of them). A filter of more than `most` instructions is not taken, as where net.core.optmem_max is small."""
    real = Tapped.attach
    room = {"most": 1 << 30}

    def attach(self, program):
        if len(program) > room["most"]:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return real(self, program)

    monkeypatch.setattr(Tapped, "attach", attach)
    monkeypatch.setattr(daemon.privileges, "drop", lambda user: "")  # this process needs its own for other tests
    with contextlib.ExitStack() as stack:
        production, one, two = (Server(stack) for _ in range(3))

        @contextlib.contextmanager
        def tapping(**more):
            settings = TapSettings(captures=("lo",), selection=Selection(ports=(production.port,)), targets=(one.target,), user="root", **more)
            tap = Tap(settings)
            try:
                tap.prepare()
                tap.start()
                rest(tap, 0.3)
                yield tap, settings
                end(tap)
            finally:
                tap.stop()
                end(tap)
                tap.close()

        yield production, one, two, tapping, room


def rest(tap, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        tap.tick()
        time.sleep(0.02)


def until(tap, what, seconds=10):
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        tap.tick()
        time.sleep(0.02)
    assert what()


def end(tap):
    tap.drain()
    while tap.running:
        tap.tick()
        time.sleep(0.02)


def networks(count):
    return tuple((bytes(10) + b"\xff\xff" + bytes((11, n >> 8, n & 255, 0)), 128) for n in range(count))


def senders(tap):
    return [way.name for lane in tap._book.lanes for way in lane.ways]


def test_a_filter_that_the_kernel_does_not_take_is_refused_before_anything_changes(place):
    production, one, two, tapping, room = place
    with tapping() as (tap, settings):
        room["most"] = max(map(len, tap._programs())) + 20
        lanes = [lane.ways[0] for lane in tap._book.lanes]
        with pytest.raises(TapError, match=r"does not take a filter of \d+ instructions: Cannot allocate memory; raise net\.core\.optmem_max"):
            tap.reload(dataclasses.replace(settings, targets=(two.target,), exclude_clients=networks(200)))
        assert tap.settings == settings and [lane.ways[0] for lane in tap._book.lanes] == lanes and tap._filtered
        production.get("/after")
        until(tap, lambda: one.got == ["/after"])
        assert not two.got


def test_a_reload_that_fails_after_its_senders_began_is_taken_back(place, monkeypatch, caplog):
    production, one, two, tapping, room = place
    monkeypatch.setattr(Tapped, "would_take", lambda self, program: None)
    with tapping() as (tap, settings):
        room["most"] = max(map(len, tap._programs())) + 20
        guard = tap.shop.guard
        with pytest.raises(TapError):
            tap.reload(dataclasses.replace(settings, targets=(two.target,), exclude_clients=networks(200)))
        assert tap.settings == settings and senders(tap) == [one.target.url] and list(tap.targets.addresses) == [one.target.url]
        assert tap._filtered and tap._hears and not tap._behind and tap.shop.guard is not guard
        production.get("/after")
        until(tap, lambda: one.got == ["/after"])
        assert not two.got
        tap.reload(dataclasses.replace(settings, targets=(two.target,)))
        production.get("/later")
        until(tap, lambda: two.got == ["/later"])


def test_senders_that_cannot_be_made_are_made_later(place, monkeypatch, caplog):
    """The name of the shadow has another address; that is not forgotten because of one failure."""
    production, one, two, tapping, _ = place
    real, fails = Workshop.ways, []

    def ways(self):
        if fails:
            raise ReplayError("cannot make a sender: Too many open files; raise the limit on open files (ulimit -n)")
        return real(self)

    monkeypatch.setattr(Workshop, "ways", ways)
    monkeypatch.setattr(daemon, "_ADOPT_S", 0.5)
    with tapping() as (tap, _):
        address = tap.targets.addresses[one.target.url][0][0]
        monkeypatch.setattr(targets, "resolve", lambda target: [(address, two.port)])
        fails.append(1)
        tap.targets._next = time.monotonic()
        until(tap, lambda: tap._behind)
        rest(tap, 0.2)
        assert "Too many open files; raise the limit on open files (ulimit -n); the tap goes on as before" in caplog.text
        production.get("/before")
        until(tap, lambda: one.got == ["/before"])
        fails.clear()
        until(tap, lambda: not tap._behind)
        production.get("/moved")
        until(tap, lambda: two.got == ["/moved"])
        assert one.got == ["/before"]


def test_an_expired_tap_stays_so_when_its_new_filter_is_too_long(place):
    production, one, _, tapping, _ = place
    with tapping(expires_at=time.time() + 0.5) as (tap, settings):
        until(tap, lambda: tap.state == "expired")
        settings = tap.settings
        with pytest.raises(TapError, match="the kernel takes 4096"):
            tap.reload(dataclasses.replace(settings, expires_at=None, exclude_clients=networks(5000)))
        rest(tap, 0.3)
        assert tap.state == "expired" and tap.settings == settings
        tap.reload(dataclasses.replace(settings, expires_at=None))
        assert tap.state == "capturing" and tap.health().ready
        production.get("/again")
        until(tap, lambda: one.got == ["/again"])


def test_a_tap_whose_filter_is_not_in_place_says_so_and_tries_again(place, monkeypatch):
    production, one, _, tapping, room = place
    monkeypatch.setattr(daemon, "_ADOPT_S", 0.5)
    with tapping(expires_at=time.time() + 0.5) as (tap, settings):
        until(tap, lambda: tap.state == "expired")
        monkeypatch.setattr(Tapped, "would_take", lambda self, program: None)
        room["most"] = 10
        tap.reload(dataclasses.replace(settings, expires_at=None))
        assert tap.state == "capturing" and not tap.health().ready and "filter" in tap.health().why
        room["most"] = 1 << 30
        until(tap, lambda: tap.health().ready)
        production.get("/again")
        until(tap, lambda: one.got == ["/again"])


def test_a_tap_that_ends_takes_no_reload(place):
    production, one, two, tapping, _ = place
    with tapping() as (tap, settings):
        production.get("/a")
        rest(tap, 0.2)
        tap.drain()
        tap.tick()
        with pytest.raises(UsageError, match="is ending"):
            tap.reload(dataclasses.replace(settings, targets=(two.target,)))
        end(tap)
        assert one.got == ["/a"] and tap.result()["tap"]["kernel_drops"] == 0


def test_a_share_that_max_cpu_lowered_comes_back_when_a_reload_takes_it_away(place):
    production, one, _, tapping, _ = place
    with tapping(max_cpu=1e-4) as (tap, settings):
        until(tap, lambda: tap.shop.share < 0.3)
        tap.reload(dataclasses.replace(settings, max_cpu=0.0))
        until(tap, lambda: tap.shop.share == 1.0, 3)
        rest(tap, 0.3)
        paths = [f"/{n}" for n in range(40)]
        for path in paths:
            production.get(path)
        until(tap, lambda: len(one.got) == len(paths))
        assert tap.snapshot()["tap"]["effective_ppm"] == 1_000_000
