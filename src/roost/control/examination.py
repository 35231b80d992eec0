"""Looks at everything that others stand on, byte by byte: what `roost doctor storage` tells."""

from __future__ import annotations

from roost.control.checkpoints import Checkpoints
from roost.control.records import Records
from roost.errors import RoostError
from roost.host.doctor import Finding
from roost.host.paths import Paths
from roost.model.machine import Machine
from roost.model.snapshot import Snapshot
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
    names |= {
        snapshot.meta.uid: f"snapshot {snapshot.project}/{snapshot.name}" for snapshot in await records.all(Snapshot)
    }
    others += [(checkpoint.base, uid) for uid, checkpoint in kept.items() if checkpoint.base is not None]
    findings = []
    for found in await layers.verify(thorough=True, others=others):
        users = sorted(
            names.get(user, f"{user} ({kept[user].origin})" if user in kept else user) for user in found.users
        )
        standing = f"; on it stand: {', '.join(users)}" if users else ""
        findings.append(Finding(found.file, "missing", f"{found.problem}{standing}", found.fix))
    for uid in kept:
        try:
            await checkpoints.verify(uid)
        except RoostError as error:
            fix = "roost delete snapshot NAME" if names.get(uid) else "it is made anew at the next launch"
            findings.append(
                Finding(names.get(uid, kept[uid].origin), "missing", error.why or error.what, error.fix or fix)
            )
    return findings
