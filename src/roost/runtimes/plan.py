"""What the sandbox of a run holds, as a pure function of the program, its policy and what the host is like."""

from __future__ import annotations

from roost.errors import Invalid
from roost.host.box import Box, Limits
from roost.light import Iterable, Mapping, NamedTuple
from roost.runtimes.base import Command, Grant, Mount, Policy, Request

_NETWORK = "network namespace"
ENVIRONMENT = {"HOME": "/tmp", "LANG": "C.UTF-8", "PATH": "/usr/local/bin:/usr/bin:/bin", "TMPDIR": "/tmp"}
"""What every program has in its environment, unless its policy or its runtime says otherwise."""
LAYERS = (
    "user namespace", "mount namespace", "pid namespace", "ipc namespace", "uts namespace", "cgroup namespace", _NETWORK,
    "minimal root", "own uid", "no capabilities", "no new privileges", "landlock", "seccomp", "resource limits", "control group",
)  # fmt: skip
"""What the sandbox may be asked to hold; runtimes add layers of their own."""
WATCHDOG = "watchdog"
"""The layer that is ours: memory and CPU time of all processes of the program together, looked at from outside."""

_KERNEL = ("/dev", "/proc", "/sys")
CERTIFICATES = "/etc/ssl/certs"
"""Those of public authorities; a program with a network and the host's libraries sees them."""


class Facts(NamedTuple):
    """What the plan depends on beside the request.

    `pid` is that of the supervisor. `fds` maps 0 to 2 to descriptors of ours, `tty` tells whether one of them is a terminal. `pinned` holds the
    addresses of each host in the policy's `net`. `watch` is what the kernel reports of it, as in `Box.watch`. `certificates`: whether the host
    keeps those of public authorities at the usual place.
    """

    pid: int
    fds: Mapping[int, int]
    tty: bool = False
    pinned: Mapping[str, tuple[str, ...]] = {}
    watch: str = "connect"
    certificates: bool = False


def box(request: Request, command: Command, facts: Facts) -> Box:
    """The sandbox of one run. Raises Invalid when the policy asks for what no program gets."""
    policy = request.policy
    mounts = _mounts(policy, command, facts)
    return Box(
        name=f"program-{facts.pid}",
        argv=command.argv,
        call=command.call,
        env={**ENVIRONMENT, **dict(policy.env), **command.env},
        mounts=tuple((mount.source, mount.target, mount.kind, mount.lent) for mount in mounts),
        files=_files(command, mounts, facts),
        system=command.system,
        cwd=request.cwd or "/",
        tmp=policy.tmp,
        limits=Limits(command.memory or policy.memory, policy.cpu_time, policy.processes, policy.files),
        fds=facts.fds,
        doors=doors(policy, facts.pinned),
        watch=facts.watch,
        calls=command.calls,
        handlers=command.handlers,
        tty=facts.tty and command.call is None,  # what runs by a call opens no device
        require=_required(policy, command),
        program=command.program,
        handover=command.handover,
        keeps=command.keeps,
    )


def doors(policy: Policy, pinned: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, int], ...]:
    """Where sockets listen in the program's network: each address and port that it may reach, once."""
    return tuple(dict.fromkeys((address, peer.port) for peer in policy.net for address in pinned[peer.host]))


def _mounts(policy: Policy, command: Command, facts: Facts) -> list[Mount]:
    """Outer targets first; of two with one target the caller's."""
    certificates = Mount(CERTIFICATES, CERTIFICATES)
    chosen = [certificates] if facts.certificates and command.system and policy.net else []
    chosen += [*command.mounts, *map(_mount, policy.fs)]
    by_target = {mount.target: mount for mount in chosen}
    return [by_target[target] for target in sorted(by_target)]


def _mount(grant: Grant) -> Mount:
    target = grant.target
    if (
        target == "/"
        or not target.startswith("/")
        or any(target == place or target.startswith(place + "/") for place in _KERNEL)
    ):
        fix = f"--fs {grant.source}:/data{'' if grant.writable else ':ro'}"
        raise Invalid(f"--fs {grant.source}:{target} is not possible", f"{target} belongs to the sandbox", fix)
    return Mount(grant.source, target.rstrip("/"), "write" if grant.writable else "read", lent=True)


def _files(command: Command, mounts: Iterable[Mount], facts: Facts) -> dict[str, bytes]:
    """What the runtime makes, and the names of the network, unless a mount brings its own."""
    brought = any(mount.target in ("/etc", "/etc/hosts") for mount in mounts)
    return {**({} if brought else {"/etc/hosts": hosts(facts.pinned)}), **command.files}


def hosts(pinned: Mapping[str, tuple[str, ...]]) -> bytes:
    """The names that a program can look up, as hosts(5) has them."""
    lines = ["127.0.0.1 localhost roost", "::1 localhost"]
    lines += [
        f"{address} {host}" for host, found in pinned.items() for address in found if host not in (address, "localhost")
    ]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def _required(policy: Policy, command: Command) -> tuple[str, ...]:
    """The layers that the sandbox must hold; what the runtime enforces, and the watchdog, is not for the sandbox to answer."""
    if WATCHDOG in policy.require and policy.memory is None and policy.cpu_time is None:
        raise Invalid(
            "--require watchdog is not possible",
            "there is no limit that it could hold",
            "give --memory or --cpu-time too",
        )
    others = {*command.layers, WATCHDOG}
    unknown = [layer for layer in policy.require if layer not in others and layer not in LAYERS]
    if unknown:
        names = ", ".join(sorted({*LAYERS, *others}))
        raise Invalid(
            f"--require {unknown[0]!r} is not possible", f"no such layer protects this program; there are: {names}"
        )
    network = (_NETWORK,) if policy.net or policy.publish else ()  # else doors would lead nowhere, or to everything
    return tuple(dict.fromkeys((*(layer for layer in policy.require if layer not in others), *network)))
