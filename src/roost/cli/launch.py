"""The verb launch: a machine from a template, an image, a file or a URL, running and ready for commands."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any

from roost.cli import render
from roost.cli.context import Context
from roost.cli.look import TABLES
from roost.cli.verbs import Command
from roost.cli.waiting import Waiting
from roost.client.blocking.machines import MachineHandle, Machines
from roost.client.names import numbered
from roost.client.progress import running
from roost.client.protocol import path
from roost.errors import Conflict, Invalid, NotFound
from roost.model.codec import plain

MOST = 100
"""Machines that one launch makes at most."""

LONGEST_FILE = 1 << 20


def publish(text: str) -> dict[str, Any]:
    """`[IP:]HOST:GUEST[/udp]` as a Publish. An IPv6 address stands in brackets."""
    ports, _, protocol = text.partition("/")
    address, _, guest = ports.rpartition(":")
    ip, _, host = address.rpartition(":")
    if protocol not in ("", "tcp", "udp") or not (host.isdecimal() and guest.isdecimal()):
        raise ArgumentTypeError(f"{text!r} is not [IP:]HOST:GUEST[/udp], as in 8080:80")
    found = {"host_port": int(host), "guest_port": int(guest), "protocol": protocol or "tcp"}
    return {**found, "host_ip": ip.strip("[]")} if ip else found


def _arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "template",
        metavar="TEMPLATE",
        nargs="?",
        default="tiny",
        help="tiny (default), debian:12, an image, a disk file, a URL",
    )
    add("name", metavar="NAME", nargs="?", help="its name (default: a pleasant one)")
    add("--name", dest="named", metavar="NAME", help="the same, as an option")
    add("--cpus", type=int, metavar="N", help="virtual CPUs (default 1)")
    add("--memory", metavar="SIZE", help="memory, as 512MiB or 2GiB (default 512MiB)")
    add("--disk", metavar="SIZE", help="size of the disk (default: the image's)")
    add("--arch", choices=("x86_64", "aarch64", "riscv64"), help="processor (default: the host's)")
    add("--firmware", choices=("auto", "direct", "bios", "uefi"), help="how it boots (default auto)")
    add(
        "--accelerator", choices=("auto", "kvm", "tcg"), help="hardware or emulation (default: what was proved to work)"
    )
    add(
        "--network",
        metavar="NET[:ADDRESS]",
        action="append",
        help="user (default: one of its own), none, or a network made before; may be repeated",
    )
    add(
        "--publish",
        metavar="[IP:]HOST:GUEST[/udp]",
        type=publish,
        action="append",
        help="lead a port of this host into the machine",
    )
    add(
        "--volume",
        metavar="NAME[=SIZE][:ro]",
        type=mount,
        action="append",
        default=[],
        help="attach a volume (=SIZE: made if it is not there; :ro: only to read); may be repeated",
    )
    _inside(parser)
    _how(parser)


def _inside(parser: ArgumentParser) -> None:
    """What it is told at its first boot."""
    add = parser.add_argument
    add("--hostname", metavar="NAME", help="host name inside (default: its name)")
    add("--ssh-key", metavar="FILE|KEY", action="append", help="public key that may log in as root")
    add("--user", metavar="NAME", action="append", help="user to make, with the SSH keys and sudo")
    add("--user-data", metavar="FILE", help="cloud-init user data (- for standard input)")


def _how(parser: ArgumentParser) -> None:
    """How many come up in which way."""
    add = parser.add_argument
    add("--sha256", metavar="HEX", help="checksum that a URL or file must have")
    add("--label", metavar="K=V", action="append", default=[], help="label")
    add("--count", type=int, metavar="N", default=1, help="make N machines: NAME-1, NAME-2, ...")
    add("--ephemeral", action="store_true", help="delete it when it stops")
    add("--cold", action="store_true", help="boot it, even if a warm template could have it running at once")
    add("--tpm", action="store_true", help="give it a TPM 2.0")
    add("--no-wait", action="store_true", help="return at once, not when it is ready")


def _launch(context: Context, given: Namespace) -> int:
    machines = Machines(context.session, context.project)
    names = names_of(given.name or given.named, given.count)
    made: list[MachineHandle] = []
    with Waiting(quiet=context.quiet) as waiting:
        source, sha256, spec = given.template, given.sha256, spec_of(given)
        check_networks(context, spec)
        for number, name in enumerate(names, 1):
            spec["volumes"] = _mounts(context, given.volume, number if given.count > 1 else None)
            made.append(machines.launch(source, name, wait=False, report=waiting.report, sha256=sha256, **spec))
            source, sha256 = made[0].spec.image, None
            context.goes_on = _goes_on(made)
        _label(context, made, given.label)
        if not given.no_wait:
            machines.wait_for(made, running, waiting.report)
    _tell(context, made, waited=not given.no_wait)
    return 0


def names_of(name: str | None, count: int) -> list[str | None]:
    """The names of `count` machines called `name`; None for "a pleasant one"."""
    if not 1 <= count <= MOST:
        raise Invalid(f"{count} machines can not be launched", f"--count is 1 to {MOST}", "say --count 8")
    if name is None or count == 1:
        return [name] * count
    return [*numbered(name, count)]


def spec_of(given: Namespace) -> dict[str, Any]:
    """The fields of MachineSpec that the options name."""
    keys = [_key(word) for word in given.ssh_key or ()]
    simple = ("cpus", "memory", "disk", "arch", "firmware", "accelerator", "publish", "hostname")
    spec: dict[str, Any] = {name: getattr(given, name) for name in simple}
    spec |= plugs(given.network or [])
    spec["ssh_keys"] = keys or None
    spec["users"] = [{"name": name, "ssh_keys": keys, "sudo": True} for name in given.user or ()] or None
    spec["user_data"] = read(given.user_data) if given.user_data else None
    spec |= {name: getattr(given, name) or None for name in ("ephemeral", "cold", "tpm")}
    return spec


def plugs(words: list[str]) -> dict[str, Any]:
    """What `--network` says: "user", "none", and networks with the address that is wanted there ("lan:10.20.0.5", "lan:fd00::5")."""
    if not words:
        return {}
    ports = []
    for word in words:
        if word not in ("user", "none"):
            network, _, address = word.partition(":")
            ports.append({"network": network, **({"addresses": [address.strip("[]")]} if address else {})})
    return {"network": "user" if "user" in words else "none", "ports": ports or None}


def check_networks(context: Context, spec: dict[str, Any]) -> None:
    """Raises NotFound for a network that is not there: the machine would wait for it."""
    for port in spec.get("ports") or ():
        try:
            context.session.call("GET", path("networks", context.project, port["network"]))
        except NotFound as error:
            raise NotFound(error.what, error.why, f"roost network create {port['network']}") from None


def mount(text: str) -> tuple[str, str, bool]:
    """Name, size ("" for one that is there) and whether it is only read, of `NAME[=SIZE][:ro]`."""
    place, colon, mode = text.partition(":")
    name, equals, size = place.partition("=")
    if not name or mode != ("ro" if colon else "") or (equals and not size):
        raise ArgumentTypeError(f"{text!r} is not NAME[=SIZE][:ro], as in data, data=10GiB or data:ro")
    return name, size, bool(mode)


def _mounts(context: Context, wanted: list[tuple[str, str, bool]], number: int | None) -> list[dict[str, Any]] | None:
    """The volumes of a machine; those with a size are made when they are not there, for each of several machines one: NAME-1, NAME-2, ..."""
    if not wanted:
        return None
    from roost.client.blocking.volumes import Volumes, silent

    volumes, mounts = Volumes(context.session, context.project), []
    for name, size, read_only in wanted:
        own = f"{name}-{number}" if size and number is not None else name
        try:
            found = volumes.make(own, size, wait=False) if size else volumes.get(own)
        except Conflict:
            found = volumes.get(own)
        except NotFound as error:
            raise NotFound(error.what, error.why, f"roost volume create {own} --size 10GiB") from None
        if found.status.phase in ("pending", "creating"):
            volumes.settled(found, silent)
        mounts.append({"volume": own, "read_only": read_only})
    return mounts


def read(name: str) -> str:
    """The text of a file, or of standard input for "-". Raises NotFound, Invalid when it is long or not text."""
    import sys

    try:
        data = sys.stdin.buffer.read(LONGEST_FILE + 1) if name == "-" else _bounded(Path(name))
        if len(data) > LONGEST_FILE:
            raise Invalid(f"{name} was not read", f"it is longer than {LONGEST_FILE} bytes", "make it shorter")
        return data.decode()
    except FileNotFoundError:
        raise NotFound(f"{name} does not exist", fix="check the path") from None
    except UnicodeDecodeError as error:
        raise Invalid(
            f"{name} was not read", f"it is not UTF-8 text: {error.reason} at byte {error.start}", "check the file"
        ) from None


def _bounded(file: Path) -> bytes:
    with open(file, "rb") as source:
        return source.read(LONGEST_FILE + 1)


def _key(word: str) -> str:
    """A public key as it stands, or the content of a file."""
    return word.strip() if word.startswith(("ssh-", "ecdsa-", "sk-")) else read(word).strip()


def _label(context: Context, made: list[MachineHandle], labels: list[str]) -> None:
    pairs = dict(label.partition("=")[::2] for label in labels)
    for machine in made if pairs else ():
        context.session.call("PATCH", path("machines", context.project, machine.name), {"meta": {"labels": pairs}})


def _goes_on(made: list[MachineHandle]) -> str:
    names = " ".join(machine.name for machine in made)
    return f"{names} goes on starting; `roost list` shows it, `roost delete {names}` removes it"


def _tell(context: Context, made: list[MachineHandle], *, waited: bool) -> None:
    if context.output in ("json", "yaml", "name"):
        objects = [plain(machine.object) for machine in made]
        render.show(objects if len(objects) > 1 else objects[0], context.output, TABLES["machine"])
        return
    for warning in sorted(
        {warning for machine in made for warning in machine.status.warnings} if not context.quiet else ()
    ):
        context.warn(warning)
    for machine in made:
        if context.quiet:
            print(machine.name)
            continue
        after = f" after {machine.timing.total:.1f} s" if machine.timing.total else ""
        way = f"{machine.status.accelerator}{', warm' if machine.timing.path == 'warm' else ''}"
        how = f"runs{after} ({way})" if waited else "is starting"
        print(f"{machine.name} {how}; next: roost exec {machine.name} -- uname -a")


COMMANDS = {
    "launch": Command(
        _arguments,
        _launch,
        "roost launch debian:12 web --memory 1GiB --publish 8080:80\nroost launch tiny --count 3 --ephemeral",
    )
}
