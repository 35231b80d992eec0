"""What a guest without Roost's own agent is asked to do, as shell: set-up, sealing, and a command's directory and user; pure.

The scripts hold secrets: they go to `sh` on its standard input, never into arguments. Each is one function, so that it is read whole before
anything runs, and nothing in it reads the rest as its own input.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from roost.hypervisor.base import Command, Setup

_KEYS = """\
home=$(getent passwd "$1" | cut -d: -f6) && mkdir -p -m 0700 "$home/.ssh" && touch "$home/.ssh/authorized_keys" &&
{ grep -qxF "$2" "$home/.ssh/authorized_keys" || printf '%s\\n' "$2" >>"$home/.ssh/authorized_keys"; } &&
chmod 0600 "$home/.ssh/authorized_keys" && chown -R "$1:" "$home/.ssh"
"""


_RENEW_SSH = """\
! [ -s /run/sshd.pid ] || { kill -HUP "$(cat /run/sshd.pid)" && kill -CONT "$(cat /run/sshd.pid)"; } || true
"""

_SEAL = """\
set -e
! [ -s /run/sshd.pid ] || kill -STOP "$(cat /run/sshd.pid)"
rm -f /etc/ssh/ssh_host_* /var/lib/systemd/random-seed /var/lib/dhcp/*lease* /var/lib/NetworkManager/*lease*
rm -f /root/.bash_history /home/*/.bash_history /var/lib/roost/setup
journalctl -q --rotate --vacuum-time=1s 2>/dev/null || true
for log in /var/log/wtmp /var/log/btmp /var/log/lastlog; do [ ! -e $log ] || : >$log; done
echo localhost >/etc/hostname; hostname localhost; sed -i '/^127\\.0\\.1\\.1/d' /etc/hosts
[ -L /var/lib/dbus/machine-id ] || rm -f /var/lib/dbus/machine-id
: >/etc/machine-id
sync
"""


_MOMENTS = 30
"""How often a card that was just plugged in is looked for, each 0.1 s."""

_CARD = """\
for moment in $(seq $7); do
! cat /sys/class/net/*/address | grep -qixF "$1" || break
sleep 0.1
done
for card in /sys/class/net/*; do
[ -e "$card/device" ] && [ "$(cat "$card/address")" = "$1" ] || continue
name=${card##*/}; ip link set "$name" down && ip addr flush dev "$name" && ip link set "$name" mtu "$2" up || return 0
for address in $3; do ip addr add "$address" dev "$name" || true; done
for gateway in $4; do
case $gateway in *:*) version=-6 ;; *) version=-4 ;; esac
[ -n "$(ip $version route show default)" ] || ip $version route add default via "$gateway" dev "$name" onlink || true
done
[ -z "$5" ] || [ -L /etc/resolv.conf ] || { [ -z "$6" ] || echo "search $6"; printf 'nameserver %s\\n' $5; } >/etc/resolv.conf
done
"""


def setup_script(setup: Setup) -> str:
    """A script for `sh` that applies the set-up once: it leaves /var/lib/roost/setup behind, which holds the machine id.

    Without a program of ours the kernel mixes entropy in, but uses it only when it next reseeds itself (a minute at most).
    The network card keeps its address.
    """
    name, machine_id = shlex.quote(setup.hostname), shlex.quote(setup.machine_id)
    lines = [
        "set -e",
        *([f"printf %s {setup.entropy.hex()} >/dev/urandom"] if setup.entropy else []),
        *_card_lines(setup),
        f'[ "$(cat /var/lib/roost/setup 2>/dev/null)" != {machine_id} ] || exit 0',
        f"add_key() {{ {_KEYS}}}",
        f"echo {name} >/etc/hostname; hostname {name}",
        f"sed -i '/^127\\.0\\.1\\.1/d' /etc/hosts; echo 127.0.1.1 {name} >>/etc/hosts",
        f"echo {machine_id} >/etc/machine-id",
        *(f"add_key root {shlex.quote(key.strip())}" for key in setup.ssh_keys),
        *_user_lines(setup),
        *_host_key_lines(setup),
        f"mkdir -p /var/lib/roost; echo {machine_id} >/var/lib/roost/setup",
    ]
    return _function("\n".join(lines) + "\n")


def _card_lines(setup: Setup) -> Iterator[str]:
    if setup.cards:
        yield f"set_card() {{\n{_CARD}}}"
    for card in setup.cards:
        moments = str(_MOMENTS if setup.plugged else 0)
        lists = (" ".join(words) for words in (card.addresses, card.gateways, card.resolvers))
        yield f"set_card {' '.join(map(shlex.quote, (card.mac, str(card.mtu), *lists, card.domain, moments)))}"


def seal_script() -> str:
    """A script for `sh` that takes away what tells the machine from another; see `base.Agent.seal`."""
    return _function(_SEAL)


def _function(body: str) -> str:
    return f"main() {{\n{body}}}\nmain </dev/null\n"


def _user_lines(setup: Setup) -> Iterator[str]:
    for user, keys, sudo in setup.users:
        quoted = shlex.quote(user)
        yield f"id {quoted} >/dev/null 2>&1 || useradd -m -p '*' -s /bin/sh {quoted}"
        yield from (f"add_key {quoted} {shlex.quote(key.strip())}" for key in keys)
        if sudo:
            rule = shlex.quote(f"{user} ALL=(ALL) NOPASSWD:ALL")
            yield f"[ ! -d /etc/sudoers.d ] || {{ umask 226; echo {rule} >/etc/sudoers.d/90-roost-{quoted}; umask 022; }}"


def _host_key_lines(setup: Setup) -> Iterator[str]:
    if not setup.host_keys:
        yield "[ ! -d /etc/ssh ] || ls /etc/ssh/ssh_host_*_key >/dev/null 2>&1 || ssh-keygen -A"
        return
    yield "if [ -d /etc/ssh ]; then rm -f /etc/ssh/ssh_host_*"
    for key in setup.host_keys:
        path = shlex.quote(f"/etc/ssh/ssh_host_{key.kind}_key")
        yield f"(umask 077; printf %s {shlex.quote(key.private)} >{path}); echo {shlex.quote(key.public.strip())} >{path}.pub"
    yield f"{_RENEW_SSH}fi"


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
