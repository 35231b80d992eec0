"""The next step of a machine, for every situation it can be in."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from roost.control.plan import Seen, next_step
from roost.hypervisor.base import Exit
from roost.model.machine import Machine, MachineSpec, MachineStatus, Restore, Source
from roost.model.meta import Meta


def machine(*, deleting: bool = False, **changes: Any) -> Machine:
    """A machine whose spec and status fields are given by name (`phase` belongs to the status, `power` to the spec)."""
    spec = MachineSpec(image="tiny")
    status = MachineStatus(generation=1)
    for name, value in changes.items():
        if name == "wanted_restarts":
            spec = msgspec.structs.replace(spec, restarts=value)
        elif name in MachineStatus.__struct_fields__:
            status = msgspec.structs.replace(status, **{name: value})
        else:
            spec = msgspec.structs.replace(spec, **{name: value})
    return Machine(name="web", meta=Meta(uid="u", deleting="now" if deleting else None), spec=spec, status=status)


WEB = Source(machine="web")
BACK = Restore(snapshot="web.a", serial=1)
ENDED = Exit("the guest shut down", clean=True)

CASES = {
    "a new machine looks for its image": (machine(), Seen(), "find-image"),
    "waits while the image is built": (machine(), Seen(image="building"), "await-image"),
    "gets a disk when the image is there": (machine(), Seen(image="ready"), "create-disk"),
    "starts when the disk is there": (machine(), Seen(image="ready", disk=True), "start"),
    "looks for a template before it boots": (machine(), Seen(image="ready", origin="unknown"), "find-origin"),
    "waits while its template is made": (machine(), Seen(image="ready", origin="making"), "await-origin"),
    "goes on from its template": (machine(), Seen(image="ready", origin="ready", memory=True), "fork"),
    "a copy needs no image of its own": (machine(source=WEB), Seen(origin="unknown"), "find-origin"),
    "a copy goes on from memory": (machine(source=WEB), Seen(origin="ready", memory=True), "fork"),
    "a copy of a disk gets that first": (machine(source=WEB), Seen(origin="ready"), "make-disk"),
    "a copy that is to stay stopped gets its disk": (
        machine(source=WEB, power="stopped"),
        Seen(origin="ready", memory=True),
        "make-disk",
    ),
    "a copy that was born boots from its own disk": (
        machine(source=WEB, born=True),
        Seen(image="ready", disk=True),
        "start",
    ),
    "a copy that could not be made is left alone": (
        machine(source=WEB, power="stopped", phase="failed", generation=1),
        Seen(),
        None,
    ),
    "a restore first makes sure that it can": (machine(restore=BACK), Seen(guest="running"), "find-origin"),
    "a restore gives up what runs": (machine(restore=BACK), Seen(guest="running", origin="ready"), "kill"),
    "a restore goes on from memory": (machine(restore=BACK), Seen(origin="ready", memory=True), "fork"),
    "a restore is done once": (machine(restore=BACK, restored=1, phase="running"), Seen(guest="running"), None),
    "waits for space on the host's disk": (machine(phase="running"), Seen(guest="io-error"), "await-space"),
    "is let run after the start": (machine(phase="starting"), Seen(guest="prelaunch"), "resume"),
    "is shown as running": (machine(phase="starting"), Seen(guest="running"), "show-running"),
    "is greeted when its agent answers": (machine(phase="running"), Seen(guest="running", agent="roost"), "greet"),
    "is left alone when all is well": (
        machine(phase="running", agent="roost"),
        Seen(guest="running", agent="roost"),
        None,
    ),
    "is left alone while its agent is silent": (machine(phase="running"), Seen(guest="running"), None),
    "is paused": (machine(phase="running", power="paused"), Seen(guest="running"), "pause"),
    "started paused stays before its first instruction": (
        machine(power="paused"),
        Seen(guest="prelaunch"),
        "show-paused",
    ),
    "stays paused": (machine(phase="paused", power="paused"), Seen(guest="paused"), None),
    "goes on after a pause": (machine(phase="paused"), Seen(guest="paused"), "resume"),
    "is asked to shut down": (machine(phase="running", power="stopped"), Seen(guest="running"), "press-power"),
    "has time to shut down": (
        machine(phase="stopping", power="stopped"),
        Seen(guest="running", pressed=True),
        "await-end",
    ),
    "is killed when its time is over": (
        machine(phase="stopping", power="stopped"),
        Seen(guest="running", pressed=True, overdue=True),
        "kill",
    ),
    "is woken to hear the power button": (machine(phase="paused", power="stopped"), Seen(guest="paused"), "resume"),
    "is killed when it never ran": (machine(phase="starting", power="stopped"), Seen(guest="prelaunch"), "kill"),
    "is killed after a panic": (machine(phase="running"), Seen(guest="panicked"), "kill"),
    "is killed when panicked and asked to stop": (
        machine(phase="running", power="stopped"),
        Seen(guest="panicked"),
        "kill",
    ),
    "is killed when KVM gave up": (machine(phase="running"), Seen(guest="internal-error"), "kill"),
    "its end is written down": (machine(phase="running"), Seen(exit=ENDED), "settle-exit"),
    "shows that it is stopped": (machine(phase="pending", power="stopped"), Seen(), "show-stopped"),
    "stays stopped": (machine(phase="stopped", power="stopped"), Seen(), None),
    "stays crashed": (machine(phase="crashed", power="stopped"), Seen(), None),
    "starts again when asked after a crash": (machine(phase="crashed"), Seen(image="ready", disk=True), "start"),
    "is ended for a restart": (machine(phase="running", wanted_restarts=1), Seen(guest="running"), "press-power"),
    "starts after the end of a restart": (
        machine(phase="stopped", wanted_restarts=1),
        Seen(image="ready", disk=True),
        "start",
    ),
    "a start that comes while it stops waits for the end": (
        machine(phase="stopping"),
        Seen(guest="running", pressed=True),
        "await-end",
    ),
    "ephemeral is discarded when it stopped": (
        machine(phase="stopped", power="stopped", ephemeral=True),
        Seen(),
        "discard",
    ),
    "deleted while it runs is killed": (
        machine(phase="running", deleting=True),
        Seen(guest="running", files=True),
        "kill",
    ),
    "deleted loses its files": (machine(deleting=True), Seen(files=True), "remove-files"),
    "deleted without files loses its name": (machine(deleting=True), Seen(), "remove-object"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_machine(name: str) -> None:
    wish, seen, step = CASES[name]
    assert next_step(wish, seen) == step
