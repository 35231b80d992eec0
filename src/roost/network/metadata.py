"""The metadata service's side of the daemon: what each port is told, and the jail in which it is told (metadata_server.py)."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from roost.host import jail
from roost.host.jail import Bind, Jail, Limits
from roost.model.meta import MiB
from roost.network import metadata_server
from roost.network.base import Attachment
from roost.network.controlled import Controlled

ADDRESS, PORT = "169.254.169.254", 80
_GATE = 3
_SCRIPT = "/metadata_server.py"


class Instance(NamedTuple):
    """What a machine is told of itself, beyond its network."""

    uid: str
    hostname: str
    public_keys: tuple[str, ...] = ()
    user_data: str = ""


@lru_cache(maxsize=1 << 13)
def documents(instance: Instance, port: Attachment, domain: str) -> Mapping[str, str]:
    """All paths and their texts for one port: EC2's tree, and beside it the files of cloud-init's NoCloud. Remembered, as all but a few ports are
    what they were a moment ago."""
    return {path: text for path, text in (*_ec2(instance, port, domain), *_nocloud(instance, port))}


def _ec2(instance: Instance, port: Attachment, domain: str) -> Iterator[tuple[str, str]]:
    name = f"{instance.hostname}.{domain}" if domain else instance.hostname
    four = [text for text in port.addresses if ip_address(ip_interface(text).ip).version == 4]
    six = [text for text in port.addresses if text not in four]
    root, card = "latest/meta-data", f"latest/meta-data/network/interfaces/macs/{port.mac}"
    yield f"{root}/ami-id", "roost"
    yield f"{root}/instance-id", instance.uid
    yield f"{root}/instance-type", "roost"
    yield f"{root}/hostname", name
    yield f"{root}/local-hostname", name
    yield f"{root}/mac", port.mac
    yield f"{root}/placement/availability-zone", "roost"
    yield f"{card}/device-number", "0"
    yield f"{card}/interface-id", port.interface
    yield f"{card}/mac", port.mac
    if four:
        yield f"{root}/local-ipv4", four[0]
        yield f"{card}/local-ipv4s", "\n".join(four)
    if six:
        yield f"{root}/ipv6", six[0]
        yield f"{card}/ipv6s", "\n".join(six)
    if instance.public_keys:
        yield f"{root}/public-keys/", "\n".join(f"{index}=roost-{index}" for index in range(len(instance.public_keys)))
    for index, key in enumerate(instance.public_keys):
        yield f"{root}/public-keys/{index}/openssh-key", key.strip()
    if instance.user_data:
        yield "latest/user-data", instance.user_data
    yield (
        "latest/dynamic/instance-identity/document",
        json.dumps({"instanceId": instance.uid, "privateIp": (four or [""])[0]}),
    )


def _nocloud(instance: Instance, port: Attachment) -> Iterator[tuple[str, str]]:
    """JSON is YAML that nothing can break out of."""
    meta: dict[str, Any] = {"instance-id": instance.uid, "local-hostname": instance.hostname}
    if instance.public_keys:
        meta["public-keys"] = [key.strip() for key in instance.public_keys]
    card = {"match": {"macaddress": port.mac}, "dhcp4": True, "dhcp6": True}
    yield "nocloud/meta-data", json.dumps(meta) + "\n"
    yield "nocloud/network-config", json.dumps({"version": 2, "ethernets": {"primary": card}}) + "\n"
    yield "nocloud/user-data", instance.user_data
    yield "nocloud/vendor-data", ""


def make(name: str, gate: int, account: int) -> Jail:
    """The jail `name` of the service, which needs no network of its own: its sockets are given to it over `gate`."""
    python = Path(sys.executable).resolve()
    library = python.parent.parent / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    script = Path(metadata_server.__file__)
    return Jail(
        name=name,
        argv=(str(python), "-I", "-S", "-B", _SCRIPT),
        binds=(*jail.program_binds(python), Bind(library, str(library)), Bind(script, _SCRIPT)),
        fds={_GATE: gate},
        limits=Limits(memory=512 * MiB, processes=4, files=4096, file_size=0),
        uid=account,
    )


class Metadata(Controlled):
    """A control connection to the service."""

    async def networks(self) -> frozenset[str]:
        """The names of networks that it serves. Raises NotStarted."""
        return frozenset((await self.ask("list"))[0].splitlines()[1:])

    async def put(self, network: str, told: Mapping[str, Mapping[str, str]], listener: socket.socket | None) -> None:
        """Tell it what the interfaces of the network are told, and, once, at which socket. Raises NotStarted."""
        document = os.memfd_create("documents", os.MFD_CLOEXEC)
        with os.fdopen(document, "wb", buffering=0) as file:
            file.write(msgspec.json.encode(told))
            descriptors = [document, *([listener.fileno()] if listener is not None else [])]
            await self.ask(f"put {network}", *descriptors)

    async def drop(self, network: str) -> None:
        """Serve that network no longer. Raises NotStarted."""
        await self.ask(f"drop {network}")


def digest(told: Mapping[str, Mapping[str, str]]) -> str:
    """Differs when anything that is told differs."""
    return base64.b32encode(hashlib.sha256(msgspec.json.encode(told, order="deterministic")).digest()).decode()
