"""httptools with its callbacks on streams that are reassembled already, to compare with: prints how many requests it found.

The file holds a stream for each connection (generate.py, `write_streams`); finding, ordering and joining packets is not in its cost.
"""

import sys

import httptools

PIECE = 65_536


class Requests:
    def __init__(self):
        self.count = 0

    def on_message_begin(self):
        self.headers, self.body = [], []

    def on_url(self, url):
        self.url = url

    def on_header(self, name, value):
        self.headers.append((name, value))

    def on_body(self, body):
        self.body.append(body)

    def on_message_complete(self):
        self.count += 1


requests = Requests()
with open(sys.argv[1], "rb") as file:
    while prefix := file.read(8):
        length = int.from_bytes(prefix, "little")
        parser = httptools.HttpRequestParser(requests)
        while length:
            piece = file.read(min(PIECE, length))
            length -= len(piece)
            parser.feed_data(piece)
print(requests.count)
