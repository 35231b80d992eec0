"""The accelerator verdict: KVM only after it really booted a guest here, else emulation and one line that says why.

A device node proves nothing: /dev/kvm can open, answer every question and still hang each Linux kernel (nested hosts do
that). So the tiny template is started under KVM in the same jail as any machine, and its agent has to answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from roost.errors import RoostError
from roost.host import files
from roost.host.paths import Paths
from roost.hypervisor.base import DirectBoot, Guest, Hypervisor, Launch
from roost.model.facts import HostFacts
from roost.model.meta import MiB
from roost.model.node import Verdict

_SECONDS = 8.0
"""Under KVM the tiny template answers within one second, also on a busy host."""
_MEMORY = 256 * MiB

Boot = Callable[[], Awaitable[tuple[DirectBoot, str]]]
"""Gives the tiny template's kernel and initramfs, and its digest; built at need."""


class Accelerator:
    """Finds the verdict once for each host boot, kernel, QEMU and template; whoever asks meanwhile waits for the same run."""

    def __init__(self, paths: Paths, facts: HostFacts, hypervisor: Hypervisor, boot: Boot) -> None:
        self._paths = paths
        self._facts = facts
        self._hypervisor = hypervisor
        self._boot = boot
        self._asking = asyncio.Lock()

    async def verdict(self) -> Verdict:
        """Which accelerator machines of the host's own architecture get. Takes ten seconds at most, beside building the template."""
        plain = without_trial(self._facts)
        if plain is not None:
            return plain
        async with self._asking:
            try:
                boot, digest = await self._boot()
            except RoostError as error:
                return Verdict(
                    accelerator="tcg", reason=f"KVM could not be tried, for there is no template: {error.what}"
                )
            key = make_key(self._facts, digest, await asyncio.to_thread(_rights, Path("/dev/kvm")))
            cached = await asyncio.to_thread(self._load)
            if cached is not None and cached.key == key:
                return cached
            verdict = msgspec.structs.replace(await self._try(boot), key=key)
            with contextlib.suppress(OSError):
                await asyncio.to_thread(files.atomic_write, self._paths.verdict, msgspec.json.encode(verdict))
            return verdict

    def _load(self) -> Verdict | None:
        try:
            return msgspec.json.decode(files.read_bounded(self._paths.verdict, 64 << 10), type=Verdict)
        except (OSError, RoostError, msgspec.MsgspecError):
            return None

    async def _try(self, boot: DirectBoot) -> Verdict:
        """Boot the tiny template under KVM until its agent answers."""
        began = time.monotonic()
        uid = str(uuid.uuid4())
        machine = self._paths.machine(uid)
        launch = Launch(
            uid=uid,
            arch=self._facts.arch,
            cpus=1,
            memory=_MEMORY,
            accelerator="kvm",
            firmware="direct",
            files=machine,
            direct=boot,
            network="none",
        )
        try:
            await asyncio.to_thread(machine.keep.mkdir, mode=0o700, parents=True)
            async with asyncio.timeout(_SECONDS):
                await self._run(launch)
        except TimeoutError:
            reason = f"a guest under KVM did not answer within {_SECONDS:g} s (a nested host may offer KVM that hangs)"
        except (RoostError, OSError) as error:
            reason = f"a guest under KVM did not start: {_one_line(error)}"
        else:
            return Verdict(accelerator="kvm", reason="a guest under KVM answered", seconds=time.monotonic() - began)
        finally:
            await asyncio.to_thread(files.remove_tree, machine.keep)
        return Verdict(accelerator="tcg", reason=reason, seconds=time.monotonic() - began)

    async def _run(self, launch: Launch) -> None:
        guest = await self._hypervisor.start(launch)
        try:
            await guest.resume()
            await _answer(guest)
        finally:
            await asyncio.shield(guest.kill())


async def _answer(guest: Guest) -> None:
    """Returns when the agent answers; a guest that stops of itself has failed."""
    agent = await guest.agent()
    await agent.ping(_SECONDS)


def _one_line(error: RoostError | OSError) -> str:
    if not isinstance(error, RoostError):
        return str(error)
    return " ".join(f"{error.why or error.what}{'; fix: ' if error.fix else ''}{error.fix}".split())


def without_trial(facts: HostFacts) -> Verdict | None:
    """The verdict where there is nothing to try; None when KVM is worth trying."""
    emulator = facts.emulators.get(facts.arch)
    if emulator is None:
        return Verdict(accelerator="tcg", reason=f"qemu-system-{facts.arch} is not installed")
    if facts.kvm == "denied":
        reason = "/dev/kvm may not be opened; fix: sudo usermod -aG kvm $USER, then log in again"
        return Verdict(accelerator="tcg", reason=reason)
    if facts.kvm == "absent":
        return Verdict(accelerator="tcg", reason="this host has no KVM (no usable /dev/kvm)")
    if "kvm" not in emulator.accelerators:
        return Verdict(accelerator="tcg", reason=f"{emulator.path} is built without KVM")
    return None


def _rights(node: Path) -> str:
    try:
        status = node.stat()
    except OSError:
        return ""
    return f"{status.st_mode:o} {status.st_uid} {status.st_gid}"


def make_key(facts: HostFacts, digest: str, node: str) -> str:
    """What a verdict is good for: this boot of this host with this kernel, this QEMU, this template, and these rights on /dev/kvm."""
    emulator = facts.emulators[facts.arch]
    parts = (facts.boot, facts.kernel, emulator.path, emulator.version, digest, node)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
