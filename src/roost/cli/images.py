"""Verbs for what machines start from: template and image."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, get_args

from roost.cli.context import Context
from roost.cli.delete import delete
from roost.cli.look import TABLES
from roost.cli.options import actions
from roost.cli.render import Table, show
from roost.cli.verbs import Command
from roost.cli.waiting import Waiting
from roost.client.blocking.sources import Sources
from roost.client.progress import failed
from roost.client.protocol import path
from roost.client.results import Progress
from roost.errors import Conflict, NotFound
from roost.model.codec import plain
from roost.model.image import DiskFormat, Image

TEMPLATES = {
    "tiny": "busybox in an initramfs: answers within seconds",
    "debian:12": "Debian 12 with systemd and cloud-init",
    "debian:13": "Debian 13 with systemd and cloud-init",
}
"""What Roost builds itself; other names are those of the catalogue of cloud images."""


FORMATS: tuple[DiskFormat, ...] = get_args(DiskFormat)
SUFFIXES: dict[str, DiskFormat] = {**{f".{format}": format for format in FORMATS}, ".img": "raw"}


def _template_arguments(parser: ArgumentParser) -> None:
    add = actions(parser)
    add("list", "what can be built, and what is")
    build = add("build", "build a template now, so that the first launch need not wait")
    build.add_argument("names", metavar="TEMPLATE", nargs="+")
    build.add_argument("--arch", choices=("x86_64", "aarch64", "riscv64"), help="processor (default: the host's)")
    build.add_argument("--no-wait", action="store_true", help="return at once")
    published = add("publish", "let other projects use it")
    published.add_argument("names", metavar="TEMPLATE", nargs="+")
    published.add_argument("--undo", action="store_true", help="keep it to this project again")
    _deletable(add("delete", "delete what was built"))


def _image_arguments(parser: ArgumentParser) -> None:
    add = actions(parser)
    add("list", "list images")
    shown = add("show", "show all about images")
    shown.add_argument("names", metavar="NAME", nargs="+")
    imported = add(
        "import", "make an image of a disk (qcow2, raw, vmdk, vhd, vhdx, vdi; also in .gz, .xz, .zst, .bz2, tar, OVA)"
    )
    imported.add_argument(
        "source", metavar="FILE|URL", help="a disk of this computer, or an address that the daemon downloads"
    )
    imported.add_argument("--sha256", metavar="HEX", help="checksum that it must have (needed for a URL)")
    imported.add_argument("--name", metavar="NAME", help="name (default: from the file, with a part of its checksum)")
    imported.add_argument("--no-wait", action="store_true", help="return at once")
    exported = add("export", "write an image's disk to a file (qcow2, raw, vmdk, vhd, vhdx, vdi)")
    exported.add_argument("name", metavar="NAME")
    exported.add_argument("file", metavar="FILE", help="a file that does not exist, or a directory")
    exported.add_argument("--format", choices=FORMATS, help="format (default: what the file's suffix says, else qcow2)")
    _deletable(add("delete", "delete images"))


def _deletable(parser: ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+")
    parser.add_argument("--ignore-missing", action="store_true", help="it is fine when it does not exist")
    parser.add_argument("--no-wait", action="store_true", help="return at once")


def _template(context: Context, given: Namespace) -> int:
    acts = {"list": _list_templates, "build": _build, "publish": _publish, "delete": _delete}
    return acts[given.action](context, given)


def _image(context: Context, given: Namespace) -> int:
    acts = {"list": _list_images, "show": _show, "import": _import, "export": _export, "delete": _delete}
    return acts[given.action](context, given)


def _list_templates(context: Context, given: Namespace) -> int:
    built = {
        item["name"]: item for item in context.items("images", project=context.project) if item["spec"]["template"]
    }
    if context.output in ("json", "yaml"):
        show(list(built.values()), context.output, TABLES["image"])
        return 0
    rows = [
        {"name": name, "image": built.get(name)}
        for name in [*TEMPLATES, *(name for name in built if name not in TEMPLATES)]
    ]
    columns = (
        ("NAME", lambda row: row["name"]),
        ("STATE", lambda row: row["image"]["status"]["phase"] if row["image"] else "not built"),
        ("WHAT", lambda row: TEMPLATES.get(row["name"], "")),
    )
    context.show(rows, Table("templates", columns))
    return 0


def _build(context: Context, given: Namespace) -> int:
    images = Sources(context.session, context.project)
    for template in given.names:
        name = _name_on(context, template, given.arch)
        spec = {"template": template, **({"arch": given.arch} if given.arch else {})}
        try:
            image = images.create(name, spec)
        except Conflict:
            image = images.get(name)
        _await(context, images, image, given)
    return 0


def _name_on(context: Context, template: str, arch: str | None) -> str:
    """What `launch` looks for: a template for another processor than the host's carries that in its name."""
    hosts = {node["status"]["arch"] for node in context.items("nodes", project="system")} if arch else set()
    return template if not hosts or arch in hosts else f"{template}-{arch}"


def _publish(context: Context, given: Namespace) -> int:
    for name in given.names:
        Sources(context.session, context.project).change(name, {"published": not given.undo})
        context.say(f"{name} is {'kept to its project' if given.undo else 'published'}")
    return 0


def _delete(context: Context, given: Namespace) -> int:
    return delete(context, "image", list(given.names), given)


def _list_images(context: Context, given: Namespace) -> int:
    context.show(context.items("images", project=context.project), TABLES["image"])
    return 0


def _show(context: Context, given: Namespace) -> int:
    found: list[Any] = [context.session.call("GET", path("images", context.project, name)) for name in given.names]
    show(found if len(found) > 1 else found[0], context.output or "yaml", TABLES["image"])
    return 0


def _import(context: Context, given: Namespace) -> int:
    images = Sources(context.session, context.project)
    with Waiting(quiet=context.quiet) as waiting:
        if given.source.startswith(("http://", "https://")):
            image = images.fetch(given.source, given.sha256, given.name)
        else:
            image = images.upload(Path(given.source), name=given.name, sha256=given.sha256, report=waiting.report)
    _await(context, images, image, given)
    return 0


def _export(context: Context, given: Namespace) -> int:
    target = Path(given.file)
    format = given.format or SUFFIXES.get(target.suffix.lower(), "qcow2")
    if target.is_dir():
        target /= f"{given.name.replace(':', '-')}.{format}"
    if target.exists():
        raise Conflict(f"{target} was not written", "it exists", "choose another name, or remove it first")
    with Waiting(quiet=context.quiet) as waiting:
        Sources(context.session, context.project).download(given.name, target, format=format, report=waiting.report)
    context.say(f"{given.name} is in {target}")
    return 0


def _await(context: Context, images: Sources, image: Image, given: Namespace) -> None:
    """Wait until an image is ready, and say so. Raises what kept it from becoming so."""
    context.goes_on = (
        f"{image.name} goes on being made; `roost image list` shows it, `roost image delete {image.name}` stops it"
    )
    with Waiting(quiet=context.quiet) as waiting:
        if not given.no_wait:
            image = ready(images, image, waiting)
    if context.output in ("json", "yaml", "name"):
        show(plain(image), context.output, TABLES["image"])
    else:
        context.say(f"{image.name} is {'being made' if given.no_wait else 'ready'}; next: roost launch {image.name}")


def ready(images: Sources, image: Image, waiting: Waiting) -> Image:
    """The image once it is ready. Raises its error, and NotFound when it was deleted meanwhile."""
    present = False
    for change in images.changes():
        seen = change.value
        if seen is not None and seen.meta.uid == image.meta.uid:
            present = True
            waiting.report(seen.name, Progress(seen.status.progress or seen.status.phase, seen.status.fraction))
            if seen.status.phase == "failed":
                raise failed(seen)
            if seen.status.phase == "ready":
                return seen
        elif (change.synced and not present) or (seen is None and change.name == image.name):
            break
    raise NotFound(f'image "{image.name}" is gone', "it was deleted meanwhile", "roost events")


COMMANDS = {
    "template": Command(_template_arguments, _template, "roost template list\nroost template build debian:12"),
    "image": Command(
        _image_arguments,
        _image,
        "roost image import disk.qcow2 --name base\nroost image import https://example.org/disk.qcow2 --sha256 HEX",
    ),
}
