"""The captures that benchmarks need, made once by generate.py and kept in the temp folder. Light to import: what measures memory must not have much of its own."""

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile

GENERATOR = pathlib.Path(__file__).with_name("generate.py")
#: What a capture is unless said otherwise: the options of generate.py.
USUAL = {"requests": 100_000, "connections": 1_000, "seed": 1, "bodies": 0.15, "rate": 20_000, "variant": "clean", "one_each": False, "most": 0}


def size(text):
    """Bytes (or how many) of `200m`, `2g`, `1024`."""
    factor = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}.get(text[-1:].lower(), 1)
    return int(float(text.rstrip("kKmMgG")) * factor)


def count(text):
    """A number such as `1m`, `10k`, `500`."""
    factor = {"k": 1_000, "m": 1_000_000}.get(text[-1:].lower(), 1)
    return int(float(text.rstrip("kKmM")) * factor)


def folder():
    """Where captures are kept: `replay-bench` in the temp folder, this user's alone."""
    found = pathlib.Path(tempfile.gettempdir()) / f"replay-bench-{os.getuid()}"
    found.mkdir(mode=0o700, exist_ok=True)
    if found.stat().st_uid != os.getuid():
        raise SystemExit(f"{found} belongs to somebody else: remove it, or set TMPDIR")
    return found


def cached(*, streams=False, **how):
    """(path, requests) of such a capture (or of its streams), made when it is not there yet."""
    how = {name: value for name, value in how.items() if USUAL[name] != value}
    code = hashlib.sha256(GENERATOR.read_bytes()).hexdigest()[:8]
    key = hashlib.sha256(repr((streams, sorted(how.items()))).encode()).hexdigest()[:12]
    path = folder() / f"{code}-{key}.{'streams' if streams else 'pcap'}"
    counted = path.with_suffix(path.suffix + ".count")
    if not (counted.exists() and path.exists()):
        for old in [*folder().glob("*.pcap*"), *folder().glob("*.streams*")]:  # made by another version of the generator
            if not old.name.startswith(code):
                old.unlink(missing_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        # In a process of its own: the memory that it takes must not be ours, or it would be in the peak of what we measure.
        command = [sys.executable, GENERATOR, "--count", str(counted), *(["--streams"] if streams else [])]
        for name, value in how.items():
            option = {"most": "--bytes", "one_each": "--one-each"}.get(name, f"--{name}")
            command += [option] if value is True else [option, str(value)]
        with open(part, "wb", buffering=0) as into:
            # It imports its neighbours, which the safe path of `make test` would hide from it.
            done = subprocess.run(command, stdout=into, env=os.environ | {"PYTHONSAFEPATH": ""})
        if done.returncode:
            part.unlink()
            raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}")
        part.rename(path)
    return path, int(counted.read_text())
