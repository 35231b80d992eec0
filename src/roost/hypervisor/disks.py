"""The disks of a running QEMU: covering them, flattening what they stand on, growing them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import resource
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

from roost import log
from roost.errors import Conflict, OutcomeUnknown, RoostError, Unavailable
from roost.host import failpoints
from roost.hypervisor.base import Overlay
from roost.hypervisor.monitor import Drive, Job, Monitor
from roost.hypervisor.signals import Expected, Signals
from roost.model.meta import MiB

_JOB = "roost-flatten-"
_DISK = re.compile(r"disk(\d{1,4})")
FDSET = re.compile(r"/dev/fdset/(\d{1,6})")
_CONCLUDE_SECONDS = 60.0
_LOOK_SECONDS = 1.0
_SPARE_BYTES = 64 * MiB
"""What a disk's file may be longer than a tenth above its size: qcow2's tables. `qemu.py` starts with the same."""


async def writable(monitor: Monitor) -> tuple[Drive, ...]:
    """The disks that take writes, in the order of `Launch.disks`."""
    found = [(int(match[1]), drive) for drive in await monitor.query_drives() if (match := _DISK.fullmatch(drive.id))]
    return tuple(drive for _, drive in sorted(found) if not drive.read_only)


class _Cover(NamedTuple):
    """An overlay that QEMU has opened: its node and the number of its descriptor set."""

    node: str
    set: int


class Covers:
    """Overlays that QEMU has opened and that cover nothing yet."""

    def __init__(self, monitor: Monitor, tops: Sequence[str]) -> None:
        self._monitor = monitor
        self._tops = tops
        self._ready: list[_Cover] = []
        self._on = False

    @classmethod
    @contextlib.asynccontextmanager
    async def prepared(cls, monitor: Monitor, overlays: Sequence[Overlay]) -> AsyncIterator[Covers]:
        """Let QEMU open `overlays` for its writable disks; those that cover nothing at the end are closed again.

        Raises Conflict when there are not as many as disks, Unavailable when QEMU can not open one.
        """
        tops = tuple(drive.node for drive in await writable(monitor)) if overlays else ()
        if len(tops) != len(overlays):
            raise Conflict("the disks can not be covered", f"{len(overlays)} overlays for {len(tops)} disks")
        covers = cls(monitor, tops)
        try:
            for overlay in overlays:
                await covers._open(overlay)
            yield covers
        finally:
            await asyncio.shield(log.spawn_task(covers._tidy(), "overlays"))

    async def put_on(self) -> None:
        """Cover all disks at once, or none. The guest stands still."""
        if self._ready:
            await self._monitor.blockdev_snapshot(
                [(top, cover.node) for top, cover in zip(self._tops, self._ready, strict=True)]
            )
            self._on = True

    async def _open(self, overlay: Overlay) -> None:
        number = 1 + max(await self._monitor.query_fdsets(), default=0)
        self._ready.append(_Cover(overlay.node, number))
        try:
            for mode in (os.O_RDWR, os.O_RDONLY):  # the second for the day when this one is covered itself
                descriptor = os.open(overlay.file, mode | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    await self._monitor.add_fd(descriptor, number, "write" if mode == os.O_RDWR else "read")
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise Unavailable("the disk can not be covered", f"{error.strerror}: {overlay.file}") from None
        below = file_of(overlay.node)
        file = {"driver": "file", "node-name": below, "filename": f"/dev/fdset/{number}", "discard": "unmap"}
        await self._monitor.blockdev_add(file)
        # Without a backing node here: it gets what it covers.
        node = {"driver": "qcow2", "node-name": overlay.node, "file": below, "backing": None, "discard": "unmap"}
        await self._monitor.blockdev_add(node)

    async def _tidy(self) -> None:
        with contextlib.suppress(RoostError):
            if self._on:
                await _forbid_writing(self._monitor, self._tops)
            else:
                await prune(self._monitor)


def file_of(node: str) -> str:
    """The name of the node for a disk's file: QEMU takes 31 characters."""
    name = f"{node}-file"
    return name if len(name) < 32 else f"file-{hashlib.sha256(node.encode()).hexdigest()[:26]}"


async def _forbid_writing(monitor: Monitor, covered: Sequence[str]) -> None:
    """QEMU has opened the covered disks for reading by now; the descriptors that could write go."""
    files = {node.name: node.file for node in await monitor.query_nodes()}
    sets = await monitor.query_fdsets()
    for name in covered:
        match = FDSET.fullmatch(files.get(file_of(name), ""))
        for descriptor in sets.get(int(match[1]), ()) if match else ():
            if descriptor.opaque == "write":
                await monitor.remove_fd(int(match[1]) if match else 0, descriptor.number)


async def prune(monitor: Monitor) -> None:
    """Remove every node that nothing uses, and its descriptors. QEMU refuses for those in use, so asking does no harm."""
    for node in await monitor.query_nodes():  # upper ones come first
        with contextlib.suppress(Unavailable):
            await monitor.blockdev_del(node.name)
    used = {match[1] for node in await monitor.query_nodes() if (match := FDSET.fullmatch(node.file))}
    for number in await monitor.query_fdsets():
        if str(number) not in used:
            with contextlib.suppress(Unavailable):
                await monitor.remove_fd(number)


async def resize(monitor: Monitor, pid: int, size: int) -> None:
    """Grow the first disk, and what QEMU may write to a file. Raises Unavailable."""
    disks = await writable(monitor)
    if not disks:
        raise Unavailable("the disk was not grown", "the machine has none")
    allow_files(pid, size)
    await monitor.block_resize(disks[0].node, size)


def allow_files(pid: int, size: int) -> None:
    """Let QEMU write files for a disk of `size` bytes."""
    most = size * 11 // 10 + _SPARE_BYTES
    with contextlib.suppress(OSError, ValueError):  # where we may not, QEMU has room for a tenth more all the same
        soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, max(most, hard) if hard >= 0 else hard))


class _Way(NamedTuple):
    """The node that is to take all from above the other one, and what its header is to call that."""

    top: str
    lowest: str
    name: str


class Block(NamedTuple):
    """The block layer of one QEMU. Whoever makes nodes or removes those that nothing uses holds `nodes` for it."""

    monitor: Monitor
    signals: Signals
    nodes: asyncio.Lock


async def flatten(block: Block, progress: Callable[[float], None], name: str) -> None:
    """See `base.Guest.flatten`."""
    monitor, signals, nodes = block
    await end_jobs(monitor, signals)
    chain = await _chain(monitor)
    if len(chain) > 2:  # else it stands on one file or none
        await _stream(monitor, signals, _Way(chain[0], chain[-1], name), progress)
        async with nodes:
            await prune(monitor)
    progress(1.0)


async def _stream(monitor: Monitor, signals: Signals, way: _Way, progress: Callable[[float], None]) -> None:
    job = f"{_JOB}{uuid.uuid4().hex[:12]}"
    with signals.expect("JOB_STATUS_CHANGE", frozenset({"pending", "concluded"}), job) as changes:
        try:
            await monitor.block_stream(job, *way)
            await failpoints.reach("flatten.started")
            if await follow(monitor, job, changes, progress) == "pending":
                await failpoints.reach("flatten.pending")
                await monitor.job_finalize(job)
                await changes.next(_CONCLUDE_SECONDS)
            await failpoints.reach("flatten.concluded")
        except BaseException:
            await asyncio.shield(log.spawn_task(give_up(monitor, job, changes), f"give up {job}"))
            raise
    await dismiss(monitor, job)


async def end_jobs(monitor: Monitor, signals: Signals, prefix: str = _JOB) -> None:
    """Give up what an earlier daemon began and left."""
    for left in await monitor.query_jobs():
        if left.name.startswith(prefix):
            with signals.expect("JOB_STATUS_CHANGE", frozenset({"concluded"}), left.name) as changes:
                await give_up(monitor, left.name, changes)


async def follow(monitor: Monitor, job: str, changes: Expected, progress: Callable[[float], None]) -> str:
    """Tell how far a job is until it changes: its new status, of those that `changes` expects."""
    while True:
        with contextlib.suppress(OutcomeUnknown):
            return await changes.next(_LOOK_SECONDS)
        current = await find_job(monitor, job)
        if current is not None and current.total:
            progress(min(1.0, current.done / current.total))


async def give_up(monitor: Monitor, job: str, changes: Expected) -> None:
    """Cancel and forget it, however far it came."""
    with contextlib.suppress(RoostError):
        current = await find_job(monitor, job)
        if current is not None and current.status != "concluded":
            await monitor.job_cancel(job)
            if await changes.next(_CONCLUDE_SECONDS) == "pending":
                await changes.next(_CONCLUDE_SECONDS)
        if current is not None:
            await monitor.job_dismiss(job)


async def dismiss(monitor: Monitor, job: str, what: str = "the disk was not flattened") -> None:
    """Forget a concluded job. Raises Unavailable with why it failed."""
    current = await find_job(monitor, job)
    if current is not None:
        await monitor.job_dismiss(job)
    if current is None or current.error:
        why = current.error if current is not None else "the job is gone"
        raise Unavailable(what, f"QEMU says: {why}", "make room on the disk: roost doctor")


async def find_job(monitor: Monitor, name: str) -> Job | None:
    """A job of that name."""
    return next((job for job in await monitor.query_jobs() if job.name == name), None)


async def _chain(monitor: Monitor) -> list[str]:
    """The first disk's nodes from the top to the lowest."""
    disks = await writable(monitor)
    names = {node.file: node.name for node in await monitor.query_nodes() if node.driver == "qcow2"}
    return [names[file] for file in disks[0].chain if file in names] if disks else []
