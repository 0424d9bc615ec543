"""A proxy before the S3 server that does harm: it resets, cuts or stalls answers, or answers with an error itself."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

_EXPECTS = re.compile(rb"(?i)\r\nexpect: *100-continue")
_CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding: *chunked")


class FaultProxy:
    """Passes HTTP requests on to ``endpoint`` and does harm to the next answers, one for each of `faults`.

    A fault is ``reset`` or ``cut`` (a GET's connection ends in the middle of the body, with or without a reset),
    ``stall`` (half of a GET's body comes, then nothing), or a status such as ``503``, of any request. `requests` has
    the method and the path of each request seen, in order.
    """

    def __init__(self, endpoint: str) -> None:
        target = urlsplit(endpoint)
        self._target = (str(target.hostname), int(target.port or 80))
        self.faults: list[str] = []
        self.requests: list[str] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Ends the proxy: later connections are refused."""
        self._over.set()
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self._target) as server:
            while self._one(client, server):
                pass

    def _one(self, client: socket.socket, server: socket.socket) -> bool:
        """Serves one request; False if the connection is over."""
        head, rest = _head(client)
        if not head:
            return False
        method, path = head.split()[:2]
        with self._lock:
            self.requests.append(f"{method.decode()} {path.decode()}")
            fault = self._fault(method)
        if fault.isdigit():
            client.sendall(f"HTTP/1.1 {fault} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            return False
        if _EXPECTS.search(head):  # the client waits for a word before it sends the body
            head = _EXPECTS.sub(b"", head)
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        server.sendall(head + rest)
        for data in _pieces(client, _length(head) - len(rest)):
            server.sendall(data)
        answer, first = _head(server)
        client.sendall(answer)
        size = 0 if method == b"HEAD" else _length(answer)
        if size == 0 and method != b"HEAD" and _CHUNKED.search(answer):
            first = _chunks(server, first)
            size = len(first)
        sent = 0
        for data in (first, *_pieces(server, size - len(first))) if not fault else [first[: size // 2]]:
            client.sendall(data)
            sent += len(data)
        if not fault:
            return bool(answer)
        for data in _pieces(server, size // 2 - sent):
            client.sendall(data)
        if fault == "stall":
            self._over.wait()
        if fault == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    def _fault(self, method: bytes) -> str:
        """The harm that this request gets; empty for none."""
        fits = self.faults and (method == b"GET" or self.faults[0].isdigit())
        return self.faults.pop(0) if fits else ""


def _head(connection: socket.socket) -> tuple[bytes, bytes]:
    """The head of a message, and what came of its body with it."""
    seen = b""
    while b"\r\n\r\n" not in seen:
        data = connection.recv(4096)
        if not data:
            return b"", b""
        seen += data
    head, _, rest = seen.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


def _length(head: bytes) -> int:
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(found[1]) if found else 0


def _chunks(connection: socket.socket, first: bytes) -> bytes:
    """The whole of a body that comes in chunks, as it came: that of a long list of objects."""
    seen = first
    while not seen.endswith(b"0\r\n\r\n") and (data := connection.recv(1 << 16)):
        seen += data
    return seen


def _pieces(connection: socket.socket, size: int) -> Iterator[bytes]:
    while size > 0:
        data = connection.recv(min(size, 1 << 16))
        if not data:
            return
        size -= len(data)
        yield data


class Gate:
    """Passes bytes on to ``endpoint`` and back, whatever they are, while it is open; `shut` ends all connections."""

    def __init__(self, endpoint: str) -> None:
        target = urlsplit(endpoint)
        self._target = (str(target.hostname), int(target.port or 80))
        self._held: set[socket.socket] = set()
        self._open = True
        self.bytes = 0  # that went to the server
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def shut(self) -> None:
        """From now on there is no answer."""
        self._open = False
        for held in list(self._held):
            with contextlib.suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)

    def open(self) -> None:
        """From now on there are answers again."""
        self._open = True

    def close(self) -> None:
        """Ends it."""
        self.shut()
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if not self._open:
                client.close()
                continue
            server = socket.create_connection(self._target)
            self._held |= {client, server}
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
                if other.getpeername() == self._target:
                    self.bytes += len(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
