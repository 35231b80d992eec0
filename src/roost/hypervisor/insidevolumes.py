"""What a guest is asked to do with its volumes: letting go of one before it is taken away."""

from __future__ import annotations

import asyncio
import contextlib

from roost.errors import Conflict, RoostError, Unavailable
from roost.hypervisor.base import Agent, Command

_SECONDS = 20.0
"""Longest that a guest may take to write what it has for a disk."""
_LONGEST = 2000
_IN_USE = 9

RELEASE = r"""
lun=$1
for device in /sys/bus/scsi/devices/*:0:0:"$lun"; do
    host=${device##*/}
    [ "$(cat "/sys/class/scsi_host/host${host%%:*}/proc_name" 2>/dev/null)" = virtio_scsi ] || continue
    for disk in "$device"/block/*; do
        name=${disk##*/}
        [ -e "$disk/dev" ] || continue
        used=
        for part in "$disk" "$disk/$name"*; do
            [ -e "$part/dev" ] || continue
            number=$(cat "$part/dev")
            while read -r _ _ at _ path rest; do
                case "$at $rest " in "$number "*|*" - "*" /dev/${part##*/} "*) used="$used $path" ;; esac
            done < /proc/self/mountinfo
            while read -r file _; do
                [ "$file" = "/dev/${part##*/}" ] && used="$used swap"
            done < /proc/swaps
            for holder in "$part"/holders/*; do
                [ -e "$holder" ] && used="$used ${holder##*/}"
            done
        done
        [ -z "$used" ] || { echo "$used"; exit 9; }
    done
    sync  # deleting it writes only what its own cache holds, not what the kernel has for one that somebody has open
    echo 1 > "$device/delete"
    [ ! -e "$device" ] || exit 8
done
exit 0
"""
"""For a Linux guest: exits with 9 and what uses the disk, or has it written and gone."""


async def release(agent: Agent, lun: int) -> None:
    """Have the guest write what it has for the disk and let go of it. Nothing for a guest that has no shell to ask. Raises Conflict when
    the guest uses it, Unavailable."""
    try:
        async with asyncio.timeout(_SECONDS):
            code, said = await _run(agent, Command(["/bin/sh", "-c", RELEASE, "release", str(lun)]))
    except TimeoutError:
        why = f"the guest did not write what it has for it within {_SECONDS:g} s"
        raise Unavailable("the volume was not detached", why, "it is tried again") from None
    except (RoostError, OSError):
        return
    if code == _IN_USE:
        why = f"the guest uses it: {said}"
        raise Conflict("the volume was not detached", why, "unmount it in the guest, then again: roost volume detach")
    if code == 8:
        raise Unavailable("the volume was not detached", "the guest does not let go of it", "it is tried again")


async def _run(agent: Agent, command: Command) -> tuple[int, str]:
    """How it ended and the first that it printed, harmless to print."""
    session, said, code = await agent.execute(command), b"", -1
    try:
        async for chunk in session.output():
            code = chunk.code if chunk.stream == "exit" else code
            if chunk.stream == "stdout" and len(said) < _LONGEST:
                said += chunk.data
    finally:
        with contextlib.suppress(RoostError, OSError):
            await session.close()
    words = said[:_LONGEST].decode(errors="replace").split()
    return code, " ".join("".join(letter if letter.isprintable() else "?" for letter in word) for word in words)
