"""How long from the start of the process to the first request at the target, with a large capture?

    python benchmarks/bench_first_request.py [--requests 1m] [--rounds 5]

Wall time, the capture in the page cache. The target is a socket of ours that answers nothing: the clock stops at its first byte, then the run is interrupted.
"""

import signal
import socket
import subprocess
import time

import inputs
import measure

QUESTION = "How long from the start of the process to the first request at the target, out of a large capture? Wall time."


def first_byte(path):
    """Seconds from the start of `replay run` to the first byte of a request at the target."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.5)
        began = time.monotonic()
        process = subprocess.Popen(
            [*measure.REPLAY, "run", "-q", "--to", f"http://127.0.0.1:{listener.getsockname()[1]}", path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            while True:
                try:
                    one, _ = listener.accept()
                    break
                except TimeoutError:
                    if process.poll() is not None:
                        raise SystemExit(f"the run ended before it sent anything: {process.stderr.read().decode()}") from None
            with one:
                one.settimeout(60)
                if not one.recv(1):
                    raise SystemExit("the connection was closed without a request")
                return time.monotonic() - began
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


def main():
    parser = measure.arguments(__doc__, requests=1_000_000)
    asked = parser.parse_args()
    path, requests = inputs.cached(requests=asked.requests)
    measure.cost(["cat", path], stdout=subprocess.DEVNULL)
    took = measure.spread([1e3 * one for one in measure.in_turn(asked.rounds, {"replay": lambda: first_byte(path)})["replay"]])
    bars = [measure.bar("first request at the target", took, measure.AT_MOST, 300, 150, "ms")]
    measure.tell("first_request", QUESTION, asked, {"first request": {"ms": took}}, bars, {"capture_bytes": path.stat().st_size, "requests": requests, "first_request_ms": took})


if __name__ == "__main__":
    main()
