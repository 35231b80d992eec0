"""What is made before a machine's first start besides its disk: the cloud-init disk, and a way in where no agent of ours is."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import NamedTuple

from roost.control.firstboot import user_data
from roost.host import files, sockets
from roost.host.paths import MachineFiles, Paths
from roost.hypervisor import seed
from roost.model.machine import Machine, Publish
from roost.storage.manifest import Manifest


class Prepared(NamedTuple):
    """What a start needs besides the machine's own words: the cloud-init disk, and ports that lead in."""

    seed: Path | None = None
    publish: tuple[Publish, ...] = ()


async def prepare(paths: Paths, machine: Machine, manifest: Manifest) -> Prepared:
    """The cloud-init disk, made once, and for an image without our agent a port and a key for its SSH server. Raises Invalid."""
    where, access = paths.machine(machine.meta.uid), None
    publish: tuple[Publish, ...] = ()
    if manifest.agent != "roost" and machine.spec.network == "user":
        access, entry = await _open_ssh(where)
        publish = (entry,)
    document = user_data(machine, access)
    if document is None:
        return Prepared(None, publish)
    if not where.seed.exists():
        where.seed.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write = partial(seed.write, uid=machine.meta.uid, hostname=machine.spec.hostname or machine.name)
        await asyncio.to_thread(write, where.seed, user_data=document)
    return Prepared(where.seed, publish)


async def _open_ssh(where: MachineFiles) -> tuple[str, Publish]:
    """The public key that the guest must let in, and the port of our loopback that leads to it: another one at every start."""
    from roost.hypervisor.sshagent import make_key  # here, because few machines need it and it takes 20 MiB

    where.keep.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = await asyncio.to_thread(make_key, where.access_key)
    port = sockets.free_port()
    await asyncio.to_thread(files.atomic_write, where.access_port, str(port).encode())
    return key, Publish(host_port=port, guest_port=22)
