"""Downloads against real servers on this host: resumed, verified, bounded, and never to an address that is not public."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from roost.errors import Invalid, Unavailable
from roost.storage import fetch
from roost.storage.fetch import Download, Pace

CONTENT = bytes(range(256)) * 4000
SHA = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
HERE = fetch.parse_allow("127.0.0.1/32")
QUICK = Pace(answer=2.0, window=0.5, window_bytes=64 << 10, total=20.0)
LIMIT = 8 << 20

Answer = Callable[[str, dict[str, str], asyncio.StreamWriter], Awaitable[None]]


def silent(_: float | None) -> None:
    """Nobody wants to know how far it is."""


class Server:
    """An HTTP server that answers each request by a function; it remembers what was asked."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            path = lines[0].split(" ")[1]
            self.requests.append((path, headers))
            await self._answer(path, headers, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def running(answer: Answer, context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(answer)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    port = listener.sockets[0].getsockname()[1]
    server.url = f"https://localhost:{port}" if context else f"http://127.0.0.1:{port}"
    try:
        yield server
    finally:
        listener.close()


def head(status: str, **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{key.replace('_', '-')}: {value}" for key, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode()


async def whole(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
    """A proper server: whole files and ranges."""
    asked = headers.get("range")
    if asked is None:
        writer.write(head("200 OK", Content_Length=len(CONTENT)) + CONTENT)
        return
    start = int(asked.removeprefix("bytes=").rstrip("-"))
    if start >= len(CONTENT):
        writer.write(head("416 Range Not Satisfiable", Content_Length=0))
        return
    part = CONTENT[start:]
    place = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
    writer.write(head("206 Partial Content", Content_Length=len(part), Content_Range=place) + part)


def wish(url: str, **changes: object) -> Download:
    return Download(url, SHA, LIMIT, HERE, QUICK)._replace(**changes)


async def test_a_file_is_downloaded_with_its_progress(tmp_path: Path) -> None:
    seen: list[float | None] = []
    async with running(whole) as server:
        await fetch.download(wish(f"{server.url}/x.img"), tmp_path / "x.part", seen.append)
    assert (tmp_path / "x.part").read_bytes() == CONTENT
    assert seen[-1] == 1.0


async def test_a_download_that_broke_off_goes_on_where_it_stopped(tmp_path: Path) -> None:
    target = tmp_path / "x.part"
    target.write_bytes(CONTENT[:300_000])
    async with running(whole) as server:
        await fetch.download(wish(f"{server.url}/x.img"), target, silent)
    assert target.read_bytes() == CONTENT
    assert [headers.get("range") for _, headers in server.requests] == ["bytes=300000-"]


async def test_a_broken_connection_keeps_what_came(tmp_path: Path) -> None:
    async def broken(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK", Content_Length=len(CONTENT)) + CONTENT[:400_000])

    async with running(broken) as server:
        with pytest.raises(Unavailable, match="was not downloaded"):
            await fetch.download(wish(f"{server.url}/x.img"), tmp_path / "x.part", silent)
    assert 0 < (tmp_path / "x.part").stat().st_size <= 400_000


async def test_a_server_without_ranges_sends_it_all_again(tmp_path: Path) -> None:
    async def no_ranges(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        await whole(path, {}, writer)

    (tmp_path / "x.part").write_bytes(CONTENT[:1000])
    async with running(no_ranges) as server:
        await fetch.download(wish(f"{server.url}/x.img"), tmp_path / "x.part", silent)
    assert (tmp_path / "x.part").read_bytes() == CONTENT


@pytest.mark.fault(60)
async def test_content_with_another_hash_is_refused_and_not_kept(tmp_path: Path) -> None:
    async def swapped(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK", Content_Length=len(CONTENT)) + CONTENT[:-1] + b"!")

    async with running(swapped) as server:
        with pytest.raises(Invalid, match="not what was asked for"):
            await fetch.download(wish(f"{server.url}/x.img"), tmp_path / "x.part", silent)
    assert not (tmp_path / "x.part").exists()


@pytest.mark.fault(60)
@pytest.mark.parametrize("planted", [b"!" * 1000, b"!" * len(CONTENT), CONTENT + b"!"])
async def test_a_partial_file_that_someone_tampered_with_is_fetched_anew(tmp_path: Path, planted: bytes) -> None:
    (tmp_path / "x.part").write_bytes(planted)
    async with running(whole) as server:
        await fetch.download(wish(f"{server.url}/x.img"), tmp_path / "x.part", silent)
    assert (tmp_path / "x.part").read_bytes() == CONTENT


@pytest.mark.fault(60)
async def test_content_behind_a_redirect_is_verified_too(tmp_path: Path) -> None:
    async def mirror(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        body = CONTENT[::-1]
        writer.write(
            head("302 Found", Location="/mirror", Content_Length=0)
            if path == "/x.img"
            else head("200 OK", Content_Length=len(body)) + body
        )

    async with running(mirror) as server:
        with pytest.raises(Invalid, match="not what was asked for"):
            await fetch.download(wish(f"{server.url}/x.img"), tmp_path / "x.part", silent)


async def test_redirects_are_followed_up_to_a_bound(tmp_path: Path) -> None:
    async def round_and_round(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(head("301 Moved", Location=path + "x", Content_Length=0))

    async with running(round_and_round) as server:
        with pytest.raises(Unavailable) as caught:
            await fetch.download(wish(f"{server.url}/x.img"), tmp_path / "x.part", silent)
    assert "redirects" in caught.value.why
    assert len(server.requests) == 6


@pytest.mark.parametrize("told", [True, False])
async def test_more_than_the_limit_is_never_taken(tmp_path: Path, told: bool) -> None:
    async def huge(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK", **({"Content_Length": 1 << 50} if told else {"Connection": "close"})) + CONTENT)

    async with running(huge) as server:
        with pytest.raises(Invalid, match="too large"):
            await fetch.download(wish(f"{server.url}/x.img", limit=100_000), tmp_path / "x.part", silent)
    assert not (tmp_path / "x.part").exists() or (tmp_path / "x.part").stat().st_size <= 100_000


async def test_a_server_that_drips_is_given_up(tmp_path: Path) -> None:
    async def drip(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK", Content_Length=len(CONTENT)))
        for byte in CONTENT:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)

    async with running(drip) as server:
        with pytest.raises(Unavailable) as caught:
            await fetch.download(wish(f"{server.url}/x.img"), tmp_path / "x.part", silent)
    assert "came in" in caught.value.why


async def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    async def mute(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)

    async with running(mute) as server:
        with pytest.raises(Unavailable) as caught:
            await fetch.download(
                wish(f"{server.url}/x.img", pace=QUICK._replace(answer=0.2)), tmp_path / "x.part", silent
            )
    assert "did not answer" in caught.value.why


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"\x00\x01\x02\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000,
        b"",
    ],
)
async def test_what_is_not_http_is_an_ordinary_error(tmp_path: Path, answer: bytes) -> None:
    async def junk(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    async with running(junk) as server:
        with pytest.raises(Unavailable):
            await fetch.download(wish(f"{server.url}/x.img"), tmp_path / "x.part", silent)


@pytest.mark.fault(61)
@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "2130706433", "0177.0.0.1", "0x7f.1", "127.1", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
        "169.254.169.254", "10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "0.0.0.0", "224.0.0.1", "[fe80::1]", "[fd00::1]",
        "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "255.255.255.255",
    ],
)  # fmt: skip
async def test_addresses_that_are_not_public_are_refused_however_written(tmp_path: Path, host: str) -> None:
    with pytest.raises(Invalid) as caught:
        await fetch.download(wish(f"http://{host}:9/x.img", allow=()), tmp_path / "x.part", silent)
    assert "public Internet" in caught.value.why
    assert "ROOST_FETCH_ALLOW" in caught.value.fix


@pytest.mark.fault(61)
@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/shadow",
        "ftp://x/y",
        "gopher://127.0.0.1/",
        "http://u:p@x/y",
        "http:///x",
        "http://a b/",
        "http://x:99999/",
    ],
)
async def test_other_schemes_and_odd_urls_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(Invalid, match="can be downloaded"):
        await fetch.download(wish(url), tmp_path / "x.part", silent)


@pytest.mark.fault(61)
@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.2:{port}/x",
        "file:///etc/shadow",
        "http://[::ffff:127.0.0.2]/",
    ],
)
async def test_a_redirect_does_not_lead_where_the_url_may_not(tmp_path: Path, location: str) -> None:
    async def away(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(head("302 Found", Location=location, Content_Length=0))

    async with running(away) as server:
        with pytest.raises(Invalid):
            await fetch.download(wish(f"{server.url}/x.img"), tmp_path / "x.part", silent)


@pytest.mark.fault(61)
async def test_the_connection_goes_to_the_address_that_was_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that answers with a permitted address first and the loopback later (DNS rebinding) is asked once only."""
    answers = iter(["127.0.0.1", "127.0.0.2", "127.0.0.2"])
    asked: list[str] = []
    loop = asyncio.get_running_loop()
    real = loop.getaddrinfo

    async def fake_dns(host: str, port: int, **options: object) -> object:
        if host != "rebind.example":
            return await real(host, port, **options)
        asked.append(next(answers))
        return await real(asked[-1], port, **options)

    monkeypatch.setattr(loop, "getaddrinfo", fake_dns)
    async with running(whole) as server:
        port = server.url.rpartition(":")[2]
        await fetch.download(wish(f"http://rebind.example:{port}/x.img"), tmp_path / "x.part", silent)
    assert asked == ["127.0.0.1"]


@pytest.mark.fault(61)
async def test_a_name_with_any_private_address_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fake_dns(host: str, port: int, **options: object) -> object:
        return [(2, 1, 6, "", ("127.0.0.1", port)), (2, 1, 6, "", ("10.0.0.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fake_dns)
    with pytest.raises(Invalid, match="is not downloaded"):
        await fetch.download(wish("http://mixed.example/x.img"), tmp_path / "x.part", silent)


def certificate(directory: Path) -> Path:
    """A key and a certificate for localhost that nobody signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = directory / "server.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + signed.public_bytes(Encoding.PEM))
    return path


async def test_a_server_whose_certificate_nobody_trusts_is_refused_and_one_that_is_trusted_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    local = fetch.parse_allow("127.0.0.0/8,::1/128")
    async with running(whole, context) as server:
        there = wish(f"{server.url.replace('localhost', '127.0.0.1')}/x.img", allow=local)
        with pytest.raises(Unavailable) as caught:
            await fetch.download(there, tmp_path / "x.part", silent)
        assert "certificate" in caught.value.why.lower()
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        await fetch.download(wish(f"{server.url}/x.img", allow=local), tmp_path / "x.part", silent)
    assert (tmp_path / "x.part").read_bytes() == CONTENT


def test_public_addresses_and_allowed_networks_may_be_reached() -> None:
    public = [ip_address("151.101.2.132"), ip_address("2a04:4e42::644"), ip_address("64:ff9b::9765:284")]
    assert [address for address in public if not fetch.permitted(address, ())] == []
    assert fetch.permitted(ip_address("10.1.2.3"), [ip_network("10.0.0.0/8")])


def test_an_allow_list_that_is_none_is_refused() -> None:
    with pytest.raises(Invalid, match="ROOST_FETCH_ALLOW"):
        fetch.parse_allow("10.0.0.1/8")


async def test_a_list_of_hashes_is_read_whole_and_bounded() -> None:
    async with running(whole) as server:
        assert await fetch.read(wish(f"{server.url}/SHA256SUMS")) == CONTENT
        with pytest.raises(Invalid, match="too large"):
            await fetch.read(wish(f"{server.url}/SHA256SUMS", limit=1000))


def test_a_list_of_hashes_never_comes_over_http_when_https_was_asked() -> None:
    with pytest.raises(Invalid) as caught:
        fetch.checked_url("http://mirror.example/SHA256SUMS", secure=True)
    assert "from https to http" in caught.value.why


def test_errors_do_not_show_queries_or_passwords() -> None:
    with pytest.raises(Invalid) as caught:
        fetch.checked_url("http://user:hunter2@host.example/x?token=hunter2")
    assert "hunter2" not in str(caught.value)


async def test_an_address_that_does_not_answer_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    real = loop.getaddrinfo

    async def fake_dns(host: str, port: int, **options: object) -> object:
        if host != "both.example":
            return await real(host, port, **options)
        return [(10, 1, 6, "", ("::1", port, 0, 0)), (2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(loop, "getaddrinfo", fake_dns)
    async with running(whole) as server:
        url = f"http://both.example:{server.url.rpartition(':')[2]}/x.img"
        await fetch.download(wish(url, allow=fetch.parse_allow("127.0.0.1/32 ::1/128")), tmp_path / "x.part", silent)
    assert (tmp_path / "x.part").read_bytes() == CONTENT
