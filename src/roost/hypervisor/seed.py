"""The cloud-init NoCloud disk: a small ISO labelled "cidata" that one machine, and nobody else, reads.

Another disk with the same label does not win: the plan attaches the seed last, and cloud-init tries the candidates in
reversed order of their names (DataSourceNoCloud.py: `devlist.sort(reverse=True)`); it is read-only, a disk of its own, and
the SMBIOS serial names the datasource, so that no other kind is looked for.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import pycdlib

from roost.errors import Invalid
from roost.host import files
from roost.hypervisor.plan import mac_address

LABEL = "cidata"
_LONGEST = 1 << 20


def write(path: Path, *, uid: str, hostname: str, user_data: str) -> None:
    """Make the seed of the machine `uid` at `path`, readable by the daemon only (0600). Raises Invalid, OSError."""
    files.atomic_write(path, build(contents(uid, hostname, user_data)), 0o600)


def contents(uid: str, hostname: str, user_data: str) -> dict[str, bytes]:
    """The files of the seed. What is not the user's own document is written as JSON, which is YAML that nothing can break out of."""
    network = {
        "version": 2,
        # By MAC, for the interface's name depends on the guest's distribution.
        "ethernets": {"primary": {"match": {"macaddress": mac_address(uid)}, "dhcp4": True, "dhcp6": True}},
    }
    return {
        "meta-data": json.dumps({"instance-id": uid, "local-hostname": hostname}).encode() + b"\n",
        "network-config": json.dumps(network).encode() + b"\n",
        "user-data": user_data.encode(),
    }


def build(contents: Mapping[str, bytes]) -> bytes:
    """An ISO 9660 image with Rock Ridge and Joliet names. Raises Invalid above 1 MiB of contents."""
    if sum(map(len, contents.values())) > _LONGEST:
        raise Invalid("the cloud-init data can not be passed on", f"it is longer than {_LONGEST} bytes")
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    for number, (name, data) in enumerate(contents.items()):
        iso.add_fp(io.BytesIO(data), len(data), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
    image = io.BytesIO()
    iso.write_fp(image)
    iso.close()
    return image.getvalue()
