"""Run alone under LeakSanitizer (tests/sanitize.sh): makes, uses and drops every kind of object of the extension, the unfinished ways out among them."""

import contextlib
import gc
import io
import pathlib

from replay import _fastpath

ROOT = pathlib.Path(__file__).resolve().parents[2]


def joint():
    stop = _fastpath.Stop()
    stop.set()
    for targets in ([], [(bytes(16), 80)], [(bytes(16), 80)] * 50):
        _fastpath.Guard(targets)
    with contextlib.suppress(ValueError):
        _fastpath.Guard([(b"short", 80)])
    for slots in (1, 7, 1024):
        queue = _fastpath.Queue(_fastpath.Pool(1 << 20), slots)
        queue.get(0)
        queue.end()


def commands():
    """The commands, in this process, over every capture there is, whole and cut in the middle."""
    from replay.cli import main

    scratch = ROOT / "build" / "sanitize" / "cut.pcap"
    for path in sorted(ROOT.glob("captures/*/*.pcap*")) + [ROOT / "replay" / "data" / "demo.pcap"]:
        whole = path.read_bytes()
        scratch.write_bytes(whole[: len(whole) * 2 // 3])
        dry = ["run", "--dry-run", "--pace", "max", "-q", str(path)]
        for arguments in (["show", "--json", str(path)], ["show", "--incomplete", "--json", str(scratch)], dry, [*dry, "--loop", "3"]):
            with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                main(arguments)


for _ in range(3):
    joint()
commands()
gc.collect()
print("leaks: done", flush=True)
