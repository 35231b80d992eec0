"""A small real machine whose memory tests can look into: a boot sector that counts in 112 pages at once, under QEMU's sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from roost.guest import binary
from roost.host import jail, processes, sockets, system
from roost.host.jail import Bind, Jail, Limits
from roost.hypervisor import memfd
from roost.hypervisor.memory import VARIABLE, MemoryPort
from roost.hypervisor.plan import SANDBOX

SIZE = 64 << 20
PAGES = range(0x10000, 0x80000, 0x1000)
"""Where the guest counts."""
_SECTOR = bytes.fromhex("6631c0fa6640bb00108ec36626a3000081c3000181fb008072efebe8")
"""cli; eax = 0; forever: eax += 1; for es in 0x1000..0x8000 step 0x100: [es:0] = eax"""
_JAIL_UID = 300077


class Machine:
    """One QEMU, and its monitor; everything here blocks for a moment."""

    def __init__(self, directory: Path, pid: int, monitor: socket.socket) -> None:
        self.directory = directory
        self.pid = pid
        self.port: MemoryPort
        self.dummy = directory / "memory"
        self._monitor = monitor
        self._answers = self._monitor.makefile("rb")
        self._answers.readline()
        self.ask("qmp_capabilities")
        self.ask("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])

    def ask(self, command: str, **arguments: Any) -> Any:
        self._monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        return self._answer()

    def give(self, descriptor: int, name: str) -> None:
        words = json.dumps({"execute": "getfd", "arguments": {"fdname": name}}).encode() + b"\n"
        socket.send_fds(self._monitor, [words], [descriptor])
        self._answer()

    def _answer(self) -> Any:
        while True:
            answer = json.loads(self._answers.readline())
            if "error" in answer:
                raise AssertionError(answer["error"])
            if "return" in answer:
                return answer["return"]

    def counters(self) -> list[int]:
        """What the guest has in each of its pages, as QEMU reads them."""
        text = self.ask("human-monitor-command", **{"command-line": f"xp /{0x70 * 1024}xw 0x10000"})
        values = [
            int(word, 16) for line in text.splitlines() for word in re.findall(r"0x[0-9a-f]{8}", line.split(":", 1)[1])
        ]
        return values[::1024]

    def word(self, address: int) -> int:
        """The 32 bits that the guest has there."""
        text = self.ask("human-monitor-command", **{"command-line": f"xp /1xw {address}"})
        return int(text.split(":")[1], 16)

    async def count_to(self, least: int) -> list[int]:
        """Wait until the guest has counted so far."""
        async with asyncio.timeout(60):
            while (counters := self.counters())[0] < least:  # noqa: ASYNC110 - the guest tells nobody
                await asyncio.sleep(0.02)
        return counters

    async def save(self) -> int:
        """QEMU's device state, in a memfd of the caller's."""
        file = memfd.create("device", 0)
        self.give(file, "state")
        self.ask("migrate", uri="fd:state")
        await self._until("query-migrate", "completed")
        return file

    async def restore(self, device: int) -> None:
        os.lseek(device, 0, os.SEEK_SET)
        self.give(device, "state")
        self.ask("migrate-incoming", uri="fd:state")
        await self._until("query-migrate", "completed")

    async def _until(self, command: str, status: str) -> None:
        async with asyncio.timeout(30):
            while (answer := self.ask(command).get("status")) != status:
                assert answer != "failed"
                await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def qemu(
    directory: Path,
    *,
    incoming: bool = False,
    cpus: int = 1,
    jailed: bool = False,
    preload: bool = True,
    library: Path | None = None,
) -> AsyncIterator[Machine]:
    """A machine under -S (or waiting for a saved state); its port is connected, its memory still in the dummy."""
    library = library or binary(os.uname().machine, "memory.so")
    directory = directory / uuid.uuid4().hex[:8]
    directory.mkdir()
    (directory / "disk").write_bytes(_SECTOR.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    (directory / "memory").touch()
    os.truncate(directory / "memory", SIZE)
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(sockets.listen_unix(directory / name)) for name in ("qmp", "port")]
        argv = _arguments(directory, listeners, incoming, cpus, jailed)
        pid, end = await (
            _start_jailed(directory, argv, listeners, library)
            if jailed
            else _start_bare(argv, listeners, library if preload else None)
        )
    try:
        with sockets.connect_unix(directory / "qmp") as monitor:
            monitor.settimeout(30)
            machine = Machine(directory, pid, monitor)
            machine.port = await MemoryPort.connect(directory / "port", pid)
            try:
                yield machine
            finally:
                await machine.port.close()
    finally:
        await end()


def _arguments(directory: Path, listeners: list[socket.socket], incoming: bool, cpus: int, jailed: bool) -> list[str]:
    memory = {
        "qom-type": "memory-backend-file",
        "id": "mem",
        "size": SIZE,
        "mem-path": str(directory / "memory"),
        "share": True,
    }
    disk = {"driver": "raw", "node-name": "disk", "file": {"driver": "file", "filename": str(directory / "disk")}}
    qmp = 10 if jailed else listeners[0].fileno()
    return [
        *(str(shutil.which("qemu-system-x86_64")), "-nodefaults", "-no-user-config", "-display", "none", "-S"),
        *("-sandbox", SANDBOX, "-machine", "q35,memory-backend=mem,usb=off", "-accel", "tcg,thread=multi,tb-size=32"),
        *("-smp", str(cpus), "-m", f"{SIZE >> 20}M", "-object", json.dumps(memory)),
        *("-blockdev", json.dumps(disk | {"read-only": True}), "-device", "virtio-blk-pci,drive=disk,bootindex=1"),
        *("-chardev", f"socket,id=qmp,fd={qmp},server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
        *(("-incoming", "defer") if incoming else ()),
    ]


async def _start_bare(
    argv: list[str], listeners: list[socket.socket], library: Path | None
) -> tuple[int, Callable[[], Any]]:
    numbers = [listener.fileno() for listener in listeners]
    environ = {"LD_PRELOAD": str(library), VARIABLE: str(numbers[1])} if library else {}
    process = system.start(argv, (system.NOTHING, system.NOTHING, 2), env=environ, pass_fds=numbers)
    return process.pid, process.end


async def _start_jailed(
    directory: Path, argv: list[str], listeners: list[socket.socket], library: Path
) -> tuple[int, Callable[[], Any]]:
    if os.getuid() == 0:
        os.chown(directory / "memory", _JAIL_UID, _JAIL_UID)
    (directory / "disk").chmod(0o444)
    binds = [
        *jail.program_binds(Path(argv[0])),
        Bind(directory / "memory", str(directory / "memory"), writable=True),
        Bind(directory / "disk", str(directory / "disk")),
        Bind(library, str(library)),
    ]
    jailed = await jail.enter(
        Jail(
            f"test-{uuid.uuid4()}",
            argv,
            binds,
            fds={10: listeners[0].fileno(), 11: listeners[1].fileno()},
            env={"LD_PRELOAD": str(library), VARIABLE: "11"},
            limits=Limits(memory=8 * SIZE, file_size=2 * SIZE),
            uid=_JAIL_UID,
            huge_pages=False,
        )
    )

    async def end() -> None:
        processes.signal_pidfd(jailed.pidfd, 9)
        await processes.wait_pidfd(jailed.pidfd)
        os.close(jailed.pidfd)
        if jailed.cgroup is not None:
            await jailed.cgroup.remove()

    return jailed.process.pid, end
