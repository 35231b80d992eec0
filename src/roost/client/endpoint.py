"""Which daemon to talk to: ROOST_HOST, else the system's when it is open to you, else your own."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from roost.config import Config, load
from roost.errors import Forbidden, Invalid, NotStarted, Unavailable
from roost.host.sockets import connect_unix

SYSTEM_SOCKET = Path("/run/roost/api.sock")

UNIT = Path("/run/systemd/units/invocation:roost.service")
"""systemd keeps this link while the unit is active: systemd.exec(5), LogExtraFields= and `journalctl INVOCATION_ID`."""


class Endpoint(NamedTuple):
    """A daemon's socket. `config` is set where the daemon is ours to start; `owners` are the uids it may run as (empty: any)."""

    socket: Path
    config: Config | None = None
    owners: frozenset[int] = frozenset()


def find(host: str | None = None, environ: Mapping[str, str] = os.environ, uid: int | None = None) -> Endpoint:
    """The daemon that `host` (default: the environment) means. Raises Invalid for an address that is not unix:/PATH."""
    uid = os.getuid() if uid is None else uid
    address = host or environ.get("ROOST_HOST")
    if address:
        return Endpoint(_unix(address))
    moved = environ.get("ROOST_RUN") or environ.get("ROOST_STATE")
    if not moved and uid != 0 and os.access(SYSTEM_SOCKET, os.W_OK):
        return Endpoint(SYSTEM_SOCKET, owners=frozenset({0}))
    config = load(environ, uid)
    return Endpoint(config.socket, config, frozenset({0, uid}))


def _unix(address: str) -> Path:
    scheme, _, rest = address.partition(":")
    path = Path("/" + rest.lstrip("/")) if scheme == "unix" and rest else Path(address)
    if not path.is_absolute():
        raise Invalid(
            f"host {address!r} can not be used",
            "only the unix socket of a daemon is spoken to",
            "write unix:/path/to/api.sock",
        )
    return path


def connect(endpoint: Endpoint) -> socket.socket:
    """A connected, non-blocking socket. Raises NotStarted when nobody listens there, Forbidden, Unavailable."""
    what = f"no connection to the daemon at {endpoint.socket}"
    try:
        connection = connect_unix(endpoint.socket)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
        raise NotStarted(what, f"none is running ({error.strerror})", "roost serve") from None
    except PermissionError:
        fix = "ask to become a member of the group roost, or unset ROOST_HOST to use your own daemon"
        raise Forbidden(what, "the socket is not open to you", fix) from None
    except OSError as error:
        raise Unavailable(what, error.strerror or str(error), "roost doctor") from None
    if endpoint.owners and (owner := peer(connection).uid) not in endpoint.owners:
        connection.close()
        raise Forbidden(
            what, f"it belongs to uid {owner}, not to you or root", f"remove {endpoint.socket.parent}, or set ROOST_RUN"
        )
    return connection


class Peer(NamedTuple):
    """Whoever listens on a socket."""

    pid: int
    uid: int


def peer(connection: socket.socket) -> Peer:
    """Who listens: in a world-writable directory the name of a socket proves nothing (SO_PEERCRED, unix(7))."""
    pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(pid, uid)
