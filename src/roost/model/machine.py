"""A machine: virtual hardware plus a whole operating system."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Annotated, Literal

import msgspec

from roost.errors import Problem
from roost.model.meta import IMAGE_NAME, NAME, Arch, Firmware, Meta, MiB, Port, Seconds, Size, Struct, Trouble
from roost.model.network import PortSpec, PortStatus
from roost.model.volume import MOST_VOLUMES, Mount, MountStatus

Phase = Literal["pending", "preparing", "starting", "running", "paused", "stopping", "stopped", "crashed", "failed"]

MOST_PORTS = 4
"""Ports that a machine may have."""


class Publish(Struct, frozen=True, kw_only=True):
    """A port of the host that leads into the machine; on the host's loopback unless told otherwise."""

    host_port: Port
    guest_port: Port
    host_ip: str = "127.0.0.1"
    protocol: Literal["tcp", "udp"] = "tcp"


class User(Struct, frozen=True, kw_only=True):
    """A user the machine gets at its first boot."""

    name: str
    ssh_keys: tuple[str, ...] = ()
    sudo: bool = False


class Source(Struct, frozen=True, kw_only=True):
    """What a machine is a copy of, in the same project: exactly one of a machine and a snapshot.

    Copies that name the same `moment` (a UUID; "" for one of its own) are of one instant of a running machine. Without
    `keep_identity` the copy gets a name, machine-id, host keys and random numbers of its own before its network is plugged in;
    with it, it is an exact copy, whose network stays unplugged. Without `memory` only the disk is copied, and the copy boots.
    """

    machine: str | None = None
    snapshot: str | None = None
    moment: str = ""
    keep_identity: bool = False
    memory: bool = True


class Restore(Struct, frozen=True, kw_only=True):
    """Put the machine back to a snapshot of it; once for each `serial`, which every restore counts up. Without `memory` only the disk is
    put back, and the machine boots from it."""

    snapshot: str
    serial: Annotated[int, msgspec.Meta(ge=1)]
    memory: bool = True


class Schedule(Struct, frozen=True, kw_only=True):
    """Snapshots made by themselves every so often while the machine runs; each is deleted `expire` seconds after it was taken, and
    the oldest when there are more than `keep`."""

    every: Annotated[float, msgspec.Meta(ge=60, le=86_400 * 366, description="seconds")]
    expire: Seconds | None = None
    keep: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None
    memory: bool = True


class MachineSpec(Struct, frozen=True, kw_only=True):
    """What the user wants. A restart bumps `restarts`; a forced stop is a `stop_grace` of 0. `cold` forbids the short way up from a
    warm template. `network` is a user-mode network of its own, `ports` are the networks it is plugged into; what is published leads
    to the first port of a machine without user-mode network. `volumes` are attached and detached while it runs."""

    image: str
    cpus: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    memory: Size = 512 * MiB
    disk: Size | None = None
    arch: Arch | None = None
    firmware: Literal["auto", "direct", "bios", "uefi"] = "auto"
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    power: Literal["running", "paused", "stopped"] = "running"
    restarts: Annotated[int, msgspec.Meta(ge=0)] = 0
    stop_grace: Seconds = 30.0
    network: Literal["user", "none"] = "user"
    ports: tuple[PortSpec, ...] = ()
    volumes: tuple[Mount, ...] = ()
    publish: tuple[Publish, ...] = ()
    hostname: str | None = None
    ssh_keys: tuple[str, ...] = ()
    users: tuple[User, ...] = ()
    user_data: str | None = None
    ephemeral: bool = False
    cold: bool = False
    tpm: bool = False
    source: Source | None = None
    restore: Restore | None = None
    schedule: Schedule | None = None

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with the values, beyond their types."""
        if not IMAGE_NAME.fullmatch(self.image):
            yield Problem("image", f"{self.image!r} is not an image name (small letters, digits, '.', ':', '_', '-')")
        if self.memory < 128 * MiB:
            yield Problem("memory", f"{self.memory} bytes is less than the 128MiB that a Linux kernel needs to boot")
        if self.memory % MiB:
            yield Problem("memory", f"{self.memory} bytes is not a whole number of MiB")
        if self.disk is not None and (self.disk < MiB or self.disk % 512):
            yield Problem("disk", f"{self.disk} bytes is not a disk size: at least 1MiB, in whole 512 byte sectors")
        if self.hostname is not None and not NAME.fullmatch(self.hostname):
            yield Problem("hostname", f"{self.hostname!r} is not a host name")
        if self.user_data is not None and len(self.user_data) > 64 << 10:
            yield Problem("user_data", f"{len(self.user_data)} characters is more than the 65536 allowed")
        if self.source is not None and (self.source.machine is None) == (self.source.snapshot is None):
            yield Problem("source", "name exactly one: machine or snapshot")
        yield from _key_problems("ssh_keys", self.ssh_keys)
        yield from self._port_problems()
        yield from self._volume_problems()
        yield from self._publish_problems()
        yield from self._user_problems()

    def _port_problems(self) -> Iterator[Problem]:
        if len(self.ports) > MOST_PORTS:
            yield Problem("ports", f"are more than {MOST_PORTS}")
        titles = [port.title for port in self.ports]
        for index, port in enumerate(self.ports):
            for problem in port.problems():
                yield Problem(f"ports[{index}].{problem.path}", problem.message)
            if port.title in titles[:index]:
                yield Problem(f"ports[{index}].name", f"{port.title!r} stands twice: give each port a name of its own")

    def _volume_problems(self) -> Iterator[Problem]:
        if len(self.volumes) > MOST_VOLUMES:
            yield Problem("volumes", f"are more than {MOST_VOLUMES}")
        names = [mount.volume for mount in self.volumes]
        for index, name in enumerate(names):
            if name in names[:index]:
                yield Problem(f"volumes[{index}].volume", f"{name!r} stands twice")

    def _publish_problems(self) -> Iterator[Problem]:
        seen: set[tuple[str, int, str]] = set()
        for index, entry in enumerate(self.publish):
            try:
                ip_address(entry.host_ip)
            except ValueError:
                yield Problem(f"publish[{index}].host_ip", f"{entry.host_ip!r} is not an IP address")
            place = (entry.host_ip, entry.host_port, entry.protocol)
            if place in seen:
                yield Problem(f"publish[{index}].host_port", f"{entry.host_port} is published twice")
            seen.add(place)
        if self.publish and self.network == "none" and not self.ports:
            yield Problem("publish", "a machine without network has no port to publish")

    def _user_problems(self) -> Iterator[Problem]:
        for index, user in enumerate(self.users):
            if not NAME.fullmatch(user.name) or len(user.name) > 32 or user.name[0].isdigit():
                yield Problem(f"users[{index}].name", f"{user.name!r} is not a user name")
            yield from _key_problems(f"users[{index}].ssh_keys", user.ssh_keys)


def _key_problems(path: str, keys: tuple[str, ...]) -> Iterator[Problem]:
    for index, key in enumerate(keys):
        if len(key) > 8192 or "\n" in key or "\0" in key or not key.startswith(("ssh-", "ecdsa-", "sk-")):
            yield Problem(f"{path}[{index}]", "is not one line of an OpenSSH public key")


class Process(Struct, frozen=True, kw_only=True):
    """The guest's process, told apart from any later one with the same pid: `start` is field 22 of /proc/PID/stat, `boot` the host's boot id."""

    pid: int
    start: int
    uid: int
    boot: str


class Isolation(Struct, frozen=True, kw_only=True):
    """What stands between the guest and the host. Under `tcg` the jail is the only boundary, so `boundary` never says more than "jail"."""

    boundary: Literal["hardware+jail", "jail", "none"] = "none"
    layers: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    note: str = ""


class Timing(Struct, frozen=True, kw_only=True):
    """Seconds from the request to each step's end, and by which path the machine came up. `pause` is how long its source stood still."""

    path: Literal["cold", "warm", "clone", "restore", ""] = ""
    image: float = 0.0
    disk: float = 0.0
    process: float = 0.0
    agent: float = 0.0
    total: float = 0.0
    pause: float = 0.0


class Traits(Struct, frozen=True, kw_only=True):
    """As what a machine was started: what one that goes on from its memory must have too. `ports` are the slots of the cards in private
    networks, `shape` is the hypervisor's hash over all of it."""

    image: str
    arch: Arch
    cpus: int
    memory: int
    accelerator: Literal["kvm", "tcg"]
    firmware: Firmware
    network: bool
    seed: bool
    tpm: bool
    ports: tuple[int, ...] = ()
    shape: str = ""


class MachineStatus(Struct, frozen=True, kw_only=True):
    """What is. Only the reconciler writes it. `agent` is "none" until something inside answers, "absent" where nothing ever will.

    `born` says that the machine has run: from then on it starts from its own disk. `origin` tells people what it came from
    ("template debian:12", "machine web", "snapshot web.ready"), `cloning` how a running copy of it is made: "in-place" (memory is
    shared, the pause does not depend on its size) or "copy". `restored` is the serial of the last restore that was done. `started_as` is
    what the running machine was started as: where the spec differs, a restart makes it so. `scheduled` is the time (RFC 3339) that the
    last snapshot by schedule stands for.
    """

    phase: Phase = "pending"
    node: str = ""
    generation: int = 0
    restarts: int = 0
    process: Process | None = None
    pid: int | None = None
    accelerator: Literal["kvm", "tcg"] | None = None
    firmware: Firmware | None = None
    started_as: Traits | None = None
    isolation: Isolation = Isolation()
    addresses: tuple[str, ...] = ()
    ports: tuple[PortStatus, ...] = ()
    volumes: tuple[MountStatus, ...] = ()
    image: str = ""
    agent: Literal["none", "absent", "roost", "qemu-ga", "ssh"] = "none"
    configured: bool = False
    born: bool = False
    origin: str = ""
    cloning: Literal["", "in-place", "copy"] = ""
    restored: int = 0
    scheduled: str = ""
    timing: Timing = Timing()
    progress: str = ""
    exit: str = ""
    warnings: tuple[str, ...] = ()
    error: Trouble | None = None


class Machine(Struct, frozen=True, kw_only=True):
    """A system virtual machine."""

    kind: Literal["machine"] = "machine"
    project: str = "default"
    name: str
    meta: Meta = Meta()
    spec: MachineSpec
    status: MachineStatus = MachineStatus()
