"""replay doctor: each check sees what is there, and says how to mend what is not."""

import json
import resource
import socket
import subprocess
import sys

import endtoend
import pytest

from replay import doctor
from replay.settings import target


def test_a_machine_that_runs_these_tests_is_fine():
    found = json.loads(endtoend.command("doctor", "--json").stdout)
    assert found["ok"]
    states = {finding["name"]: finding["state"] for finding in found["findings"]}
    assert states["program"] == "ok" and states["zstd"] == "ok" and "target" not in states
    assert all(finding["fix"] for finding in found["findings"] if finding["state"] == "bad")


def test_the_words_say_the_same():
    said = endtoend.command("doctor").stdout.decode()
    for check in doctor.CHECKS:
        finding = check(doctor.Subject())
        assert finding is None or any(finding.name in line for line in said.splitlines())


@pytest.mark.parametrize("limit, connections, code", [(4096, 256, 0), (300, 256, 1)])
def test_too_few_open_files(limit, connections, code):
    done = subprocess.run(
        [*endtoend.COMMAND, "doctor", "-c", str(connections)], capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    )
    assert done.returncode == code, done.stdout
    assert ("BAD   open files" in done.stdout and "LimitNOFILE" in done.stdout) == bool(code)


def test_the_target_is_looked_at():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        there = doctor.target(doctor.Subject((target(url),)))
        assert there.state == "ok" and "1 address, a connection stands" in there.text
    gone = doctor.target(doctor.Subject((target(url),)))
    assert gone.state == "bad" and "refused" in gone.text and "listen" in gone.fix
    nowhere = doctor.target(doctor.Subject((target("http://no-such-host.invalid"),)))
    assert nowhere.state == "bad" and "resolved" in nowhere.text
    assert b"BAD   target" in endtoend.command("doctor", "--to", url, code=1).stdout


def test_without_rights_it_says_which_are_missing():
    drop = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0\n"
    code = drop + "from replay import doctor\nprint(doctor.live_capture(doctor.Subject()))\nprint(doctor.own_mark(doctor.Subject()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("state='warn'") == 2 and done.stdout.count("setcap cap_net_raw") == 2


def test_an_interface_without_i_and_what_needs_one():
    assert b"replay doctor -i lo" in endtoend.command("doctor", "lo", code=2).stderr
    for words in (("--port", "8080"), ("--ring", "1MiB")):
        assert f"{words[0]} is of no effect without -i".encode() in endtoend.command("doctor", *words).stderr
    assert b"no effect" not in endtoend.command("doctor").stderr


def test_a_check_that_fails_is_a_finding(monkeypatch):
    def broken(subject):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(doctor, "CHECKS", [broken])
    (finding,) = doctor.examine(doctor.Subject())
    assert (finding.name, finding.state) == ("broken", "warn") and "by zero" in finding.text
