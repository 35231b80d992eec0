"""The usual cloud images by name: where publishers keep them, and how their lists of hashes are written (no I/O).

The trust is that of the publisher's https server: the hash comes from there, the image may come from any mirror it redirects to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from roost.errors import Invalid, Unavailable
from roost.model.meta import Arch

_DEB: Mapping[Arch, str] = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}
_SAME: Mapping[Arch, str] = {"x86_64": "x86_64", "aarch64": "aarch64"}
_HEX = {"sha256": 64, "sha512": 128}


class Entry(NamedTuple):
    """One image. In `directory`, `file` and `sums` (the list of hashes) "{arch}" stands for the publisher's word for the architecture."""

    name: str
    site: str
    directory: str
    file: str
    sums: str
    algorithm: str = "sha256"
    arches: Mapping[Arch, str] = _SAME

    def locate(self, arch: Arch) -> Location:
        """Where the image for `arch` and its hash are. Raises Unavailable when the publisher has none."""
        word = self.arches.get(arch)
        if word is None:
            raise Unavailable(
                f"{self.name} cannot be fetched for {arch}", f"it is published for {', '.join(self.arches)}"
            )
        base = f"{self.site}/{self.directory.format(arch=word)}"
        file = self.file.format(arch=word)
        return Location(f"{base}/{file}", f"{base}/{self.sums.format(arch=word, file=file)}", file, self.algorithm)


class Location(NamedTuple):
    """Addresses of an image and of the list that holds its hash."""

    url: str
    sums_url: str
    file: str
    algorithm: str


def _ubuntu(version: str) -> Entry:
    file = f"ubuntu-{version}-server-cloudimg-{{arch}}.img"
    return Entry(
        f"ubuntu:{version}",
        "https://cloud-images.ubuntu.com",
        f"releases/{version}/release",
        file,
        "SHA256SUMS",
        arches=_DEB,
    )


def _debian(version: str, codename: str) -> Entry:
    file = f"debian-{version}-genericcloud-{{arch}}.qcow2"
    arches: Mapping[Arch, str] = {"x86_64": "amd64", "aarch64": "arm64"}
    site, directory = "https://cloud.debian.org", f"images/cloud/{codename}/latest"
    return Entry(f"debian-cloud:{version}", site, directory, file, "SHA512SUMS", "sha512", arches)


def _fedora(version: str, compose: str) -> Entry:
    return Entry(
        f"fedora:{version}",
        "https://download.fedoraproject.org",
        f"pub/fedora/linux/releases/{version}/Cloud/{{arch}}/images",
        f"Fedora-Cloud-Base-Generic-{version}-{compose}.{{arch}}.qcow2",
        f"Fedora-Cloud-{version}-{compose}-{{arch}}-CHECKSUM",
    )


def _alma(version: str) -> Entry:
    file = f"AlmaLinux-{version}-GenericCloud-latest.{{arch}}.qcow2"
    return Entry(
        f"alma:{version}", "https://repo.almalinux.org", f"almalinux/{version}/cloud/{{arch}}/images", file, "CHECKSUM"
    )


def _rocky(version: str) -> Entry:
    file = f"Rocky-{version}-GenericCloud.latest.{{arch}}.qcow2"
    return Entry(
        f"rocky:{version}", "https://dl.rockylinux.org", f"pub/rocky/{version}/images/{{arch}}", file, "{file}.CHECKSUM"
    )


def _opensuse(version: str) -> Entry:
    file = f"openSUSE-Leap-{version}-Minimal-VM.{{arch}}-Cloud.qcow2"
    return Entry(
        f"opensuse:{version}",
        "https://download.opensuse.org",
        f"distribution/leap/{version}/appliances",
        file,
        "{file}.sha256",
    )


def _alpine(version: str, release: str) -> Entry:
    return Entry(
        f"alpine:{version}",
        "https://dl-cdn.alpinelinux.org",
        f"alpine/v{version}/releases/cloud",
        f"{release}-{{arch}}-uefi-cloudinit-r0.qcow2",
        "{file}.sha512",
        "sha512",
    )


def _arch() -> Entry:
    site, file = "https://geo.mirror.pkgbuild.com", "Arch-Linux-{arch}-cloudimg.qcow2"
    return Entry("archlinux", site, "images/latest", file, "{file}.SHA256", arches={"x86_64": "x86_64"})


ENTRIES: tuple[Entry, ...] = (
    _ubuntu("22.04"),
    _ubuntu("24.04"),
    _debian("12", "bookworm"),
    _debian("13", "trixie"),
    _fedora("41", "1.4"),
    _fedora("42", "1.1"),
    _alma("9"),
    _alma("10"),
    _rocky("9"),
    _rocky("10"),
    _opensuse("15.6"),
    _alpine("3.21", "nocloud_alpine-3.21.2"),
    _alpine("3.22", "generic_alpine-3.22.0"),
    _arch(),
)


def digest_in(text: str, file: str, algorithm: str) -> str:
    """The hash of `file` in a publisher's list, as "sha256:HEX". Raises Invalid when the list does not hold exactly one.

    Understands the ways of sha256sum ("HEX  FILE", "HEX *FILE"), of BSD ("SHA256 (FILE) = HEX") and a HEX that stands alone. A hash
    that is too short for its algorithm is no hash.
    """
    name, digits = re.escape(file), rf"([0-9a-fA-F]{{{_HEX[algorithm]}}})"
    patterns = (rf"{digits} [ *](?:\./)?{name}", rf"{algorithm.upper()} \({name}\) = {digits}", digits)
    lines = [line.strip() for line in text.splitlines()]
    for pattern in patterns:
        found = {match[1].lower() for line in lines if (match := re.fullmatch(pattern, line))}
        if len(found) == 1:
            return f"{algorithm}:{found.pop()}"
    raise Invalid(
        f"{file} cannot be verified",
        f"the publisher's list does not hold one {algorithm} of it",
        "give a URL and its sha256",
    )
