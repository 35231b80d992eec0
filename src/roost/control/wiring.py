"""What changes of a machine's ports while it runs: cards are plugged in and out, cables too, and the guest is told of its addresses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TypeAlias

from msgspec.structs import replace

from roost.control.base import Retry
from roost.control.events import Recorder
from roost.control.held import Held
from roost.control.launches import Choice, launch_of, setup_of
from roost.control.networkplan import slots_of
from roost.control.ports import Rewired, shown
from roost.control.preparation import Prepared
from roost.control.world import World
from roost.errors import RoostError
from roost.host import failpoints
from roost.hypervisor.base import Guest, Setup
from roost.model.machine import Machine, Traits
from roost.model.network import PortStatus

Show: TypeAlias = Callable[..., Awaitable[None]]
"""Writes fields of a machine's status: `show(key, phase="running")`."""

STUCK = "the card of port {} can be unplugged at a restart only: roost restart {}"


class Wiring:
    """The step that makes the ports of a running machine those of its spec."""

    def __init__(self, world: World, recorder: Recorder, show: Show) -> None:
        self._world = world
        self._recorder = recorder
        self._show = show

    async def wire(self, key: str, machine: Machine, held: Held) -> None:
        """Unplug what is to go, plug in what is new, change the rest in place. What is to be is written down before it is done: whoever comes
        after a daemon that died half-way finds cards missing, and does it again."""
        guest = held.guest
        if guest is None:
            raise Retry("the process ended meanwhile", after=0)
        before = {port.name: port for port in machine.status.ports}
        plan = await self._world.ports.rewire(machine, guest)
        for slot in plan.gone:
            await guest.unplug(slot)
        if plan.stuck:
            await guest.set_link(up=False, slots=(0,))
        user = tuple(it for it in machine.status.addresses if it not in shown((), machine.status.ports))
        changed = await self._write(key, machine, plan, shown(user, plan.ports))
        await failpoints.reach("machine.wiring")
        await self._world.ports.settle(changed)
        new = [port for port in plan.ports if port.name in plan.new]
        async with self._world.ports.plugged(changed, new) as cards:
            for card in cards:
                await guest.plug_in(card)
        await _set_links(guest, plan.ports, before)
        await self._tell(changed, guest, await self._news(machine, changed))
        held.wired = True
        if plan.new or plan.gone or plan.stuck:
            await self._recorder.record(machine, "Rewired", _text(plan))

    async def _news(self, before: Machine, after: Machine) -> set[str]:
        """The ports of which the guest has to be told."""
        known = {port.name: port for port in before.status.ports}
        news = {port.name for port in after.status.ports if _is_news(port, known.get(port.name))}
        mains = {await self._world.ports.main(it) for it in (before, after)}
        return news | (mains if len(mains) > 1 else set())  # the way into the world moves from one to the other

    async def _write(self, key: str, machine: Machine, plan: Rewired, addresses: tuple[str, ...]) -> Machine:
        """Write the ports down; from now on a memory of the machine has its devices, which is what its shape says."""
        traits = machine.status.started_as
        if traits is not None and (plan.new or plan.gone or plan.stuck):
            slots = tuple(sorted(port.slot for port in plan.ports))
            traits = replace(traits, shape=self._shape(machine, traits, plan), ports=slots)
        warnings = [text for text in machine.status.warnings if not text.startswith(STUCK.partition("{")[0])]
        warnings += [STUCK.format(name, machine.name) for name in plan.stuck]
        changes = {"ports": plan.ports, "addresses": addresses, "started_as": traits, "warnings": tuple(warnings)}
        await self._show(key, **changes)
        return replace(machine, status=replace(machine.status, **changes))

    def _shape(self, machine: Machine, traits: Traits, plan: Rewired) -> str:
        """What a machine must be started as to have the same devices; "" when none that is started would."""
        manifest = self._world.images.find(traits.image)
        if manifest is None or plan.stuck or not _is_straight(machine, plan.ports):
            return ""
        spec = replace(machine.spec, cpus=traits.cpus, memory=traits.memory, tpm=traits.tpm)
        choice = Choice(traits.accelerator, traits.firmware, ())
        seed = self._world.paths.machine(machine.meta.uid).seed if traits.seed else None
        launch = launch_of(replace(machine, spec=spec), manifest, self._world.paths, choice, Prepared(seed), ())
        return self._world.hypervisor.shape(launch)

    async def _tell(self, machine: Machine, guest: Guest, names: Collection[str]) -> None:
        """The guest's agent gives its cards their addresses at once; a guest without one asks by DHCP."""
        cards = await self._world.ports.setups(machine, names) if names else ()
        if not cards or machine.status.agent in ("none", "absent"):
            return
        base = setup_of(machine)
        try:
            await (await guest.agent()).setup(Setup(base.hostname, base.machine_id, cards=cards, plugged=True))
        except RoostError as error:
            await self._recorder.record(
                machine, "NotTold", f"the guest was not told of its addresses: {error}", level="warning"
            )


async def _set_links(guest: Guest, ports: Sequence[PortStatus], before: Mapping[str, PortStatus]) -> None:
    for port in ports:
        old = before.get(port.name)
        if old is None or old.link != port.link:
            await guest.set_link(up=port.link, slots=(port.slot,))


def _is_news(port: PortStatus, before: PortStatus | None) -> bool:
    return before is None or before.addresses != port.addresses or before.slot != port.slot


def _is_straight(machine: Machine, ports: Sequence[PortStatus]) -> bool:
    slots = slots_of(machine)
    return all(slots[port.name] == port.slot for port in ports)


def _text(plan: Rewired) -> str:
    parts = [f"plugged in {', '.join(plan.new)}"] if plan.new else []
    parts += ["unplugged " + ", ".join(f"slot {slot}" for slot in plan.gone)] if plan.gone else []
    parts += [f"{', '.join(plan.stuck)} goes at the next restart"] if plan.stuck else []
    return "; ".join(parts)
