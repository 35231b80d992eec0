"""Network cards of a running QEMU: which are there, plugging them in and out, and their cables."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence

from roost.errors import Conflict, OutcomeUnknown, RoostError, Unavailable
from roost.hypervisor.base import SLOTS, Card
from roost.hypervisor.monitor import Monitor, NoSuchDevice
from roost.hypervisor.plan import NETWORK_CABLE, NETWORK_CARD, back_end, card_device, card_name
from roost.hypervisor.signals import Signals

_NAME = re.compile(r"nic([1-8])")
_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
_RELEASE_SECONDS = 10.0
"""Longest that a guest may take to let go of a card; one under emulation took 0.3 s."""


async def present(monitor: Monitor) -> Mapping[int, str]:
    """The cards' MAC addresses, by their slots."""
    return dict(_slots(await monitor.query_cards()))


def _slots(cards: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    for name, mac in cards.items():
        match = _NAME.fullmatch(name)
        if (match or name == NETWORK_CARD) and _MAC.fullmatch(mac):
            yield (int(match[1]) if match else 0), mac


async def plug_in(monitor: Monitor, card: Card) -> None:
    """Put a card into a free slot. Raises Conflict, Unavailable; then nothing of it is left."""
    if not 1 <= card.slot <= SLOTS or card.tap is None:
        raise Conflict("no card was plugged in", f"slot {card.slot} takes none while the machine runs")
    name = back_end(card.slot)
    with contextlib.suppress(NoSuchDevice):
        await monitor.remove_network(name)  # left by a card that the guest let go of later than it was waited for
    await monitor.add_tap(card.tap, name)
    try:
        await monitor.add_device(card_device(card))
    except RoostError:
        await monitor.remove_network(name)
        raise


async def unplug(monitor: Monitor, signals: Signals, slot: int) -> None:
    """Take a card out. Raises Conflict, Unavailable."""
    if not 1 <= slot <= SLOTS:
        raise Conflict("no card was unplugged", f"the one in slot {slot} is fixed", "stop the machine first")
    with signals.expect("DEVICE_DELETED", {""}, card_name(slot)) as deleted, contextlib.suppress(NoSuchDevice):
        await monitor.remove_device(card_name(slot))
        try:
            await deleted.next(_RELEASE_SECONDS)
        except OutcomeUnknown:
            why = "the guest does not let go of its network card"
            raise Unavailable("no card was unplugged", why, "it is tried again; or restart the machine") from None
    with contextlib.suppress(NoSuchDevice):
        await monitor.remove_network(back_end(slot))


async def set_link(monitor: Monitor, slots: Sequence[int], *, up: bool) -> None:
    """Plug cables in, or pull them."""
    for slot in slots:
        parts = (NETWORK_CARD, NETWORK_CABLE) if slot == 0 and up else (card_name(slot),)
        for part in parts:
            with contextlib.suppress(NoSuchDevice):
                await monitor.set_link(part, up=up)
