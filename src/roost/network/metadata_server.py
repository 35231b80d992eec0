"""The metadata service, a process in a jail: answers guests over HTTP with documents that it was given; stand-alone, of the standard library.

Who asks is told by the interface on which the connection came in, never by an address or a header. A question needs a token, which a PUT
gives (so that a program that can be talked into fetching an address is not talked into this one), is refused when a proxy passed it on, and
is answered with a hop limit of one. Everything about a connection is bounded: bytes, time, how many there are at once.

Usage: metadata_server.py, with descriptor 3 a listening socket (AF_UNIX, SOCK_SEQPACKET). Requests, each answered by one message:

  put NETWORK   with a file of JSON (interface: path: text), and, if it comes too, a TCP socket to be served in place of an earlier one
  drop NETWORK
  list          the names of networks, a line each
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_GATE = 3
_HEAD = 8192
_SECONDS = 5.0
_MOST, _MOST_OF_ONE = 1024, 32
_REST = 0.1
_DOCUMENTS = 256 << 20
_LONGEST_TTL = 21600
_HOST = "169.254.169.254"
_LATEST = ("latest", "2009-04-04", "2016-09-02", "2018-09-24", "2021-03-23")
"""Versions of EC2's tree that clients ask for; here all are the same."""
_SIOCGIFNAME, _IP_PKTINFO, _IP_PKTOPTIONS = 0x8910, 8, 9
_HEADER = struct.calcsize("@Nii")


class Answer(NamedTuple):
    """What goes back."""

    status: str
    body: bytes = b""
    headers: tuple[str, ...] = ()


class Question(NamedTuple):
    """What was asked; names of headers in small letters."""

    method: str
    path: str
    headers: Mapping[str, str]


def parse(head: bytes) -> Question | None:
    """The head of an HTTP request up to its empty line; None for what is none."""
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1.") or not words[1].startswith("/"):
        return None
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not name or name != name.strip() or name in headers:
            return None
        headers[name] = value.strip()
    return Question(words[0], words[1].partition("?")[0], headers)


class Tokens:
    """Tokens that hold for one interface and for so long; nothing is kept of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._key = os.urandom(32)
        self._clock = clock

    def make(self, who: str, seconds: int) -> str:
        """A token for `who`."""
        until = f"{int(self._clock()) + seconds:x}"
        return f"{until}-{self._sign(who, until)}"

    def holds(self, who: str, token: str) -> bool:
        """Whether it was made here for `who` and its time is not over."""
        until, _, signature = token.partition("-")
        if not token.isascii() or not hmac.compare_digest(signature, self._sign(who, until)):
            return False
        return int(until, 16) >= self._clock()

    def _sign(self, who: str, until: str) -> str:
        return hmac.new(self._key, f"{until} {who}".encode(), hashlib.sha256).hexdigest()


def answer(question: Question | None, who: str, documents: Mapping[str, str] | None, tokens: Tokens) -> Answer:
    """What interface `who` gets; `documents` are its own, None for one that nobody knows."""
    refusal = _refusal(question)
    if refusal is not None or question is None:
        return refusal or Answer("400 Bad Request")
    if documents is None:
        return Answer("404 Not Found")
    if question.method == "PUT":
        return _token(question, who, tokens)
    if not tokens.holds(who, question.headers.get("x-aws-ec2-metadata-token", "")):
        return Answer("401 Unauthorized")
    body = find(documents, question.path)
    return Answer("404 Not Found") if body is None else Answer("200 OK", body.encode())


def _refusal(question: Question | None) -> Answer | None:
    if question is None:
        return Answer("400 Bad Request")
    headers = question.headers
    if "x-forwarded-for" in headers or "forwarded" in headers or "via" in headers:
        return Answer("403 Forbidden")
    # A page in a browser of the guest may be led here by a name of its own.
    if headers.get("host", _HOST).removesuffix(":80") != _HOST:
        return Answer("403 Forbidden")
    if question.method not in ("GET", "HEAD", "PUT"):
        return Answer("405 Method Not Allowed", headers=("Allow: GET, HEAD, PUT",))
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        return Answer("413 Content Too Large")
    return None


def _token(question: Question, who: str, tokens: Tokens) -> Answer:
    if question.path.rstrip("/") != "/latest/api/token":
        return Answer("405 Method Not Allowed", headers=("Allow: GET, HEAD",))
    seconds = question.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
    if not (seconds.isascii() and seconds.isdigit() and len(seconds) <= 5 and 1 <= int(seconds) <= _LONGEST_TTL):
        return Answer("400 Bad Request")
    header = f"X-aws-ec2-metadata-token-ttl-seconds: {int(seconds)}"
    return Answer("200 OK", tokens.make(who, int(seconds)).encode(), (header,))


def find(documents: Mapping[str, str], path: str) -> str | None:
    """The text at the path; for a directory its names, a line each."""
    parts = [part for part in path.split("/") if part]
    if not parts:
        return "\n".join((*_LATEST, *sorted({name.split("/")[0] for name in documents} - {"latest"})))
    if parts[0] in _LATEST:
        parts[0] = "latest"
    name = "/".join(parts)
    for exact in (name, f"{name}/"):
        if exact in documents:
            return documents[exact]
    below = {
        rest.partition("/") for full in documents if full.startswith(f"{name}/") for rest in (full[len(name) + 1 :],)
    }
    return "\n".join(sorted({first + slash for first, slash, _ in below})) or None


class Network(NamedTuple):
    """A network that is served."""

    listener: socket.socket
    documents: Mapping[str, Mapping[str, str]]


class Caller:
    """A connection of a guest."""

    def __init__(self, connection: socket.socket, network: str, who: str) -> None:
        self.connection = connection
        self.network = network
        self.who = who
        self.until = time.monotonic() + _SECONDS
        self.head = b""
        self.left = b""
        self.answered = False


def interface(connection: socket.socket) -> str:
    """The name of the interface on which the connection came in, in the socket's own network. Raises OSError."""
    data = connection.getsockopt(socket.IPPROTO_IP, _IP_PKTOPTIONS, 256)
    while len(data) >= _HEADER:
        length, level, kind = struct.unpack_from("@Nii", data)
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            index = struct.unpack_from("@i", data, _HEADER)[0]
            request = fcntl.ioctl(connection, _SIOCGIFNAME, struct.pack("@16si20x", b"", index))
            return bytes(request[:16]).split(b"\0")[0].decode()
        data = data[max(_HEADER, -(-length // 8) * 8) :]
    raise OSError("the kernel does not tell the interface")


class Server:
    """All of it, in one thread."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._networks: dict[str, Network] = {}
        self._callers: dict[int, Caller] = {}
        self._tokens = Tokens()
        self._resting = 0.0
        gate = socket.socket(fileno=_GATE)
        gate.setblocking(False)
        self._selector.register(gate, selectors.EVENT_READ, lambda _: self._take_control(gate))

    def run(self) -> None:
        """Serve for ever."""
        while True:
            for key, events in self._selector.select(self._wait()):
                if self._selector.get_map().get(key.fd) is key:  # else it is gone since the kernel told
                    key.data(events)
            self._end_late()

    def _wait(self) -> float | None:
        times = [caller.until for caller in self._callers.values()]
        times += [self._resting] if self._resting else []
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _end_late(self) -> None:
        now = time.monotonic()
        for caller in [one for one in self._callers.values() if one.until <= now]:
            self._end(caller)
        if self._resting and self._resting <= now:
            self._resting = 0.0
            for name, network in self._networks.items():
                self._watch(name, network.listener)

    # ---- control

    def _take_control(self, gate: socket.socket) -> None:
        with contextlib.suppress(OSError):
            control, _ = gate.accept()
            control.settimeout(_SECONDS)
            self._selector.register(control, selectors.EVENT_READ, lambda _: self._obey(control))

    def _obey(self, control: socket.socket) -> None:
        try:
            request, descriptors, _, _ = socket.recv_fds(control, 256, 2)
        except OSError:
            request, descriptors = b"", []
        if not request:
            self._selector.unregister(control)
            control.close()
            return
        try:
            said = self._do(request.decode().split(" "), list(descriptors))
        except (OSError, ValueError, KeyError) as error:
            said = f"error {error}"
        with contextlib.suppress(OSError):
            control.send(said.encode())

    def _do(self, words: list[str], descriptors: list[int]) -> str:
        if words == ["list"]:
            return "networks\n" + "\n".join(self._networks)
        if len(words) == 2 and words[0] == "drop":
            self._drop(words[1])
        elif len(words) == 2 and words[0] == "put" and descriptors:
            self._put(words[1], *descriptors)
        else:
            return "error no such request"
        return "ok"

    def _put(self, name: str, document: int, listener: int = -1) -> None:
        with os.fdopen(document, "rb") as file:
            file.seek(0)
            documents = json.loads(file.read(_DOCUMENTS))
        if listener >= 0:
            self._drop(name)
            server = socket.socket(fileno=listener)
            server.setblocking(False)
            server.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            server.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
            self._networks[name] = Network(server, documents)
            self._watch(name, server)
        self._networks[name] = self._networks[name]._replace(documents=documents)

    def _watch(self, name: str, listener: socket.socket) -> None:
        self._selector.register(listener, selectors.EVENT_READ, lambda _: self._accept(name, listener))

    def _drop(self, name: str) -> None:
        network = self._networks.pop(name, None)
        if network is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(network.listener)
            network.listener.close()

    # ---- guests

    def _accept(self, name: str, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            if not isinstance(error, BlockingIOError | ConnectionError):
                self._rest()
            return
        connection.setblocking(False)
        try:
            caller = Caller(connection, name, interface(connection))
        except OSError:
            connection.close()
            return
        like = sum(1 for one in self._callers.values() if (one.network, one.who) == (name, caller.who))
        if like >= _MOST_OF_ONE or len(self._callers) >= _MOST:
            connection.close()
            return
        self._callers[connection.fileno()] = caller
        self._selector.register(connection, selectors.EVENT_READ, lambda events: self._attend(caller, events))

    def _rest(self) -> None:
        """There is no descriptor left: nobody is taken in for a while."""
        self._resting = time.monotonic() + _REST
        for network in self._networks.values():
            with contextlib.suppress(KeyError):
                self._selector.unregister(network.listener)

    def _attend(self, caller: Caller, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                self._hear(caller)
            if caller.left:
                caller.left = caller.left[caller.connection.send(caller.left) :]
                self._go_on(caller)
        except BlockingIOError:
            self._go_on(caller)
        except OSError:
            self._end(caller)

    def _hear(self, caller: Caller) -> None:
        data = caller.connection.recv(_HEAD)
        if not data:
            raise ConnectionResetError
        if caller.answered:
            return  # what comes after the question is read so that it does not reset the answer, and forgotten
        caller.head += data
        head, end, _ = caller.head.partition(b"\r\n\r\n")
        if end:
            self._reply(caller, parse(head))
        elif len(caller.head) >= _HEAD:
            self._reply(caller, None)

    def _reply(self, caller: Caller, question: Question | None) -> None:
        network = self._networks.get(caller.network)
        documents = network.documents.get(caller.who) if network is not None else None
        said = answer(question, caller.who, documents, self._tokens)
        lines = (
            f"HTTP/1.1 {said.status}",
            "Content-Type: text/plain; charset=utf-8",
            f"Content-Length: {len(said.body)}",
            "Cache-Control: no-store",
            "Connection: close",
            *said.headers,
        )
        body = b"" if question is not None and question.method == "HEAD" else said.body
        caller.left = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
        caller.head, caller.answered = b"", True

    def _go_on(self, caller: Caller) -> None:
        if caller.answered and not caller.left:
            caller.connection.shutdown(socket.SHUT_WR)  # and wait for the other end, until it is late
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if caller.left else 0)
        self._selector.modify(caller.connection, wanted, lambda events: self._attend(caller, events))

    def _end(self, caller: Caller) -> None:
        if self._callers.pop(caller.connection.fileno(), None) is not None:
            self._selector.unregister(caller.connection)
            caller.connection.close()


def main() -> Any:
    """Be the process."""
    Server().run()


if __name__ == "__main__":
    main()
