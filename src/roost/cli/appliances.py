"""The verb `machine`: bring machines in from elsewhere, proved to boot, and take them out."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

from roost.cli.context import Context
from roost.cli.look import TABLES
from roost.cli.options import actions
from roost.cli.render import clean, show
from roost.cli.verbs import Command
from roost.cli.waiting import Waiting
from roost.client.blocking.appliances import Appliances, ExportFormat
from roost.client.blocking.machines import Machines
from roost.errors import Conflict
from roost.model.codec import plain
from roost.model.image import Image, Proof

FORMATS: tuple[ExportFormat, ...] = ("ova", "qcow2", "raw", "vmdk", "vhd", "vhdx", "vdi")
SUFFIXES: dict[str, ExportFormat] = {**{f".{format}": format for format in FORMATS}, ".img": "raw"}
SAID = {"booted": "it boots", "unclear": "whether it boots is unclear", "failed": "it did not boot"}


def _arguments(parser: ArgumentParser) -> None:
    add = actions(parser)
    imported = add("import", "make a stopped machine of an OVA, or of a disk in any format, and prove that it boots")
    imported.add_argument("file", metavar="FILE", help="a file of this computer")
    imported.add_argument("--name", metavar="NAME", help="name (default: from the file)")
    imported.add_argument("--no-proof", action="store_true", help="do not boot a copy of it")
    imported.add_argument("--start", action="store_true", help="start it when it is there")
    exported = add("export", "write a stopped machine to a file (ova, qcow2, raw, vmdk, vhd, vhdx, vdi)")
    exported.add_argument("name", metavar="NAME")
    exported.add_argument("file", metavar="FILE", help="a file that does not exist, or a directory")
    exported.add_argument("--format", choices=FORMATS, help="format (default: what the file's suffix says, else ova)")


def _machine(context: Context, given: Namespace) -> int:
    return {"import": _import, "export": _export}[given.action](context, given)


def _import(context: Context, given: Namespace) -> int:
    file = Path(given.file)
    name = given.name or name_of(file)
    with Waiting(quiet=context.quiet) as waiting:
        appliances = Appliances(context.session, context.project)
        machine, image = appliances.bring_in(file, name, prove=not given.no_proof, report=waiting.report)
        if given.start:
            machine.start(report=waiting.report)
    proof = image.status.proof
    if context.output in ("json", "yaml", "name"):
        show(plain(machine.object), context.output, TABLES["machine"])
    else:
        for line in told(image):
            context.say(line)
        context.say(f"{name} is {'running' if given.start else f'stopped; next: roost start {name}'}")
    return 1 if proof is not None and proof.outcome == "failed" and not given.no_proof else 0


def _export(context: Context, given: Namespace) -> int:
    target = Path(given.file)
    format = given.format or SUFFIXES.get(target.suffix.lower(), "ova")
    if target.is_dir():
        target /= f"{given.name}.{format}"
    if target.exists():
        raise Conflict(f"{target} was not written", "it exists", "choose another name, or remove it first")
    with Waiting(quiet=context.quiet) as waiting:
        appliances = Appliances(context.session, context.project)
        appliances.export(given.name, target, format=format, report=waiting.report)
        volumes = Machines(context.session, context.project).get(given.name).spec.volumes
    context.say(f"{given.name} is in {target}")
    if volumes:
        context.warn(f"not in it: the volumes {', '.join(mount.volume for mount in volumes)}")
    return 0


def name_of(file: Path) -> str:
    """A machine's name from a file's."""
    return re.sub(r"[^a-z0-9]+", "-", file.name.partition(".")[0].lower()).strip("-")[:40].strip("-") or "imported"


def told(image: Image) -> list[str]:
    """What is said of an image that was imported: what it came with, and whether it boots."""
    hardware, proof = image.status.hardware, image.status.proof
    notes = [f"note: {clean(note)}" for note in hardware.notes] if hardware is not None else []
    return [*notes, *(_proof(proof) if proof is not None else ())]


def _proof(proof: Proof) -> list[str]:
    lines = [f"tried {it.firmware}: {it.outcome} after {it.seconds:.0f} s, {clean(it.why)}" for it in proof.attempts]
    lines.append(f"{SAID[proof.outcome]} ({proof.firmware}): {clean(proof.why)}")
    lines += [f"suggestion: {clean(proof.suggestion)}"] if proof.suggestion else []
    return [*lines, f"screen: {proof.screen}"] if proof.screen else lines


COMMANDS = {
    "machine": Command(
        _arguments,
        _machine,
        "roost machine import old-server.ova\nroost machine export web web.ova",
    ),
}
