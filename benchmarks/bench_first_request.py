"""How long from the start of the process to the first request at the target, with a large capture? Wall time; the capture is in the page cache after the first round.

    python benchmarks/bench_first_request.py [--bytes 2g] [--rounds 5]

The target is a socket of ours that answers nothing: the clock stops at its first byte, then the run is interrupted. Prints one JSON object.
"""

import argparse
import json
import signal
import socket
import subprocess
import time

import generate
import measure

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--bytes", type=generate.size, default=2 << 30)
options.add_argument("--requests", type=int, default=100_000)
options.add_argument("--rounds", type=int, default=5)
asked = options.parse_args()

path, requests = generate.cached(requests=asked.requests, most=asked.bytes)
times = []
for _ in range(asked.rounds):
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.5)
    began = time.monotonic()
    process = subprocess.Popen([*measure.REPLAY, "run", "-q", "--to", f"http://127.0.0.1:{listener.getsockname()[1]}", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while True:
            try:
                one, _ = listener.accept()
                break
            except TimeoutError:
                if process.poll() is not None:
                    raise SystemExit(f"the run ended before it sent anything: {process.stderr.read().decode()}") from None
        one.settimeout(60)
        first = one.recv(1)
        times.append(time.monotonic() - began)
        if not first:
            raise SystemExit("the connection was closed without a request")
        one.close()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        listener.close()
print(json.dumps({"benchmark": "first_request", **measure.surroundings(), "capture_bytes": path.stat().st_size, "requests": requests, "first_request_s": measure.spread(times)}, indent=2))
