"""The bytes of volumes in a running QEMU: opened by descriptors, every layer with its driver, and found again by what QEMU says."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from roost import log
from roost.errors import Conflict, Invalid, RoostError, Unavailable
from roost.hypervisor import disks
from roost.hypervisor.base import Medium
from roost.hypervisor.monitor import Monitor

_NODE = "vol-"
_KEY = "-key"
_WRITE, _READ = "write:", "read:"
"""What we say of a descriptor, followed by its file."""
_QCOW2 = b"QFI\xfb"
_LUKS = 2
"""The value of crypt_method (docs/interop/qcow2.txt, big-endian at byte 32) for LUKS."""


class Layer(NamedTuple):
    """One file of a volume that is to be a node: `below` is the node that it stands on."""

    node: str
    file: Path
    format: str
    below: str | None = None
    writable: bool = False


def node_name(uid: str) -> str:
    """A name for the node of a volume; QEMU takes 31 characters."""
    return f"{_NODE}{uid.replace('-', '')[:16]}-{os.urandom(2).hex()}"


def is_ours(node: str) -> bool:
    """Whether it is the name of a volume's node."""
    return node.startswith(_NODE)


async def open_medium(monitor: Monitor, name: str, medium: Medium, *, writable: bool) -> None:
    """Make `name` the node of a medium. Raises Conflict when it is in use, Unavailable, Invalid; then nothing of it is left. The caller
    holds `disks.Block.nodes`."""
    if medium.file is None or (medium.format == "raw" and medium.below):
        raise Invalid("the volume can not be opened", "it is neither a file nor a chain of qcow2 files")
    async with left_clean(monitor), _known(monitor, name, medium.key) as key:
        below: str | None = None
        for depth in range(len(medium.below), 0, -1):
            node = f"{name}-{depth}"
            await _open_layer(monitor, Layer(node, medium.below[depth - 1], "qcow2", below), key)
            below = node
        await _open_layer(monitor, Layer(name, medium.file, medium.format, below, writable), key)


async def open_overlay(monitor: Monitor, layer: Layer, secret: bytes | None) -> None:
    """Make the node of an empty qcow2 file that gets what it stands on when it covers something. Raises as `open_medium`."""
    async with left_clean(monitor), _known(monitor, layer.node, secret) as key:
        await _open_layer(monitor, layer, key)


async def file_of(monitor: Monitor, node: str, pid: int) -> Path | None:
    """The file of this host that a node of the QEMU `pid` writes to, by the name that it has now: an overlay is renamed once it covers."""
    sets = await monitor.query_fdsets()
    number = await _set_of(monitor, node)
    descriptors = [entry.number for entry in sets.get(number or 0, ())]
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/fd/{descriptors[0]}").readlink() if descriptors else None
    return None


async def forbid_writing(monitor: Monitor, node: str) -> None:
    """Have QEMU open a covered node's file for reading only, and close the descriptors by which it could write to it."""
    number = await _set_of(monitor, node)
    if number is None:
        return
    path = {"driver": "file", "node-name": disks.file_of(node), "filename": f"/dev/fdset/{number}"}
    await monitor.blockdev_reopen({**path, "read-only": True, "discard": "unmap"})
    for entry in (await monitor.query_fdsets()).get(number, ()):
        if entry.opaque.startswith(_WRITE):
            await monitor.remove_fd(number, entry.number)


async def forget_keys(monitor: Monitor) -> None:
    """Have QEMU forget the secrets that a daemon left when it died while nodes were opened."""
    for name in await monitor.query_objects():
        if name.startswith(_NODE) and name.endswith(_KEY):
            await monitor.remove_object(name)


async def _set_of(monitor: Monitor, node: str) -> int | None:
    """The number of the set with the descriptors of a node's file."""
    below = disks.file_of(node)
    files = [entry.file for entry in await monitor.query_nodes() if entry.name == below]
    match = disks.FDSET.fullmatch(files[0]) if files else None
    return int(match[1]) if match else None


@contextlib.asynccontextmanager
async def left_clean(monitor: Monitor) -> AsyncIterator[None]:
    """When what is done here fails or is cancelled, the nodes that it has made go. The caller holds `disks.Block.nodes`."""
    try:
        yield
    except BaseException as error:
        await asyncio.shield(log.spawn_task(_prune(monitor), "nodes of a volume"))
        if isinstance(error, RoostError):
            raise _translated(error) from None
        raise


async def _prune(monitor: Monitor) -> None:
    with contextlib.suppress(RoostError):
        await disks.prune(monitor)


@contextlib.asynccontextmanager
async def _known(monitor: Monitor, name: str, secret: bytes | None) -> AsyncIterator[str | None]:
    """QEMU knows the secret by the name that this gives, as long as nodes are opened."""
    if secret is None:
        yield None
        return
    # Another name than the node's, which is the caller's to choose for an overlay.
    key = f"{_NODE}{os.urandom(8).hex()}{_KEY}"
    await monitor.add_secret(key, secret)
    try:
        yield key
    finally:
        await monitor.remove_object(key)


def _translated(error: RoostError) -> RoostError:
    if "Failed to get" in error.why and "lock" in error.why:
        return Conflict("the volume is in use elsewhere", error.why, "detach it there first")
    if "Invalid password" in error.why:
        return Unavailable("the volume can not be opened", "its key is not the one that it is encrypted with")
    return error


async def _open_layer(monitor: Monitor, layer: Layer, key: str | None) -> None:
    # What a guest writes decides nothing: it reaches the first bytes of a raw file.
    locked = key is not None if layer.format == "raw" else await asyncio.to_thread(_is_encrypted, layer)
    if locked and key is None:
        raise Unavailable(
            "the volume can not be opened", f"it is encrypted and its key is not known: {layer.file.name}"
        )
    number = await _hand_over(monitor, layer)
    common = {"read-only": not layer.writable, "discard": "unmap"}
    file = disks.file_of(layer.node)
    path = {"driver": "file", "node-name": file, "filename": f"/dev/fdset/{number}"}
    await monitor.blockdev_add({**path, **common})
    zeroes = {"detect-zeroes": "unmap"} if layer.writable else {}
    node = {"node-name": layer.node, "file": file, **common, **zeroes, **_driver(layer, key if locked else None)}
    await monitor.blockdev_add(node)


def _driver(layer: Layer, key: str | None) -> Mapping[str, Any]:
    if layer.format == "raw":
        return {"driver": "raw"} if key is None else {"driver": "luks", "key-secret": key}
    encrypt = {} if key is None else {"encrypt": {"format": "luks", "key-secret": key}}
    # Without a backing node the answer is "none", whatever the file's own header says.
    return {"driver": "qcow2", "backing": layer.below, **encrypt}


def _is_encrypted(layer: Layer) -> bool:
    """Whether LUKS is in a qcow2 file, as its header says."""
    try:
        descriptor = os.open(layer.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            head = os.pread(descriptor, 36, 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unopened(layer, error) from None
    return head[:4] == _QCOW2 and int.from_bytes(head[32:36], "big") == _LUKS


async def _hand_over(monitor: Monitor, layer: Layer) -> int:
    """Give QEMU the descriptors of a file in a set of their own: its number."""
    number = 1 + max(await monitor.query_fdsets(), default=0)
    # The second for the day when this one is covered.
    modes = ((os.O_RDWR, _WRITE), (os.O_RDONLY, _READ)) if layer.writable else ((os.O_RDONLY, _READ),)
    for mode, word in modes:
        try:
            descriptor = os.open(layer.file, mode | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise _unopened(layer, error) from None
        try:
            await monitor.add_fd(descriptor, number, f"{word}{layer.file}")
        finally:
            os.close(descriptor)
    return number


def _unopened(layer: Layer, error: OSError) -> Unavailable:
    return Unavailable("the volume can not be opened", f"{error.strerror}: {layer.file}", "roost doctor storage")
