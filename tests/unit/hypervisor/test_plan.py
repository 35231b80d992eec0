"""What every plan holds, whatever a user wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.errors import Invalid, RoostError, Unavailable
from roost.host.paths import MachineFiles
from roost.hypervisor.base import SLOTS, Card, DirectBoot, Disk, Launch, Saved
from roost.hypervisor.plan import SEED_SERIAL, Open, Plan, plan, shape
from roost.model.facts import HostFacts
from roost.model.machine import Publish
from roost.model.meta import GiB, MiB

UID = "7d3f0f5e-2a54-4c0e-9b1e-0b8a5d1c2e3f"
FILES = MachineFiles(Path("/keep"), Path("/live"))
HOST = msgspec.json.decode((Path(__file__).parents[2] / "data/hosts/kvm-hangs.json").read_bytes(), type=HostFacts)
BOOT = DirectBoot(Path("/kernel-file"), Path("/initramfs-file"), "console=ttyS0")
DISK = Disk(FILES.disk, (Path("/image/disk.qcow2"),), serial="root")
LAUNCH = Launch(UID, "x86_64", 1, 512 * MiB, "tcg", "direct", FILES, BOOT, (DISK,), FILES.seed)

HOSTILE = st.text(max_size=60) | st.sampled_from(
    [
        ",",
        "a,b",
        ",file=/etc/passwd",
        "x,driver=file",
        '"',
        '","x":"',
        "\n",
        "\0",
        " ",
        "-sandbox",
        "off",
        "exec:id",
        "%s",
        "/dev/fdset/1",
    ]
)


def values(decided: Plan, option: str) -> list[str]:
    """The arguments of every occurrence of an option."""
    words = decided.argv
    return [words[index + 1] for index, word in enumerate(words[:-1]) if word == option]


def devices(decided: Plan) -> list[dict[str, Any]]:
    """All devices, in order."""
    return [json.loads(value) for value in values(decided, "-device")]


@pytest.mark.fault(58)
@given(command_line=HOSTILE, serial=HOSTILE, path=HOSTILE)
@settings(max_examples=60, deadline=None)
def test_hostile_strings_change_nothing_but_their_own_place(command_line: str, serial: str, path: str) -> None:
    plain = plan(LAUNCH, HOST)
    disk = Disk(Path(f"/keep/{path}"), (Path(f"/image/{path}"),), serial=serial)
    boot = DirectBoot(Path(f"/k{path}"), Path(f"/i{path}"), command_line)
    try:
        decided = plan(LAUNCH._replace(disks=(disk,), direct=boot), HOST)
    except Invalid:
        return
    assert len(decided.argv) == len(plain.argv)
    assert values(decided, "-append")[0] == command_line
    [device] = [entry for entry in devices(decided) if entry.get("id") == "disk0"]
    assert device.pop("serial") == (serial or "roost-0")
    expected = next(entry for entry in devices(plain) if entry.get("id") == "disk0")
    assert device == {name: value for name, value in expected.items() if name != "serial"}
    place = next(i for i, word in enumerate(plain.argv) if '"id":"disk0"' in word)
    rest = [word for i, word in enumerate(decided.argv) if i != place]
    assert [word for word in rest if word != command_line] == [
        word for i, word in enumerate(plain.argv) if i != place and word != BOOT.command_line and word != command_line
    ]


@pytest.mark.fault(58)
@given(uid=HOSTILE)
@settings(max_examples=60, deadline=None)
def test_a_uid_that_is_no_uuid_is_refused(uid: str) -> None:
    with pytest.raises(Invalid):
        plan(LAUNCH._replace(uid=uid), HOST)


def test_no_path_of_a_disk_or_socket_is_an_argument() -> None:
    decided = plan(LAUNCH._replace(firmware="uefi"), HOST)
    own = ("/keep", "/live", "/image", "/usr/share", "/kernel-file", "/initramfs-file")
    memory = next(word for word in decided.argv if "mem-path" in word)  # which no descriptor can stand for
    assert not [word for word in decided.argv[1:] if any(path in word for path in own) and word != memory]


def test_every_layer_of_a_disk_names_its_driver_and_ends_in_no_backing() -> None:
    nodes = [json.loads(value) for value in values(plan(LAUNCH, HOST), "-blockdev")]
    assert all("driver" in node for node in nodes)
    formats = {node["node-name"]: node["backing"] for node in nodes if node["driver"] == "qcow2"}
    assert formats == {"disk0-below1": None, "disk0": "disk0-below1"}


def test_a_chain_of_layers_is_read_only_and_each_names_the_next() -> None:
    below = (Path("/layer/2"), Path("/layer/1"), Path("/image/disk.qcow2"))
    decided = plan(LAUNCH._replace(disks=(DISK._replace(below=below),)), HOST)
    nodes = [json.loads(value) for value in values(decided, "-blockdev")]
    formats = {node["node-name"]: node for node in nodes if node["driver"] == "qcow2"}
    assert [formats[name]["backing"] for name in ("disk0", "disk0-below1", "disk0-below2", "disk0-below3")] == [
        "disk0-below1",
        "disk0-below2",
        "disk0-below3",
        None,
    ]
    assert all(node["read-only"] for name, node in formats.items() if name != "disk0")
    opened = [entry.path for entry in decided.resources if isinstance(entry, Open) and not entry.writable]
    assert opened == [*reversed(below), FILES.disk, FILES.seed]


def test_only_the_machines_own_files_are_writable() -> None:
    decided = plan(LAUNCH, HOST)
    assert [entry.path for entry in decided.resources if isinstance(entry, Open) and entry.writable] == [FILES.disk]
    assert [mount.source for mount in decided.mounts if mount.writable] == [FILES.memory]


OTHER = LAUNCH._replace(
    uid="00000000-0000-4000-8000-000000000001",
    files=MachineFiles(Path("/other"), Path("/run-of-other")),
    disks=(Disk(Path("/other/root"), (Path("/layer"), Path("/image/disk.qcow2")), serial="root"),),
    seed=Path("/other/seed"),
    publish=(Publish(host_port=8080, guest_port=80),),
    hostname="other",
    network="unplugged",
    saved=Saved(None, None),
    spare="kind",
)


@pytest.mark.fault(40)
def test_what_is_a_machines_own_does_not_count_for_its_shape() -> None:
    assert shape(OTHER, HOST) == shape(LAUNCH, HOST)


def version(text: str) -> HostFacts:
    """The host with another QEMU."""
    emulator = msgspec.structs.replace(HOST.emulators["x86_64"], version=text)
    return msgspec.structs.replace(HOST, emulators={"x86_64": emulator})


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    "changes",
    [
        {"cpus": 2},
        {"memory": GiB},
        {"firmware": "uefi"},
        {"direct": BOOT._replace(command_line="console=ttyS1")},
        {"direct": BOOT._replace(kernel=Path("/images/other/kernel"))},
        {"disks": ()},
        {"disks": (DISK, Disk(FILES.disk, format="raw"))},
        {"seed": None},
        {"network": "none"},
        {"direct": None, "firmware": "bios", "tpm": True},
        {"arch": "aarch64"},
    ],
    ids=str,
)
def test_whatever_a_guest_can_see_counts_for_the_shape(changes: dict[str, Any]) -> None:
    assert shape(LAUNCH._replace(**changes), HOST) != shape(LAUNCH, HOST)


@pytest.mark.fault(40)
def test_another_build_of_qemu_or_another_machine_type_is_another_shape() -> None:
    emulator = msgspec.structs.replace(HOST.emulators["x86_64"], machine="pc-q35-7.1")
    older = msgspec.structs.replace(HOST, emulators={"x86_64": emulator})
    assert len({shape(LAUNCH, facts) for facts in (HOST, version("7.2.23"), older)}) == 3


def test_a_machine_that_goes_on_waits_for_what_was_saved_and_its_card_leads_nowhere_at_first() -> None:
    decided = plan(LAUNCH._replace(saved=Saved(None, None)), HOST)
    assert decided.argv[-2:] == ("-incoming", "defer")
    assert json.loads(values(decided, "-netdev")[0])["type"] == "hubport"


def test_a_tpm_beside_an_initramfs_is_refused_where_qemu_would_put_one_over_the_other() -> None:
    with pytest.raises(Invalid, match="initramfs"):
        plan(LAUNCH._replace(tpm=True), HOST)


@pytest.mark.fault(88)
def test_the_seed_is_read_only_and_comes_after_every_other_disk() -> None:
    forged = Disk(Path("/keep/forged.iso"), format="raw", serial="cidata")
    decided = plan(LAUNCH._replace(disks=(DISK, forged)), HOST)
    blocks = [entry for entry in devices(decided) if entry["driver"] == "virtio-blk-pci"]
    assert [entry["id"] for entry in blocks] == ["disk0", "disk1", "seed"]
    nodes = [json.loads(value) for value in values(decided, "-blockdev")]
    assert all(node["read-only"] for node in nodes if node["node-name"].startswith("seed"))
    assert not next(
        entry for entry in decided.resources if isinstance(entry, Open) and entry.path == FILES.seed
    ).writable
    assert values(decided, "-smbios") == ["type=1,manufacturer=Roost,product=Machine,serial=ds=nocloud"]


@pytest.mark.fault(88)
def test_no_other_disk_may_take_the_serial_of_the_seed() -> None:
    with pytest.raises(Invalid):
        plan(LAUNCH._replace(disks=(Disk(FILES.disk, serial=SEED_SERIAL),)), HOST)


def test_the_memory_is_one_named_object_of_the_size_of_the_machine() -> None:
    decided = plan(LAUNCH, HOST)
    assert json.loads(values(decided, "-object")[0]) == {
        "qom-type": "memory-backend-file",
        "id": "mem",
        "size": 512 * MiB,
        "mem-path": str(FILES.memory),
        "share": True,
    }
    assert "memory-backend=mem" in values(decided, "-machine")[0]


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"memory": 1 << 50}, Unavailable, "memory"),
        ({"accelerator": "kvm", "arch": "aarch64"}, Unavailable, "not the host's"),
        ({"direct": None}, Invalid, "no kernel"),
        ({"direct": None, "arch": "aarch64", "firmware": "bios"}, Invalid, "no BIOS"),
        ({"arch": "riscv64", "firmware": "uefi", "direct": None}, Unavailable, "no UEFI"),
    ],
)
def test_what_can_not_be_started_is_refused_with_the_reason(
    changes: dict[str, Any], error: type[RoostError], why: str
) -> None:
    with pytest.raises(error) as caught:
        plan(LAUNCH._replace(**changes), HOST)
    assert why in caught.value.why


def test_a_host_without_qemu_says_how_to_install_it() -> None:
    with pytest.raises(Unavailable) as caught:
        plan(LAUNCH, msgspec.structs.replace(HOST, emulators={}))
    assert caught.value.fix == "sudo apt-get install --no-install-recommends qemu-system-x86"


def test_a_kvm_that_may_not_be_opened_is_not_used() -> None:
    with pytest.raises(Unavailable, match="denied"):
        plan(LAUNCH._replace(accelerator="kvm"), msgspec.structs.replace(HOST, kvm="denied"))


def test_the_translation_cache_grows_with_the_memory_and_stays_bounded() -> None:
    sizes = [values(plan(LAUNCH._replace(memory=size), HOST), "-accel")[0] for size in (128 * MiB, GiB, 16 * GiB)]
    assert [size.rpartition("=")[2] for size in sizes] == ["32", "64", "128"]


CARDS = (Card(0, "52:54:00:00:00:10", tap=7), Card(3, "52:54:00:00:00:11", tap=8))


def test_a_port_in_place_of_the_user_network_is_another_machine() -> None:
    """What a guest leaves to a card on a tap it can not leave to one on a user network: each has warm templates of its own."""
    port = LAUNCH._replace(network="none", cards=CARDS[:1])
    assert len({shape(launch, HOST) for launch in (port, LAUNCH, LAUNCH._replace(network="none"))}) == 3
    assert shape(port, HOST) == shape(port._replace(cards=(Card(0, "52:54:00:99:99:99"),)), HOST)


def test_every_card_that_can_be_unplugged_counts_in_the_shape() -> None:
    two = LAUNCH._replace(network="none", cards=CARDS)
    shapes = {
        shape(two, HOST),
        shape(two._replace(cards=(CARDS[0],)), HOST),
        shape(two._replace(cards=(CARDS[1],)), HOST),
    }
    assert len(shapes) == 3
    assert (
        shape(two._replace(cards=tuple(card._replace(tap=None, mac="52:54:00:99:99:99") for card in CARDS)), HOST)
        in shapes
    )


def test_a_card_is_on_its_tap_without_a_hub() -> None:
    decided = plan(LAUNCH._replace(network="none", cards=CARDS), HOST)
    backends = [json.loads(value) for value in values(decided, "-netdev")]
    assert [entry["type"] for entry in backends] == ["tap", "tap"]
    cards = [device for device in devices(decided) if device["driver"] == "virtio-net-pci"]
    assert [(card["id"], card.get("bus"), card["mac"]) for card in cards] == [
        ("nic0", None, CARDS[0].mac),
        ("nic3", "slot3", CARDS[1].mac),
    ]
    assert sum(device["driver"] == "pcie-root-port" for device in devices(decided)) == SLOTS
