"""A server of a few lines, for tests that need one of their own: it listens, and talks with each connection in a thread."""

import contextlib
import os
import socket
import threading


def requests_of(peer):
    """(head without its blank line, body) of each request of a connection, until it is closed."""
    held = b""
    while True:
        while b"\r\n\r\n" not in held:
            more = peer.recv(65536)
            if not more:
                return
            held += more
        head, _, held = held.partition(b"\r\n\r\n")
        length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
        while len(held) < length:
            more = peer.recv(65536)
            if not more:
                return
            held += more
        body, held = held[:length], held[length:]
        yield head, body


class OwnServer:
    """Listens at (host, port), or at a Unix socket's path, over TLS with a context. What it says to a connection is `talk`, of a subclass."""

    def __init__(self, where=("127.0.0.1", 0), context=None):
        self.context, self.peers = context, []
        self.listen(where)

    def listen(self, where):
        if isinstance(where, tuple):
            self.listener = socket.create_server(where, backlog=128)
            self.port = self.listener.getsockname()[1]
        else:
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(str(where))
            os.chmod(where, 0o777)
            self.listener.listen(128)
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def _accept(self, listener):
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            self.peers.append(peer)
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer):
        with contextlib.suppress(OSError), peer:
            if self.context is None:
                self.talk(peer)
            else:
                with self.context.wrap_socket(peer, server_side=True) as secured:
                    self.talk(secured)

    def talk(self, peer):
        raise NotImplementedError

    def close(self):
        """Listens no more; connections go on."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def down(self):
        """Listens no more, and ends every connection."""
        self.close()
        for peer in self.peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
