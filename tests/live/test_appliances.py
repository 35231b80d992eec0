"""Machines that go out as an OVA and as a disk and come back in: booting, with what they wrote on their disk."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.needs import needs_program

pytestmark = [pytest.mark.timeout(300), needs_program("qemu-system-x86_64", "qemu-img")]

MiB = 1 << 20
SECTOR = 512
WRITES_AND_SPEAKS = bytes.fromhex(
    "fc 31c0 8ed8 8ec0"  # cld; ds = es = 0
    "b80103 bb007c b90200 ba8000 cd13"  # BIOS: write this sector to the disk's second one
    "be3477"  # si = text (patched below)
    "ac 84c0 7411 88c4"  # next: al = [si++]; if it is 0 go to end; ah = al
    "bafd03 ec a820 74fb"  # wait until the serial port takes a byte
    "88e0 b2f8 ee ebea"  # send it; go to next
    "f4 ebfd"  # end: hlt
)
"""The code of a boot sector that leaves itself in the disk's second sector and says the text behind it on the first serial port."""


def bootable(path: Path, text: str) -> Path:
    """A raw disk of 1 MiB that writes on itself, says the text and halts."""
    code = WRITES_AND_SPEAKS.replace(b"\xbe\x34\x77", b"\xbe" + (0x7C00 + len(WRITES_AND_SPEAKS)).to_bytes(2, "little"))
    sector = (code + text.encode() + b"\0").ljust(SECTOR - 2, b"\0") + b"\x55\xaa"
    path.write_bytes(sector.ljust(MiB, b"\0"))
    return path


def sectors(disk: Path, scratch: Path, format: str) -> bytes:
    """The first two sectors that a guest sees, as another program reads them."""
    raw = scratch / f"{disk.name}.read"
    subprocess.run(["qemu-img", "convert", "-f", format, "-O", "raw", disk, raw], check=True, capture_output=True)
    return raw.read_bytes()[: 2 * SECTOR]


def says(daemon: Daemon, name: str, text: str) -> bool:
    """Whether a text comes on a machine's console."""
    deadline = time.monotonic() + 60
    while text not in daemon.roost("logs", name, check=False).stdout:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.3)
    return True


@pytest.fixture
def nonce() -> str:
    """Something that nobody else writes."""
    return secrets.token_hex(8)


@pytest.fixture
def origin(daemon: Daemon, tmp_path: Path, nonce: str) -> Iterator[Daemon]:
    """A daemon with the machine `out`, which ran once, and so has more on its disk than its image."""
    daemon.roost(
        "machine",
        "import",
        str(bootable(tmp_path / "first.raw", f"\r\n{nonce} login: ")),
        "--name",
        "out",
        "--no-proof",
    )
    daemon.roost("start", "out", "--no-wait")
    assert says(daemon, "out", nonce)
    refused = daemon.roost("machine", "export", "out", str(tmp_path / "early.ova"), check=False)
    assert refused.returncode == 4
    assert "roost stop out" in refused.stderr
    assert not list(tmp_path.glob("*early*"))
    daemon.roost("stop", "out", "--force")
    yield daemon
    daemon.roost("delete", "out", "again", "--yes", "--ignore-missing", check=False)
    for image in daemon.json("image", "list"):
        if image["spec"]["upload"]:
            daemon.roost("image", "delete", image["name"], "--no-wait")


@pytest.mark.parametrize(("suffix", "firmware"), [("ova", "bios"), ("qcow2", "bios")])
def test_a_machine_goes_out_and_comes_back_booting_with_what_it_wrote(
    origin: Daemon, tmp_path: Path, nonce: str, suffix: str, firmware: str
) -> None:
    taken = tmp_path / f"taken.{suffix}"
    origin.roost("machine", "export", "out", str(taken))
    said = origin.roost("machine", "import", str(taken), "--name", "again").stdout
    assert f"it boots ({firmware}): it asks for a login on its console" in said
    machine = origin.json("show", "again")
    proof = origin.json("image", "show", machine["spec"]["image"])["status"]["proof"]
    assert nonce in proof["console"]
    assert Path(proof["screen"]).read_bytes().startswith(b"\x89PNG")
    assert (machine["spec"]["firmware"], machine["status"]["phase"]) == (firmware, "stopped")
    assert machine["spec"]["memory"] == origin.json("show", "out")["spec"]["memory"]
    back = tmp_path / "back.qcow2"
    origin.roost("machine", "export", "again", str(back))
    first, second = (sectors(back, tmp_path, "qcow2")[at : at + SECTOR] for at in (0, SECTOR))
    assert nonce.encode() in second
    assert first == second
