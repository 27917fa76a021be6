"""HTTPS on a usual and on an unusual port: nothing to find."""

import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.1.0.10", "10.1.0.1")
with tempfile.TemporaryDirectory() as folder:
    rig.run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{folder}/key", "-out", f"{folder}/cert", "-days", "1", "-subj", "/CN=tls.example")
    SERVER = f"""server {{ listen 10.1.0.10:443 ssl http2; listen 10.1.0.10:80 ssl; ssl_certificate {folder}/cert; ssl_certificate_key {folder}/key;
        location / {{ return 200 'secret\\n'; }} }}"""
    with rig.Nginx(SERVER) as nginx, rig.Recorder():
        for options in (["--http1.1"], ["--http2"], ["--tls-max", "1.2", "--http1.1"]):
            for url in ("https://10.1.0.10/", "https://10.1.0.10:80/"):
                rig.run("curl", "-s", "-k", *options, url, url + "again")
assert len(nginx.log) == 12
rig.write_truth([])
