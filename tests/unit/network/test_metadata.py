"""What the metadata service answers, without a network: documents, paths, tokens, and what is refused."""

from __future__ import annotations

import json
import random

import pytest

from roost.network.base import Attachment
from roost.network.metadata import Instance, documents
from roost.network.metadata_server import Question, Tokens, answer, find, parse

MAC = "52:54:00:00:00:01"
PORT = Attachment("web", "uid-1", "shop", "lan", MAC, ("10.20.0.5", "fd11::5"), "tap0")
TOLD = documents(Instance("uid-1", "web", ("ssh-x A", "ssh-y B\n"), "#cloud-config\n"), PORT, "shop.internal")


class Clock:
    """A clock that is set."""

    now = 100.0

    def __call__(self) -> float:
        """The time that it was set to."""
        return self.now


def _ask(path: str, tokens: Tokens, **headers: str) -> tuple[str, bytes]:
    said = answer(Question("GET", path, headers), "tap0", TOLD, tokens)
    return said.status[:3], said.body


def test_the_documents_say_who_the_machine_is_and_where() -> None:
    root = "latest/meta-data"
    assert TOLD[f"{root}/instance-id"] == "uid-1"
    assert TOLD[f"{root}/local-hostname"] == "web.shop.internal"
    assert (TOLD[f"{root}/local-ipv4"], TOLD[f"{root}/ipv6"]) == ("10.20.0.5", "fd11::5")
    assert TOLD[f"{root}/public-keys/1/openssh-key"] == "ssh-y B"
    assert TOLD["latest/user-data"] == "#cloud-config\n"
    meta, network = json.loads(TOLD["nocloud/meta-data"]), json.loads(TOLD["nocloud/network-config"])
    assert meta == {"instance-id": "uid-1", "local-hostname": "web", "public-keys": ["ssh-x A", "ssh-y B"]}
    assert network["ethernets"]["primary"]["match"] == {"macaddress": MAC}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/latest/meta-data/public-keys", "0=roost-0\n1=roost-1"),
        ("/latest/meta-data/public-keys/0/", "openssh-key"),
        ("//2009-04-04//meta-data/instance-id", "uid-1"),
        ("/latest/meta-data/network/interfaces/macs/", f"{MAC}/"),
        ("/nocloud", "meta-data\nnetwork-config\nuser-data\nvendor-data"),
        ("/latest", "dynamic/\nmeta-data/\nuser-data"),
        ("/latest/meta-data/instance-id/more", None),
        ("/latest/../nocloud/user-data", None),
        ("/late", None),
    ],
)
def test_a_path_leads_to_a_text_or_to_the_names_below_it(path: str, text: str | None) -> None:
    assert find(TOLD, path) == text


def test_a_token_holds_for_its_time_and_for_the_port_that_asked() -> None:
    clock = Clock()
    tokens = Tokens(clock)
    put = Question("PUT", "/latest/api/token", {"x-aws-ec2-metadata-token-ttl-seconds": "60"})
    token = answer(put, "tap0", TOLD, tokens).body.decode()
    header = {"x-aws-ec2-metadata-token": token}
    assert _ask("/latest/meta-data/instance-id", tokens, **header) == ("200", b"uid-1")
    assert answer(Question("GET", "/", header), "tap1", TOLD, tokens).status[:3] == "401"
    assert _ask("/", Tokens(clock), **header)[0] == "401"
    clock.now += 61
    assert _ask("/", tokens, **header)[0] == "401"


@pytest.mark.parametrize("seconds", ["", "0", "21601", "-1", "1e3", "٣", "99999999999"])
def test_a_token_is_not_given_for_no_time_or_too_long(seconds: str) -> None:
    put = Question("PUT", "/latest/api/token", {"x-aws-ec2-metadata-token-ttl-seconds": seconds})
    assert answer(put, "tap0", TOLD, Tokens()).status[:3] == "400"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, "403"),
        ({"via": "1.1 proxy"}, "403"),
        ({"forwarded": "for=10.0.0.1"}, "403"),
        ({"transfer-encoding": "chunked"}, "413"),
        ({"x-aws-ec2-metadata-token": "é-é"}, "401"),
        ({"x-aws-ec2-metadata-token": "-"}, "401"),
        ({"host": "169.254.169.254:80"}, "401"),
    ],
)
def test_what_is_refused(headers: dict[str, str], status: str) -> None:
    assert _ask("/", Tokens(), **headers)[0] == status


@pytest.mark.parametrize(
    "head",
    [
        b"", b"GET", b"GET / HTTP/2", b"GET  / HTTP/1.1", b"GET http://x/ HTTP/1.1", b"GET / HTTP/1.1\r\nno colon",
        b"GET / HTTP/1.1\r\nHost : x", b"GET / HTTP/1.1\r\n folded: x", b"GET / HTTP/1.1\r\nA: 1\r\na: 2", b"\xff\xfe\x00",
    ],
)  # fmt: skip
def test_what_is_no_request_is_none(head: bytes) -> None:
    assert parse(head) is None


def test_any_bytes_are_answered() -> None:
    chance = random.Random(1)
    words = (
        b"GET ",
        b"PUT ",
        b"/latest/api/token",
        b"/",
        b" HTTP/1.1",
        b"\r\n",
        b"Host: ",
        b"\0",
        b"\xff",
        b": ",
        b"?",
        b"%2e",
    )
    tokens = Tokens()
    answers = {
        answer(parse(b"".join(chance.choices(words, k=9))), "tap0", TOLD, tokens).status[:3] for _ in range(3000)
    }
    assert answers <= {"400", "401", "403", "405", "404"}
