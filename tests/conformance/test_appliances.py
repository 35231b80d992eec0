"""OVA packages on a real disk: read where they lie, checked against their manifests, written so that they are read again."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from roost.errors import Invalid
from roost.storage import archives, importing, ova
from roost.storage.ovf import Appliance, ApplianceDisk, Card
from tests.appliances import virtualbox, vmware
from tests.conformance.test_disk_formats import content, refused
from tests.conformance.test_images import MiB, needs_qemu_img
from tests.disks import SIZE, made, tar

pytestmark = needs_qemu_img


def manifest(files: dict[str, bytes], algorithm: str = "SHA256") -> bytes:
    """As VMware writes one."""
    lines = [
        f"{algorithm}({name})= {hashlib.new(algorithm.lower(), data).hexdigest()}\n" for name, data in files.items()
    ]
    return "".join(lines).encode()


@pytest.fixture
def disk(tmp_path: Path) -> bytes:
    """The pattern as a streamOptimized VMDK."""
    return made(tmp_path, "vmdk", "subformat=streamOptimized").read_bytes()


@pytest.mark.parametrize("algorithm", ["SHA1", "SHA256", "SHA512"])
@pytest.mark.parametrize("dialect", [virtualbox, vmware])
async def test_an_ova_of_one_disk_becomes_an_image(
    tmp_path: Path, disk: bytes, dialect: Callable[[], bytes], algorithm: str
) -> None:
    files = {"vm.ovf": dialect(), "disk.vmdk": disk}
    package = tar({"vm.ovf": files["vm.ovf"], "vm.mf": manifest(files, algorithm), "disk.vmdk": disk})
    assert await content(tmp_path, package) == (tmp_path / "pattern.raw").read_bytes()


async def test_a_disk_that_is_compressed_in_its_package_is_unpacked(tmp_path: Path, disk: bytes) -> None:
    descriptor = vmware("disk.vmdk.gz").replace(b'ovf:id="file1"', b'ovf:id="file1" ovf:compression="gzip"')
    package = tar({"vm.ovf": descriptor, "disk.vmdk.gz": gzip.compress(disk)})
    assert await content(tmp_path, package) == (tmp_path / "pattern.raw").read_bytes()


@pytest.mark.fault(60)
async def test_a_package_that_is_not_what_its_manifest_says_is_refused(tmp_path: Path, disk: bytes) -> None:
    files = {"vm.ovf": vmware(), "disk.vmdk": disk}
    wrong = manifest({**files, "disk.vmdk": b"another"})
    assert "manifest says" in await refused(tmp_path, tar({"vm.ovf": vmware(), "vm.mf": wrong, "disk.vmdk": disk}))
    half = manifest({"vm.ovf": vmware()})
    assert "does not tell" in await refused(tmp_path, tar({"vm.ovf": vmware(), "vm.mf": half, "disk.vmdk": disk}))
    short = manifest(files)[:-20]
    assert "cut off" in await refused(tmp_path, tar({"vm.ovf": vmware(), "vm.mf": short, "disk.vmdk": disk}))
    other = manifest({**files, "more": b""})
    assert "not in the package" in await refused(tmp_path, tar({"vm.ovf": vmware(), "vm.mf": other, "disk.vmdk": disk}))


@pytest.mark.fault(55)
async def test_packages_that_lack_or_hide_something_are_refused(tmp_path: Path, disk: bytes) -> None:
    assert "not in the package" in await refused(tmp_path, tar({"vm.ovf": vmware(), "other.vmdk": disk}))
    assert "not in the package" in await refused(tmp_path, tar({"vm.ovf": vmware("../disk.vmdk"), "disk.vmdk": disk}))
    assert "bytes, not" in await refused(tmp_path, tar({"vm.ovf": vmware(size=1), "disk.vmdk": disk}))
    assert "2 descriptors" in await refused(tmp_path, tar({"a.ovf": vmware(), "b.ovf": vmware(), "disk.vmdk": disk}))
    assert "leads elsewhere" in await refused(tmp_path, tar({"../vm.ovf": vmware(), "disk.vmdk": disk}))
    assert "2 files" in await refused(tmp_path, tar({"a.raw": bytes(512), "b.raw": bytes(512)}))


async def test_a_package_that_is_written_is_whole_and_is_read_again(tmp_path: Path, disk: bytes) -> None:
    files = {"disk1.vmdk": tmp_path / "vmdk-streamOptimized" / "disk.vmdk", "disk2.vmdk": tmp_path / "b.vmdk"}
    files["disk2.vmdk"].write_bytes(disk)
    disks = tuple(ApplianceDisk(f"vmdisk{n}", f"disk{n}.vmdk", SIZE, unit=n - 1) for n in (1, 2))
    wanted = Appliance("web", 2, 512 * MiB, disks, (Card("default", "E1000"),), ("default",), "debian:12", 96, "uefi")
    target = tmp_path / "web.ova"
    target.write_bytes(b"".join(ova.pack(wanted, files)))
    with importing.opened(target) as whole:
        package = ova.read(whole, "web.ova", archives.members(whole))
        await ova.verify(whole, package, "web.ova", lambda _: None)
        assert package.appliance._replace(disks=()) == wanted._replace(disks=())
        assert [(disk.file, disk.capacity) for disk in package.appliance.disks] == [(d.file, SIZE) for d in disks]
        with pytest.raises(Invalid, match="does not become an image"):
            ova.only_disk(package, "web.ova")
        task = importing.Task("web.ova", tmp_path, 64 * MiB, lambda *_: None)
        second = await importing.disk_of(whole, target, package, package.appliance.disks[1], task)
        await importing.write(second, tmp_path / "second.qcow2", task)
    assert second.virtual_size == SIZE


async def test_a_certificate_is_said_not_to_be_looked_at(tmp_path: Path, disk: bytes) -> None:
    package = tmp_path / "vm.ova"
    package.write_bytes(tar({"vm.ovf": vmware(), "vm.cert": b"x", "disk.vmdk": disk}))
    with importing.opened(package) as whole:
        notes = ova.read(whole, "vm.ova", archives.members(whole)).notes
    assert [word for word in ("manifest", "certificate") if not any(word in note for note in notes)] == []
