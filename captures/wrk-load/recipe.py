"""wrk with 16 connections for a second, GET and POST, three pipelined at a time. It ends in the middle of what it does: the server's log says what was whole."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10")
SERVER = "server { listen 10.1.0.10:8080; location / { return 200 'load'; } }"
with rig.Nginx(SERVER) as nginx, rig.Recorder():
    rig.run("wrk", "-t2", "-c16", "-d1s", "-s", str(pathlib.Path(__file__).with_name("mix.lua")), "http://10.1.0.10:8080/")


def body_of(target):
    n = int(target.rsplit("/", 1)[1])
    return b"value=" + str(n).encode() * (n % 40) if n % 3 == 0 else b""


rig.write_truth(nginx.requests(body_of))
