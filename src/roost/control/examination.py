"""Looks at everything that others stand on, byte by byte: what `roost doctor storage` tells."""

from __future__ import annotations

from collections.abc import Iterable

from roost.control.checkpoints import Checkpoints
from roost.control.pools import Pools
from roost.control.records import Records
from roost.control.volumesources import instant_of
from roost.errors import RoostError
from roost.host.doctor import Finding
from roost.host.paths import Paths
from roost.model.machine import Machine
from roost.model.snapshot import Snapshot
from roost.model.volume import Volume, VolumeSnapshot
from roost.storage.layers import Base, Layers


async def examine(records: Records, layers: Layers, checkpoints: Checkpoints, paths: Paths) -> list[Finding]:
    """What is not as it was written, with the names of what stands on it; and one line for all that is well."""
    machines = await records.all(Machine)
    names = {machine.meta.uid: f"machine {machine.project}/{machine.name}" for machine in machines}
    others = [
        (Base(image=machine.status.image), machine.meta.uid)
        for machine in machines
        if machine.status.image and not paths.machine(machine.meta.uid).base.exists()
        if paths.machine(machine.meta.uid).disk.exists()
    ]
    kept = {**checkpoints.kept("snapshot"), **checkpoints.kept("warm")}
    snapshots = await records.all(Snapshot)
    names |= {snapshot.meta.uid: f"snapshot {snapshot.project}/{snapshot.name}" for snapshot in snapshots}
    others += [(checkpoint.base, uid) for uid, checkpoint in kept.items() if checkpoint.base is not None]
    findings = []
    for found in await layers.verify(thorough=True, others=others):
        users = sorted(
            names.get(user, f"{user} ({kept[user].origin})" if user in kept else user) for user in found.users
        )
        standing = f"; on it stand: {', '.join(users)}" if users else ""
        findings.append(Finding(found.file, "missing", f"{found.problem}{standing}", found.fix))
    for uid in [snapshot.meta.uid for snapshot in snapshots if snapshot.status.phase == "ready"]:
        if uid not in kept:
            manifest = paths.checkpoint(uid).manifest
            problem = f"{manifest} is {'damaged' if uid in checkpoints.damaged else 'gone'}"
            findings.append(
                Finding(names[uid], "missing", problem, f"put back a backup of it, or: {_removal(snapshots, uid)}")
            )
    for uid in kept:
        try:
            await checkpoints.verify(uid)
        except RoostError as error:
            fix = _removal(snapshots, uid) or "it is made anew at the next launch"
            findings.append(Finding(names.get(uid, kept[uid].origin), "missing", error.why or error.what, fix))
    return findings


def _removal(snapshots: Iterable[Snapshot], uid: str) -> str:
    """The command that deletes the snapshot with this uid; "" when there is none."""
    found = next((snapshot for snapshot in snapshots if snapshot.meta.uid == uid), None)
    if found is None:
        return ""
    project = "" if found.project == "default" else f" --project {found.project}"
    return f"roost delete snapshot {found.name}{project}"


async def examine_pools(records: Records, pools: Pools) -> list[Finding]:
    """What is wrong with pools: what they say of themselves, volumes and snapshots whose bytes are gone, and bytes that belong to none."""
    volumes: list[Volume] = await records.all(Volume)
    snapshots: list[VolumeSnapshot] = await records.all(VolumeSnapshot)
    names = {it.meta.uid: f"volume {it.project}/{it.name}" for it in volumes if it.status.size}
    names |= {it.meta.uid: f"snapshot {it.project}/{it.name}" for it in snapshots if it.status.phase == "ready"}
    homes = {it.meta.uid: it.status.pool for it in volumes} | {it.meta.uid: it.status.pool for it in snapshots}
    others = {instant_of(it) for it in volumes} | {it.meta.uid for it in volumes if it.status.target}
    findings = []
    for name, place in pools.places().items():
        async for line in place.verify(thorough=True):
            findings.append(Finding(f"pool {name}", "missing", line, "put back a backup of it"))
        present = (await place.usage()).keys()
        for uid, home in homes.items():
            if home == name and uid in names and uid not in present:
                findings.append(
                    Finding(names[uid], "missing", f"its bytes are not in pool {name}", "put back a backup")
                )
        for uid in sorted(present - homes.keys() - others):
            findings.append(Finding(f"pool {name}", "warning", f"{uid} belongs to no volume and no snapshot", _ORPHAN))
    return findings


_ORPHAN = "an older store may have known it: look what it is, and remove its files by hand"
