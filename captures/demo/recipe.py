"""The capture of `replay demo`: ten seconds of a small shop, three virtual hosts on nginx and six kinds of clients. Writes replay/data/demo.pcap."""

import asyncio
import http.client
import json
import pathlib
import random
import sys
import threading
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import rig

rig.own_network("10.8.0.11", "10.8.0.12", "10.8.0.13", *(f"10.9.0.{i}" for i in range(1, 9)))

HOSTS = {"customer:8080": "10.8.0.11", "preference:8080": "10.8.0.12", "recommendation:8080": "10.8.0.13"}
SECONDS = 10.0
SERVER = """
    server {
        listen %s:8080; server_name %s;
        location /orders { if ($request_method = POST) { return 201 '{"order":"accepted"}'; } return 200 '{"orders":[]}'; }
        location /preferences { if ($request_method = PUT) { return 204; } return 200 '{"colour":"blue","size":"M"}'; }
        location /missing { return 404 '{"error":"no such thing"}'; }
        location /ws { proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; proxy_pass http://127.0.0.1:9000; }
        location / { return 200 '{"host":"$host","customer":{"id":4711,"name":"Ada"},"items":[1,2,3]}'; }
    }
"""
sent = {}  # target -> body
lock = threading.Lock()
rng = random.Random(20260801)
start = 0.0


def until(second):
    time.sleep(max(0.0, start + second - time.monotonic()))


def keep(target, body):
    with lock:
        sent[target] = body
    return target


def order(i):
    return json.dumps({"customer": 4711 + i, "items": [{"sku": f"A-{j:04d}", "count": j % 3 + 1} for j in range(i % 7 + 1)]}).encode()


def shop_with_curl():
    """A person with curl: one call each, some with several URLs on one connection."""
    for i in range(14):
        until(0.4 + i * 0.67)
        target = f"/customers/{4711 + i}"
        run = ["curl", "-s", "-o", "/dev/null", "--interface", "10.9.0.1", "--resolve", "customer:8080:10.8.0.11"]
        if i % 3 == 0:
            body = order(i)
            rig.run(*run, "-d", body.decode(), "-H", "Content-Type: application/json", "http://customer:8080" + keep(f"/orders?via=curl&n={i}", body))
        elif i % 3 == 1:
            rig.run(*run, f"http://customer:8080{target}", "-o", "/dev/null", f"http://customer:8080{target}/orders", "-o", "/dev/null", "http://customer:8080/health")
        else:
            rig.run(*run, "-I", f"http://customer:8080{target}")


def frontend_with_http_client():
    """A service that keeps its connection: reads, now and then a write, one upload in chunks."""
    one = http.client.HTTPConnection("10.8.0.12", 8080, source_address=("10.9.0.2", 0))
    for i in range(50):
        until(0.2 + i * 0.19 + 0.05 * (i % 3))
        head = {"Host": "preference:8080", "Cookie": f"session={i % 5:016x}", "traceparent": f"00-{i + 1:032x}-{i + 1:016x}-01"}
        if i % 10 == 7:
            body = json.dumps({"colour": "green", "n": i}).encode()
            one.request("PUT", keep(f"/preferences/{i}", body), body=body, headers=head | {"Content-Type": "application/json"})
        elif i == 25:
            parts = [f"line {j}\n".encode() * 20 for j in range(12)]
            one.request("POST", keep("/orders/upload", b"".join(parts)), body=iter(parts), headers=head, encode_chunked=True)
        else:
            one.request("GET", f"/preferences/{i}?fields=colour,size", headers=head)
        one.getresponse().read()
    one.close()


def cron_with_urllib():
    """A job: a new connection a request, `Connection: close`."""
    for i in range(12):
        until(0.7 + i * 0.75)
        target = "/missing" if i % 6 == 5 else f"/recommendations?customer={4711 + i}"
        ask = urllib.request.Request(f"http://10.8.0.13:8080{target}", headers={"Host": "recommendation:8080"})
        try:
            urllib.request.urlopen(ask, timeout=5).read()
        except urllib.error.HTTPError as answer:
            answer.close()


async def gateway_with_asyncio():
    """A gateway with a few connections of its own; each pipelines small bursts."""

    async def worker(k):
        reader, writer = await asyncio.open_connection("10.8.0.13", 8080, local_addr=(f"10.9.0.{3 + k}", 0))
        pause = random.Random(k)
        for i in range(12):
            await asyncio.sleep(pause.uniform(0.5, 1.0))
            burst = 1 + i % 3
            for j in range(burst):
                writer.write(
                    f"GET /recommendations/{k}/{i}/{j} HTTP/1.1\r\nHost: recommendation:8080\r\nUser-Agent: gateway/3.2\r\nAccept: application/json\r\n"
                    f"Authorization: Bearer {pause.getrandbits(128):032x}\r\n\r\n".encode()
                )
            await writer.drain()
            for _ in range(burst):
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.close()

    await asyncio.gather(*(worker(k) for k in range(3)))


def probe_with_ab():
    """HTTP/1.0 checks."""
    for i in range(3):
        until(1.5 + 3 * i)
        rig.run("ab", "-q", "-n", "5", "-c", "1", "-B", "10.9.0.6", "-H", "Host: customer:8080", "http://10.8.0.11:8080/health")


def load_with_wrk():
    """A small load test in the middle: 4 connections, a request each 150 ms."""
    until(4.0)
    script = pathlib.Path(__file__).with_name("pace.lua")
    rig.run("wrk", "-t1", "-c4", "-d2s", "-s", str(script), "http://10.8.0.12:8080/")


def browser_socket():
    """A WebSocket through nginx: what follows the 101 is no HTTP."""
    until(2.0)
    one = rig.connect(("10.8.0.11", 8080), ("10.9.0.7", 0))
    one.sendall(
        b"GET /ws HTTP/1.1\r\nHost: customer:8080\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    rig.read_reply(one)
    for i in range(6):
        until(2.5 + i)
        one.sendall(b"\x81\x85" + b"\x01\x02\x03\x04" + bytes(b ^ m for b, m in zip(b"hello", b"\x01\x02\x03\x04\x01", strict=True)))
        one.recv(100)
    one.close()


def echo(one, peer):
    rig.read_until(one, b"\r\n\r\n")
    one.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
    while one.recv(100):
        one.sendall(b"\x81\x02ok")
    one.close()


rig.serve(("127.0.0.1", 9000), echo)
servers = "".join(SERVER % (ip, name.split(":")[0]) for name, ip in HOSTS.items())
with rig.Nginx(servers) as nginx:
    capture = rig.Recorder("demo.pcap", expression="tcp port 8080")
    capture.path = pathlib.Path(__file__).resolve().parents[2] / "replay" / "data" / "demo.pcap"
    capture.command[capture.command.index("-w") + 1] = str(capture.path)
    with capture:
        start = time.monotonic()
        work = [shop_with_curl, frontend_with_http_client, cron_with_urllib, probe_with_ab, load_with_wrk, browser_socket]
        threads = [threading.Thread(target=one) for one in work] + [threading.Thread(target=lambda: asyncio.run(gateway_with_asyncio()))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
rows = nginx.requests(lambda target: sent.get(target, b""))
for row in rows:
    if row["target"] == "/ws":
        row["withheld"] = "upgrade"
rig.write_truth(rows)
print(f"{capture.path.name}: {capture.path.stat().st_size} bytes")
