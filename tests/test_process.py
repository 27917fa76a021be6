"""What a process takes of its machine: room for descriptors before threads start, and threads that stand back for the one that must be on time."""

import os
import pathlib
import platform
import re
import resource
import subprocess
import sys
import threading
import time

import pytest

import replay
from replay import process

DEMO = pathlib.Path(replay.__file__).parent / "data" / "demo.pcap"

ROOM = """
import re, resource
from replay import process
resource.setrlimit(resource.RLIMIT_NOFILE, (256, min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 4096)))
process.descriptors({need})
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], re.search(r"FDSize:\\s*(\\d+)", open("/proc/self/status").read())[1], len(__import__("os").listdir("/proc/self/fd")))
"""


@pytest.mark.parametrize(("need", "soft", "room"), [(100, 256, 128), (1000, 1000, 1024), (None, 4096, 1024), (1 << 20, 4096, 4096)])
def test_room_for_descriptors_is_made_at_once(need, soft, room):
    """No more than the hard limit allows, and nothing is left open."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 4096:
        pytest.skip("needs a hard limit of 4,096 descriptors")
    said = subprocess.run([sys.executable, "-c", ROOM.format(need=need)], capture_output=True, text=True, check=True).stdout
    limit, size, opened = map(int, said.split())
    assert limit == soft
    assert size >= room
    assert opened <= 5


def test_a_thread_stands_back_alone():
    niceness = []

    def body():
        process.stand_back()
        niceness.append(os.getpriority(os.PRIO_PROCESS, 0))

    before = os.getpriority(os.PRIO_PROCESS, 0)
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert niceness == [min(before + 15, 19)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


@pytest.mark.parametrize(("chosen", "then"), [(os.SCHED_OTHER, os.SCHED_BATCH), (os.SCHED_IDLE, os.SCHED_IDLE)])
def test_a_thread_awaits_its_turn_alone(chosen, then):
    policies = []

    def body():
        os.sched_setscheduler(0, chosen, os.sched_param(0))
        process.await_turn()
        policies.append(os.sched_getscheduler(0))

    before = os.sched_getscheduler(0)
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert policies == [then]
    assert os.sched_getscheduler(0) == before


def threads():
    """(niceness, slice in ns or None) of each thread of this process."""
    found = []
    for task in pathlib.Path("/proc/self/task").iterdir():
        try:
            niceness = int((task / "stat").read_text().rpartition(")")[2].split()[16])
            told = re.search(r"se\.slice\s*:\s*(\d+)", (task / "sched").read_text()) if (task / "sched").exists() else None
        except (OSError, ValueError):  # it ended
            continue
        found.append((niceness, int(told[1]) if told else None))
    return found


@pytest.mark.parametrize("pace", ["2x", "50/s", "max"])
def test_only_the_sender_of_a_paced_run_is_favoured(pace):
    """Reading and judging stand back where requests have due times; at full speed they are what is waited for."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    with replay.sink(delay="20ms") as url:
        ended = []
        thread = threading.Thread(target=lambda: ended.append(replay.run(str(DEMO), to=url, pace=pace, connections=1)))
        thread.start()
        seen, deadline = [], time.monotonic() + 10
        while thread.is_alive() and time.monotonic() < deadline:
            seen.extend(threads())
            time.sleep(0.02)
        thread.join()
    assert ended[0].passed
    back = {niceness for niceness, _ in seen} - {usual}
    assert back == (set() if pace == "max" else {min(usual + 15, 19)})
    if usual < 4 and tuple(map(int, platform.release().split(".")[:2])) >= (6, 12) and any(told is not None for _, told in seen):
        assert any(told == 100_000 for _, told in seen) == (pace != "max")
