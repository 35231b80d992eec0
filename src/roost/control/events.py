"""The record of what happened: Event objects that remove themselves after a day."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Literal, TypeAlias

from roost.errors import RoostError
from roost.log import get
from roost.model import codec
from roost.model.event import Event, EventSpec
from roost.model.forward import Forward
from roost.model.image import Image
from roost.model.kinds import BY_NAME, key_of
from roost.model.machine import Machine
from roost.model.meta import Meta
from roost.model.network import Network
from roost.model.pool import Pool
from roost.model.program import Program
from roost.model.snapshot import Snapshot
from roost.model.volume import Volume, VolumeSnapshot
from roost.store.base import Store

KEEP = 24 * 3600.0
"""Seconds an event stays."""

_LEASE_SPAN = 3600.0
"""Events of one hour share a lease, so that a busy host does not hold one lease an event."""

About: TypeAlias = Machine | Program | Network | Forward | Image | Snapshot | Pool | Volume | VolumeSnapshot


def now() -> str:
    """The time as every object and event writes it: UTC, RFC 3339, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Recorder:
    """Writes events. A failure to write one is logged and never stops the work it tells of."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lease: int | None = None
        self._lease_began = datetime.min.replace(tzinfo=UTC)

    async def record(
        self, about: About, reason: str, message: str, *, level: Literal["info", "warning", "error"] = "info"
    ) -> None:
        """Note that `reason` happened to an object; `message` is a sentence for people."""
        get(__name__).info(message, kind=about.kind, name=about.name, project=about.project, reason=reason)
        stamp = now()
        name = f"{about.name.replace(':', '-').replace('.', '-').replace('_', '-')}-{secrets.token_hex(6)}"[-80:].strip(
            "-"
        )
        event = Event(
            project=about.project or "system",  # what belongs to the host
            name=name,
            meta=Meta(uid=secrets.token_hex(16), created=stamp, creator="roost"),
            spec=EventSpec(
                about=f"{about.kind}/{about.name}",
                uid=about.meta.uid,
                reason=reason,
                message=message,
                time=stamp,
                level=level,
            ),
        )
        try:
            lease = await self._current_lease()
            await self._store.put(
                key_of(BY_NAME["event"], event.project, name), codec.encode(event), expect=0, lease=lease
            )
        except RoostError as error:
            get(__name__).warning("event not recorded", reason=reason, error=str(error))

    async def _current_lease(self) -> int:
        moment = datetime.now(UTC)
        if self._lease is None or (moment - self._lease_began).total_seconds() > _LEASE_SPAN:
            self._lease = await self._store.grant(KEEP + _LEASE_SPAN)
            self._lease_began = moment
        return self._lease
