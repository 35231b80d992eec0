"""What a guest without Roost's own agent is asked to do, as shell: the first-boot set-up, and a command's directory and user; pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from roost.hypervisor.base import Command, Setup

_KEYS = """\
home=$(getent passwd "$1" | cut -d: -f6) && mkdir -p -m 0700 "$home/.ssh" && touch "$home/.ssh/authorized_keys" &&
{ grep -qxF "$2" "$home/.ssh/authorized_keys" || printf '%s\\n' "$2" >>"$home/.ssh/authorized_keys"; } &&
chmod 0600 "$home/.ssh/authorized_keys" && chown -R "$1:" "$home/.ssh"
"""


def setup_script(setup: Setup) -> str:
    """A script for `sh` that applies the set-up once: it leaves /var/lib/roost/setup behind, which holds the machine id."""
    name, machine_id = shlex.quote(setup.hostname), shlex.quote(setup.machine_id)
    lines = [
        "set -e",
        f'[ "$(cat /var/lib/roost/setup 2>/dev/null)" != {machine_id} ] || exit 0',
        f"add_key() {{ {_KEYS}}}",
        f"echo {name} >/etc/hostname; hostname {name}",
        f"sed -i '/^127\\.0\\.1\\.1/d' /etc/hosts; echo 127.0.1.1 {name} >>/etc/hosts",
        f"echo {machine_id} >/etc/machine-id",
        *(f"add_key root {shlex.quote(key.strip())}" for key in setup.ssh_keys),
    ]
    for user, keys, sudo in setup.users:
        quoted = shlex.quote(user)
        lines.append(f"id {quoted} >/dev/null 2>&1 || useradd -m -p '*' -s /bin/sh {quoted}")
        lines += [f"add_key {quoted} {shlex.quote(key.strip())}" for key in keys]
        if sudo:
            rule = shlex.quote(f"{user} ALL=(ALL) NOPASSWD:ALL")
            lines.append(
                f"[ ! -d /etc/sudoers.d ] || {{ umask 226; echo {rule} >/etc/sudoers.d/90-roost-{quoted}; umask 022; }}"
            )
    lines += ["[ ! -d /etc/ssh ] || ls /etc/ssh/ssh_host_*_key >/dev/null 2>&1 || ssh-keygen -A"]
    lines += [f"mkdir -p /var/lib/roost; echo {machine_id} >/var/lib/roost/setup"]
    return "\n".join(lines) + "\n"


def words(command: Command) -> list[str]:
    """The command's argv. Raises ValueError for bytes that are no UTF-8: these ways in carry text."""
    return [word.decode() if isinstance(word, bytes) else word for word in command.argv] or ["/bin/sh", "-l"]


def within(command: Command, *, switch_user: Sequence[str]) -> list[str]:
    """The argv that runs the command in its directory and as its user (`switch_user` stands in front of the user's name)."""
    argv = words(command)
    if command.cwd:
        argv = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', command.cwd, *argv]
    if command.user:
        argv = [*switch_user, command.user, "--", *argv]
    return argv
