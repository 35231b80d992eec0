"""The files that Roost lays over a Debian so that it boots fast, anywhere, and lets itself be configured (no I/O)."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping

KERNEL_OPTIONS = "root=PARTLABEL=root rw rootflags=noatime console=tty0 console=ttyS0 quiet panic=10"

_MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "grub-common.service", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "systemd-pstore.service",
    "systemd-tmpfiles-clean.timer",
)  # fmt: skip
"""Units that serve nobody in a small machine and cost each boot something."""

_GENERATORS = (
    "systemd-bless-boot-generator", "systemd-cryptsetup-generator", "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator", "systemd-integritysetup-generator", "systemd-rc-local-generator",
    "systemd-ssh-generator", "systemd-tpm2-generator", "systemd-veritysetup-generator",
)  # fmt: skip
"""Generators for hardware and set-ups that such a machine does not have: without KVM each costs 0.1 s before anything starts."""

_GRUB = f"""\
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
set timeout=0
menuentry "Debian" {{
    linux /vmlinuz {KERNEL_OPTIONS}
    initrd /initrd.img
}}
"""

_NETWORK = """\
[Match]
Type=ether
[Network]
DHCP=yes
IgnoreCarrierLoss=5s
[DHCPv4]
UseDomains=yes
ClientIdentifier=mac
[DHCPv6]
DUIDType=link-layer
"""
# A copy of a running machine begins with its cable out, and keeps its lease when that is in again within the moment it takes to make
# another machine of it. On a network it is known by its MAC address alone: what is derived from the machine-id, networkd keeps in memory.

# Not by the calendar: in a copy of a machine that was saved a week ago the clock jumps, and all would trim at once.
_TRIM = """\
[Timer]
OnCalendar=
OnBootSec=6h
OnUnitActiveSec=1w
"""

_WAIT_ONLINE = """\
[Service]
ExecStart=
ExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=30
"""

_SSH_KEYS = """\
[Unit]
Description=SSH host keys of this machine
Before=ssh.service
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -q -N "" -t ecdsa -f /etc/ssh/ssh_host_ecdsa_key
ExecStart=/usr/bin/ssh-keygen -q -N "" -t ed25519 -f /etc/ssh/ssh_host_ed25519_key
[Install]
WantedBy=multi-user.target
"""

_SSHD = "HostKey /etc/ssh/ssh_host_ed25519_key\nHostKey /etc/ssh/ssh_host_ecdsa_key\nUseDNS no\n"

_GENERATOR = """\
#!/bin/sh
# cloud-init's stages cost seconds, so they run only where something tells them what to do: a small disk labelled
# "cidata" (NoCloud), a seed on the root file system, or the kernel command line.
wanted() {
    [ -d /var/lib/cloud/seed/nocloud ] && return 0
    read -r line < /proc/cmdline
    case " $line " in *" ds="*) return 0;; esac
    for block in /sys/class/block/*; do
        [ -e "$block/partition" ] && continue
        read -r sectors < "$block/size" || continue
        [ "$sectors" -gt 64 ] && [ "$sectors" -le 131072 ] || continue
        device=/dev/${block##*/}
        for offset in 32808 43 71; do  # volume label of ISO 9660, FAT12/16, FAT32
            case "$(dd if="$device" bs=1 skip=$offset count=6 2>/dev/null)" in
                [cC][iI][dD][aA][tT][aA]) return 0;;
            esac
        done
    done
    return 1
}
wanted || exit 0
mkdir -p "$1/multi-user.target.wants" /run/cloud-init
ln -sf /lib/systemd/system/cloud-init.target "$1/multi-user.target.wants/cloud-init.target"
: > /run/cloud-init/enabled
"""

# The agent (or roost-ssh-keys.service) has made the host keys by then: cloud-init would throw them away and make four others,
# which takes minutes without KVM.
_CLOUD = """\
datasource_list: [NoCloud, None]
network: {config: disabled}
ssh_deletekeys: false
ssh_genkeytypes: []
"""


def _contents() -> Mapping[str, str]:
    return {
        "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost ip6-loopback\n",
        "etc/default/locale": "LANG=C.UTF-8\n",
        "etc/initramfs-tools/conf.d/roost": "MODULES=most\nRESUME=none\nCOMPRESS=gzip\nCOMPRESSLEVEL=1\n",
        "etc/systemd/network/80-ether.network": _NETWORK,
        "etc/systemd/system/systemd-networkd-wait-online.service.d/any.conf": _WAIT_ONLINE,
        "etc/systemd/system/fstrim.timer.d/monotonic.conf": _TRIM,
        "etc/systemd/system/roost-ssh-keys.service": _SSH_KEYS,
        "etc/ssh/sshd_config.d/10-roost.conf": _SSHD,
        "etc/cloud/cloud.cfg.d/90-roost.cfg": _CLOUD,
        "boot/grub/grub.cfg": _GRUB,
    }


_LINKS = {
    "etc/systemd/system/multi-user.target.wants/roost-ssh-keys.service": "../roost-ssh-keys.service",
    "etc/systemd/system/multi-user.target.wants/systemd-networkd.service": "/lib/systemd/system/systemd-networkd.service",
    "etc/systemd/system/network-online.target.wants/systemd-networkd-wait-online.service": (
        "/lib/systemd/system/systemd-networkd-wait-online.service"
    ),
    "etc/systemd/system/sysinit.target.wants/roost-agent.service": "../roost-agent.service",
    **{f"etc/systemd/system/{unit}": "/dev/null" for unit in _MASKED},
    **{f"etc/systemd/system-generators/{name}": "/dev/null" for name in _GENERATORS},
}


def overlay(agent: bytes, agent_unit: bytes) -> bytes:
    """A tar archive, owned by root, time stamps 0, of everything to lay over the system before its packages are configured."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, text in _contents().items():
            _add(tar, name, text.encode(), 0o644)
        _add(tar, "etc/systemd/system-generators/cloud-init-generator", _GENERATOR.encode(), 0o755)
        _add(tar, "etc/systemd/system/roost-agent.service", agent_unit, 0o644)
        _add(tar, "usr/lib/roost/agent", agent, 0o755)
        for name, target in _LINKS.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))


PRUNE = """\
set -eu
root=$1
cd "$root"
rm -rf var/cache/apt/* var/lib/apt/lists/* var/cache/debconf/*-old var/log/apt var/log/*.log tmp/* run/* boot/*.old-dkms
rm -f etc/fstab etc/ssh/ssh_host_*_key* etc/hostname etc/resolv.conf var/lib/dbus/machine-id var/lib/systemd/random-seed
rm -f etc/dpkg/dpkg.cfg.d/99mmdebstrap etc/apt/apt.conf.d/99mmdebstrap vmlinuz.old initrd.img.old
ln -s /run/systemd/resolve/stub-resolv.conf etc/resolv.conf
echo debian > etc/hostname
: > etc/machine-id
touch etc/.updated var/.updated
"""
"""What is taken away from the finished root directory `$1`: caches, and everything that must not be the same on two machines.

There is no fstab: the kernel command line says all about the root, and systemd would wait for udev to show its device. The two `.updated`
tell systemd that nothing in /usr is newer, or every first boot would run ldconfig.
"""
