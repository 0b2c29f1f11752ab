"""A proxy between a client and a server's socket that can lose replies, and requests."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path


class Proxy:
    """Forwards connections from a TCP port to a Unix socket.

    `lose_reply_to(text)` arms it once: the next message of a client that holds `text` reaches the
    server and is carried out, and the connection is cut in place of the answer.
    `lose_request(text)` cuts it before the message has reached the server.
    """

    def __init__(self, target: Path) -> None:
        self._target = str(target)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._armed: bytes | None = None
        self._passes_on = True
        self._n_sent: dict[bytes, int] = {}
        self._lock = threading.Lock()
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def lose_reply_to(self, text: str) -> None:
        self._arm(text, passes_on=True)

    def lose_request(self, text: str) -> None:
        self._arm(text, passes_on=False)

    def _arm(self, text: str, *, passes_on: bool) -> None:
        with self._lock:
            self._passes_on = passes_on
            self._armed = text.encode()
            self._n_sent[self._armed] = 0

    def n_sent(self, text: str) -> int:
        """Count the messages with `text` since it was armed with it."""
        return self._n_sent[text.encode()]

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._target)
                for pump in (self._to_server, self._to_client):
                    threading.Thread(target=pump, args=(client, server), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while message := client.recv(1 << 20):
                is_last = self._is_last(message)
                if is_last:
                    # From here on the client hears nothing, whatever the server answers.
                    client.shutdown(socket.SHUT_WR)
                    if not self._passes_on:
                        break
                server.sendall(message)
                if is_last:
                    return
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _to_client(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while message := server.recv(1 << 20):
                client.sendall(message)
        # Closing alone would wait for the other pump, which waits for the client.
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        client.close()
        server.close()

    def _is_last(self, message: bytes) -> bool:
        with self._lock:
            for text in self._n_sent:
                self._n_sent[text] += text in message
            if self._armed is None or self._armed not in message:
                return False
            self._armed = None
            return True


@contextlib.contextmanager
def proxied(dsn_socket: Path) -> Iterator[Proxy]:
    """Run a proxy to the server behind a Unix socket."""
    proxy = Proxy(dsn_socket)
    try:
        yield proxy
    finally:
        proxy.close()
