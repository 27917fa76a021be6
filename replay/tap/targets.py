"""Where a tap sends: the addresses that names have now, the guards before production, and relays for what the sender does not speak itself.

Must not know: rings, lanes, counters.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterable

from replay import _fastpath
from replay.capture.afpacket import Snoop, TapError, in_namespace
from replay.capture.netlink import Network
from replay.engine import guarded, resolve
from replay.errors import GuardError, ReplayError, TargetError
from replay.relay import Relay
from replay.settings import Target
from replay.tap import probe
from replay.tap.place import OWN_PORTS, Place, within
from replay.tap.settings import TapSettings
from replay.tap.spoken import Spoken, speak

__all__ = ["Targets"]

Address = tuple[bytes, int]

_log = logging.getLogger("replay.tap")

_RESOLVE_S, _DOWN_S = 30.0, 5.0
#: What is on its way to addresses that were a target's is over after so long.
_LATELY_S = 120.0


class Targets:
    """settings and `addresses` (by URL) are those of now; whoever tries others puts the old ones back when they are refused."""

    def __init__(self, settings: TapSettings, place: Place) -> None:
        self.settings, self.place = settings, place
        self.addresses: dict[str, list[Address]] = {target.url: resolve(target) for target in settings.targets}
        self._guards: list[_fastpath.Guard] = []
        self._relays: dict[str, Relay] = {}
        self._told: dict[str, str] = {}
        self._snoop: Snoop | None = None
        self._resolving: threading.Thread | None = None
        self._resolved: dict[str, list[Address]] | None = None
        self._next = 0.0
        self._ends: list[Address] = []
        self._left: dict[Address, float] = {}  # ends that are none any more, and since when
        self.spoken: Spoken | None = None  # how TLS is, to all of them
        self.spoken = self.speaks(settings)
        self.prepare_relays(self.spoken)

    def every(self) -> list[Address]:
        return [address for one in self.addresses.values() for address in one]

    def excluded(self) -> list[Network]:
        """Clients whose requests are not mirrored: what the shadow itself calls would go round."""
        if self.settings.exclude_clients is not None:
            return list(self.settings.exclude_clients)
        return [(packed, 128) for packed, _ in dict.fromkeys(self.every()) if not self.place.is_own(packed)]

    def ends(self) -> list[Address]:
        """Where our own connections go, and went until lately: the filter tells them by that."""
        now = time.monotonic()
        left = {end: since for end, since in self._left.items() if now - since < _LATELY_S} | dict.fromkeys(self._ends, now)
        self._ends = [*self.every(), *(relay.address for relay in self._relays.values() if relay.port)]
        self._left = {end: since for end, since in left.items() if end not in self._ends}
        return list(dict.fromkeys([*self._ends, *self._left]))

    # -- guards --------------------------------------------------------------------------------------------------------------

    def new_guard(self) -> _fastpath.Guard | None:
        if self.settings.allow_production:
            return None
        if not self.guarded:
            self._guards = self._guards[-8:]
        guard = _fastpath.Guard(guarded(self.every()))
        self._guards.append(guard)
        return guard

    @property
    def guarded(self) -> bool:
        """A guard has stopped the sending for good."""
        return any(guard.tripped for guard in self._guards)

    def listen(self) -> None:
        """Opens what `check` looks through, while there is the right to: also where nothing is checked now, a reload may ask for it."""
        self._snoop = in_namespace(self.settings.netns, Snoop)

    def refuse_production(self) -> None:
        """What addresses and ports alone tell: the target is a server that is tapped. Raises GuardError."""
        s, place = self.settings, self.place
        if s.allow_production or s.dry_run:
            return
        for target in s.targets:
            for packed, port in self.addresses[target.url]:
                here = place.is_local(packed)
                named = within(packed, s.selection.server)
                tapped = named if s.selection.server else {"in": here, "out": not here, "both": True}[s.direction] and here
                if tapped and port in s.selection.ports:
                    raise GuardError(
                        f"{target.url}: refused: its address and port are tapped, what is mirrored would reach production."
                        " Give the address of a shadow service. If this is meant: --allow-production"
                    )

    def check(self, only: set[Address] | None = None) -> set[int]:
        """Connects to each new address once, without a byte. The numbers of the interfaces where it would have been seen. Raises GuardError, TapError."""
        s, place = self.settings, self.place
        if s.allow_production or s.dry_run:
            return place.up
        if not place.up:
            return set()
        assert self._snoop is not None, "listen() comes first"
        up = place.up
        ethernet = place.single is None or place.single.ethernet
        number = place.single.number if place.single is not None else 0
        try:
            with self._snoop.listening(place.program((), ethernet=ethernet, connects=True), number):
                for target in s.targets:
                    wanted = [one for one in self.addresses[target.url] if only is None or one in only]
                    probe.check(self._snoop, place, target, wanted, s.connect_timeout_ns / 1e9)
        except OSError as error:
            raise TapError(f"the target cannot be checked: {error.strerror}") from None
        return set() if self._snoop.blind else up

    # -- relays --------------------------------------------------------------------------------------------------------------

    def speaks(self, settings: TapSettings) -> Spoken | None:
        """How TLS would be spoken by these, their files as they are now; as it is where nothing is different. Raises UsageError."""
        asked = not settings.dry_run and any(target.scheme == "https" for target in settings.targets)
        return speak(settings.tls, self.spoken) if asked else self.spoken

    def speak(self, spoken: Spoken | None) -> None:
        """New connections of each relay are opened so; those that stand are its senders', which are to be replaced."""
        if spoken is self.spoken:
            return
        self.spoken = spoken
        for url, relay in self._relays.items():
            if spoken is not None and relay.target.scheme == "https":
                relay.speak(spoken.tls, spoken.context)
                self._told.pop(url, None)

    def prepare_relays(self, spoken: Spoken | None) -> None:
        """One for each target that needs it."""
        s = self.settings
        for target in () if s.dry_run else s.targets:
            if target.scheme != "http" and target.url not in self._relays:
                timeout_s = max(s.connect_timeout_ns / 1e9, 0.05)
                self._relays[target.url] = Relay(target, s.tls, self.addresses[target.url], timeout_s, ports=OWN_PORTS, made=spoken.context if spoken else None)

    def reached(self, target: Target) -> list[Address]:
        """Where a sender connects to; a relay begins when it is asked for. Call it when the rights were dropped: it has a thread."""
        relay = self._relays.get(target.url)
        if relay is None:
            return self.addresses[target.url]
        relay.addresses = self.addresses[target.url]
        relay.begin()
        return [relay.address]

    def tell_failures(self) -> None:
        """Why relays do not reach their targets, when that is another reason than before."""
        for url, relay in self._relays.items():
            if relay.failed is not None and relay.failed != self._told.get(url):
                _log.warning("%s: %s", url, relay.failed)
                self._told[url] = relay.failed

    def let_go(self, urls: Iterable[str]) -> None:
        """Relays of targets that nobody sends to any more end. urls: of those that somebody does."""
        kept = {*urls, *self.addresses}
        for url in [one for one in self._relays if one not in kept]:
            self._relays.pop(url).stop()

    # -- names ---------------------------------------------------------------------------------------------------------------

    def look(self, now: float, down: bool) -> dict[str, list[Address]] | None:
        """Names are looked up every 30 s, and sooner when nothing answers, in a thread: a resolver may hang. What is new, when it is there."""
        if self._next == 0.0:
            self._next = now + _RESOLVE_S  # they were looked up just now
        if down:
            self._next = min(self._next, now + _DOWN_S)
        if self._resolving is not None:
            if self._resolving.is_alive():
                return None
            self._resolving, found, self._resolved = None, self._resolved, None
            return {url: new for url, new in (found or {}).items() if set(new) != set(self.addresses.get(url, new))} or None
        if now >= self._next:
            self._next = now + _RESOLVE_S
            targets = self.settings.targets
            self._resolving = threading.Thread(target=self._resolve, args=(targets,), name="resolver", daemon=True)
            self._resolving.start()
        return None

    def _resolve(self, targets: tuple[Target, ...]) -> None:
        found = {}
        for target in targets:
            try:
                found[target.url] = resolve(target)
            except TargetError as error:
                _log.warning("%s; the old addresses are used", error)
        self._resolved = found

    def move(self, changed: dict[str, list[Address]]) -> bool:
        """To the addresses that the names have now; False when a guard refuses them."""
        before = self.addresses
        fresh = {address for url, now in changed.items() for address in now if address not in before[url]}
        self.addresses = before | changed
        try:
            self.refuse_production()
            self.place.checked &= self.check(fresh)
        except ReplayError as error:
            self.addresses = before
            _log.error("%s; the old addresses are used", error)
            return False
        for url in changed:
            _log.info("%s: has %d addresses now, %d of them new", url, len(changed[url]), len(fresh & set(changed[url])))
        return True

    def close(self) -> None:
        for relay in self._relays.values():
            with contextlib.suppress(OSError):
                relay.stop()
        if self._snoop is not None:
            self._snoop.close()
