"""Downloads from servers nobody vouches for: pinned to addresses of the public Internet, bounded in size and time, hashed before use.

A resumed download sends a plain Range: what decides whether two halves belong together is the hash of the whole, and mirrors behind one
redirector disagree about the validators that If-Range would compare.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from io import BufferedReader
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import NamedTuple, TypeAlias
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import h11

from roost.errors import Invalid, Unavailable
from roost.host import files
from roost.model import size as sizes

Network: TypeAlias = IPv4Network | IPv6Network
Address: TypeAlias = IPv4Address | IPv6Address

PARTIAL = ".part"
"""Ending of a download that is not complete; it may be resumed."""

_NAT64 = ip_network("64:ff9b::/96")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_MAX_HEAD = 64 << 10
_CHUNK = 256 << 10
_MAX_URL = 2048
_DIAL = 10.0
"""Seconds for one of several addresses of a host."""


class Pace(NamedTuple):
    """How patient a download is, in seconds: until a server answers, for each `window_bytes` of the body, and altogether."""

    answer: float = 30.0
    window: float = 60.0
    window_bytes: int = 64 << 10
    total: float = 6 * 3600.0


class Download(NamedTuple):
    """What is wanted: `digest` is "sha256:HEX" or "sha512:HEX", `limit` in bytes, `allow` networks besides the public Internet."""

    url: str
    digest: str
    limit: int
    allow: Sequence[Network] = ()
    pace: Pace = Pace()


def parse_allow(text: str) -> tuple[Network, ...]:
    """The networks of a setting such as "127.0.0.0/8, fd00::/8". Raises Invalid."""
    try:
        return tuple(ip_network(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise Invalid(
            "ROOST_FETCH_ALLOW cannot be used", str(error), "write networks as 192.0.2.0/24,2001:db8::/32"
        ) from None


def permitted(address: Address, allow: Sequence[Network]) -> bool:
    """Whether a download may connect to `address`: one of the public Internet, also when it hides a v4 address, or one in `allow`."""
    if any(address in network for network in allow):
        return True
    inner = _hidden(address)
    if inner is not None:
        return permitted(inner, allow)
    return address.is_global and not address.is_multicast


def _hidden(address: Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 one leads to: mapped, 6to4, Teredo or NAT64."""
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


async def download(wish: Download, target: Path, progress: Callable[[float | None], None]) -> None:
    """Bring `target` to the whole content of the URL, going on from what is there. It is verified in full, whoever wrote it.

    `progress` gets the fraction done, None when the server does not tell the length. Raises Invalid (another hash, too large, a
    forbidden address), Unavailable (the server; then what was received stays for the next attempt).
    """
    try:
        async with asyncio.timeout(wish.pace.total):
            resumed = target.exists() and target.stat().st_size > 0
            await _transfer(wish, target, progress)
            found = await _digest(wish, target)
            if found != wish.digest and resumed:  # what was there did not belong to it: once more from the start
                target.unlink()
                await _transfer(wish, target, progress)
                found = await _digest(wish, target)
            if found == wish.digest:
                return
    except TimeoutError:
        raise _unavailable(wish.url, f"it was not complete after {wish.pace.total:g} s") from None
    target.unlink()
    raise Invalid(
        f"{_shown(wish.url)} is not what was asked for",
        f"its hash is {found}, not {wish.digest}",
        "take the hash from the publisher's page",
    )


async def read(wish: Download) -> bytes:
    """The content of a small file, such as a list of hashes; `digest` is not looked at. A redirect may not leave https for http."""
    content = bytearray()
    async with asyncio.timeout(wish.pace.total), _opened(wish, 0, secure=wish.url.startswith("https:")) as body:
        async for block in body.blocks:
            content += block
    return bytes(content)


class _Body(NamedTuple):
    """An answer whose body is about to come: where it starts in the file, how long the file is, if known."""

    start: int
    length: int | None
    blocks: AsyncIterator[bytes]


async def _transfer(wish: Download, target: Path, progress: Callable[[float | None], None]) -> None:
    offset = target.stat().st_size if target.exists() else 0
    async with _opened(wish, offset, secure=False) as body:
        if body.length is not None:
            _check_space(target, body.length - body.start)
        with target.open("r+b" if body.start else "wb") as file:
            file.seek(body.start)
            file.truncate()
            done = body.start
            async for block in body.blocks:
                await asyncio.to_thread(file.write, block)
                done += len(block)
                progress(done / body.length if body.length else None)


def _at(host: str, address: Address) -> str:
    return host if host.strip("[]") == str(address) else f"{host} leads to {address}, which"


async def _digest(wish: Download, target: Path) -> str:
    """What arrived, by the algorithm of the wish ("sha256:...")."""
    algorithm = wish.digest.partition(":")[0]
    with target.open("rb") as file:
        return f"{algorithm}:{await asyncio.to_thread(_hash, file, algorithm)}"


def _hash(file: BufferedReader, algorithm: str) -> str:
    return hashlib.file_digest(file, algorithm).hexdigest()


def _check_space(target: Path, needed: int) -> None:
    free = files.free_space(target.parent)
    if needed > free:
        raise Unavailable(
            "the download does not fit",
            f"{sizes.show(needed)} are needed, {sizes.show(free)} are free",
            "remove images: roost image delete NAME",
        )


@contextlib.asynccontextmanager
async def _opened(wish: Download, offset: int, *, secure: bool) -> AsyncIterator[_Body]:
    """Follow redirects to an answer with a body. Every hop is resolved, judged and pinned anew."""
    url = wish.url
    for _ in range(_MAX_REDIRECTS + 1):
        parts = checked_url(url, secure=secure)
        async with _connected(wish, parts) as link:
            response = await link.ask(parts, offset, wish.pace)
            if response.status_code in _REDIRECTS:
                url = urljoin(url, _header(response, b"location"))
                continue
            if response.status_code == 416 and offset:
                yield _Body(offset, None, _nothing())  # we have it all, or something else: the hash will tell
                return
            yield _body(wish, link, response, offset)
            return
    raise _unavailable(wish.url, f"it redirects more than {_MAX_REDIRECTS} times")


async def _nothing() -> AsyncIterator[bytes]:
    yield b""


def _body(wish: Download, link: _Link, response: h11.Response, offset: int) -> _Body:
    """Judge an answer that is no redirect. Raises Unavailable, Invalid."""
    start, length = 0, None
    text = _header(response, b"content-length")
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", _header(response, b"content-range"))
        if match is None or int(match[1]) != offset:
            raise _unavailable(wish.url, "the server answered with another part than was asked for")
        start, length = offset, int(match[2])
    elif response.status_code != 200:
        raise _unavailable(wish.url, f"the server answered {response.status_code}")
    elif re.fullmatch(r"\d{1,18}", text):
        length = int(text)
    if _header(response, b"content-encoding") not in ("", "identity"):
        raise _unavailable(wish.url, "the server sent it in a compressed form that was not asked for")
    if length is not None and length > wish.limit:
        raise _too_large(wish)
    return _Body(start, length, link.blocks(wish, start))


class _Link:
    """One connection for one request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._protocol = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)

    async def ask(self, parts: SplitResult, offset: int, pace: Pace) -> h11.Response:
        """Send the request, wait for the head of the answer."""
        headers = [
            ("Host", parts.netloc),
            ("User-Agent", "roost"),
            ("Accept-Encoding", "identity"),
            ("Connection", "close"),
        ]
        if offset:
            headers.append(("Range", f"bytes={offset}-"))
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        request = h11.Request(method="GET", target=quote(path, safe="/%?&=+:@!$'()*,;~-._"), headers=headers)
        try:
            async with asyncio.timeout(pace.answer):
                self._writer.write(self._protocol.send(request) or b"")
                self._writer.write(self._protocol.send(h11.EndOfMessage()) or b"")
                await self._writer.drain()
                while not isinstance(event := await self._next(), h11.Response):
                    if isinstance(event, h11.ConnectionClosed):
                        raise _unavailable(parts.geturl(), "the server closed the connection")
                return event
        except TimeoutError:
            raise _unavailable(parts.geturl(), f"the server did not answer within {pace.answer:g} s") from None

    async def _next(self) -> object:
        while (event := self._protocol.next_event()) is h11.NEED_DATA:
            self._protocol.receive_data(await self._reader.read(_CHUNK))
        return event

    async def blocks(self, wish: Download, done: int) -> AsyncIterator[bytes]:
        """The body in blocks of some hundred KiB. Raises Invalid beyond the limit, Unavailable when it stalls or breaks off."""
        ended = False
        while not ended:
            block = bytearray()
            try:
                async with asyncio.timeout(wish.pace.window):
                    while len(block) < wish.pace.window_bytes and not ended:
                        ended = await self._feed(block, wish)
            except TimeoutError:
                why = f"less than {sizes.show(wish.pace.window_bytes)} came in {wish.pace.window:g} s"
                raise _unavailable(wish.url, why) from None
            done += len(block)
            if done > wish.limit:
                raise _too_large(wish)
            yield bytes(block)

    async def _feed(self, block: bytearray, wish: Download) -> bool:
        """Add what comes next to `block`; whether that was the end."""
        event = await self._next()
        if isinstance(event, h11.Data):
            block += event.data
        elif not isinstance(event, h11.EndOfMessage):
            raise _unavailable(wish.url, "the connection broke off")
        return isinstance(event, h11.EndOfMessage)


@contextlib.asynccontextmanager
async def _connected(wish: Download, parts: SplitResult) -> AsyncIterator[_Link]:
    """A connection to a permitted address of the URL's host; for https the certificate is verified against the name."""
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    context = ssl.create_default_context() if parts.scheme == "https" else None
    try:
        async with asyncio.timeout(wish.pace.answer):
            addresses = await _resolved(host, port, wish)
            reader, writer = await _dial(addresses, port, context, host)
    except (OSError, TimeoutError, UnicodeError) as error:
        raise _unavailable(parts.geturl(), str(error) or "no connection in time") from error
    try:
        yield _Link(reader, writer)
    except (OSError, h11.RemoteProtocolError) as error:
        raise _unavailable(parts.geturl(), str(error)) from error
    finally:
        writer.transport.abort()


async def _dial(
    addresses: Sequence[Address], port: int, context: ssl.SSLContext | None, host: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the first of the addresses that takes it: a host may have IPv6 addresses and we no IPv6. Raises OSError."""
    failure = OSError("the name has no address")
    for address in addresses:
        try:
            async with asyncio.timeout(_DIAL):
                return await asyncio.open_connection(
                    str(address), port, ssl=context, server_hostname=host if context else None, limit=_CHUNK
                )
        except (OSError, TimeoutError) as error:
            failure = OSError(f"{address}: {str(error) or 'no connection in time'}")
    raise failure


async def _resolved(host: str, port: int, wish: Download) -> list[Address]:
    """The addresses of `host`: connections are made to them and to no others, so a second answer of the name does not matter.

    Raises Invalid when any address of the host is not permitted.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    for address in addresses:
        if not permitted(address, wish.allow):
            raise Invalid(
                f"{_shown(wish.url)} is not downloaded",
                f"{_at(host, address)} is not an address of the public Internet",
                "to allow a local mirror set ROOST_FETCH_ALLOW=NETWORK (for example 192.0.2.0/24) for the daemon and restart it",
            )
    return list(dict.fromkeys(addresses))


def checked_url(url: str, *, secure: bool = False) -> SplitResult:
    """The parts of an http or https URL without user and password; https only when `secure`. Raises Invalid."""
    problem = ""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise Invalid(f"{_shown(url)} is not a URL that can be downloaded", str(error)) from None
    if parts.scheme not in ("http", "https"):
        problem = f"its scheme is {parts.scheme or 'missing'}, not http or https"
    elif not parts.hostname or len(url) > _MAX_URL or any(ord(letter) < 33 for letter in url):
        problem = "it names no host, is too long or holds control characters"
    elif parts.username is not None or parts.password is not None:
        problem = "it holds a user name or password"
    elif secure and parts.scheme != "https":
        problem = "it leads from https to http"
    if problem:
        raise Invalid(f"{_shown(url)} is not a URL that can be downloaded", problem, "give an http or https URL")
    return parts


def _header(response: h11.Response, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in response.headers if key == name), "")


def _shown(url: str) -> str:
    """The URL for messages: without query and password, which may be secrets."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:300]
    return "the URL"


def _unavailable(url: str, why: str) -> Unavailable:
    return Unavailable(
        f"{_shown(url)} was not downloaded", why, "try again; what was received so far is kept and verified"
    )


def _too_large(wish: Download) -> Invalid:
    return Invalid(
        f"{_shown(wish.url)} is too large", f"it has more than the {sizes.show(wish.limit)} allowed", "raise spec.limit"
    )
