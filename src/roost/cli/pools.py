"""The verb pool: places where volumes live."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from roost.cli.context import Context
from roost.cli.delete import delete
from roost.cli.look import TABLES
from roost.cli.options import actions
from roost.cli.render import show
from roost.cli.verbs import Command
from roost.cli.waiting import Waiting
from roost.client.blocking.volumes import Pools
from roost.client.durations import seconds
from roost.client.protocol import path
from roost.errors import RoostError
from roost.model.codec import plain


def _arguments(parser: ArgumentParser) -> None:
    add = actions(parser)
    created = add("create", "make a pool; only an admin of the host may")
    created.add_argument("name", metavar="NAME")
    created.add_argument(
        "--type", choices=("directory", "block", "nbd", "ceph"), help="what keeps the bytes (default directory)"
    )
    created.add_argument("--path", metavar="DIRECTORY", help="of type directory: where on this host")
    created.add_argument("--thin-pool", metavar="GROUP/POOL", help="of type block: LVM's names")
    created.add_argument("--server", metavar="HOST:PORT", action="append", help="of types nbd and ceph")
    created.add_argument("--export", metavar="NAME", help="of types nbd and ceph: the export, or Ceph's pool")
    created.add_argument("--user", metavar="NAME", help="of type ceph")
    created.add_argument("--keyring", metavar="FILE", help="of type ceph")
    created.add_argument("--warn", type=int, metavar="PERCENT", help="say so when it is this full (default 80)")
    created.add_argument("--close", type=int, metavar="PERCENT", help="begin nothing new from here on (default 90)")
    created.add_argument(
        "--pause", type=int, metavar="PERCENT", help="machines that write to it stand still from here on (default 97)"
    )
    created.add_argument(
        "--grace", metavar="TIME", help="how long what is deleted stays in the trash (default 1d; 0s: not)"
    )
    add("list", "list pools")
    add("show", "show all about a pool").add_argument("name", metavar="NAME")
    deleted = add("delete", "delete pools that hold no volume")
    deleted.add_argument("names", metavar="NAME", nargs="+")
    deleted.add_argument("--ignore-missing", action="store_true", help="it is fine when it does not exist")
    deleted.add_argument("--no-wait", action="store_true", help="return at once")


def _pool(context: Context, given: Namespace) -> int:
    acts = {"create": _create, "list": _list, "show": _show, "delete": _delete}
    return acts[given.action](context, given)


def _create(context: Context, given: Namespace) -> int:
    fields = ("type", "thin_pool", "export", "user", "keyring", "warn", "close", "pause")
    spec: dict[str, Any] = {name: getattr(given, name) for name in fields}
    spec |= {"servers": given.server, "path": str(Path(given.path).absolute()) if given.path else None}
    if given.grace is not None:
        spec["grace"] = 0.0 if given.grace.rstrip("smhd") == "0" else seconds(given.grace, "grace")
    pools = Pools(context.session)
    pools.create(given.name, {name: value for name, value in spec.items() if value is not None})
    context.goes_on = f"pool {given.name} goes on being made; see it: roost pool show {given.name}"
    with Waiting(quiet=context.quiet):
        try:
            made = pools.wait_until_ready(given.name)
        except RoostError as error:
            error.fix = error.fix or f"roost pool delete {given.name}"
            raise
    if context.output in ("json", "yaml", "name"):
        show(plain(made), context.output, TABLES["pool"])
    else:
        context.say(f"pool {given.name} is made; next: roost volume create NAME --size 10GiB --pool {given.name}")
    return 0


def _list(context: Context, given: Namespace) -> int:
    context.show(context.items("pools"), TABLES["pool"])
    return 0


def _show(context: Context, given: Namespace) -> int:
    found = context.session.call("GET", path("pools", given.name))
    show(found, context.output or "yaml", TABLES["pool"])
    return 0


def _delete(context: Context, given: Namespace) -> int:
    return delete(context, "pool", list(given.names), given)


COMMANDS = {
    "pool": Command(
        _arguments,
        _pool,
        "roost pool list\nroost pool create fast --path /mnt/nvme\nroost volume move data fast",
    )
}
