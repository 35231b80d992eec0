"""What this host lacks for running machines, and the exact line that gets it: `look` asks the host, `judge` decides (pure)."""

from __future__ import annotations

import os
import platform
import pwd
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from roost.config import Config
from roost.host import files
from roost.host.packages import INSTALL, apt

GiB = 1 << 30
State = Literal["ok", "warning", "missing"]

MODULES = (
    "asyncssh", "cryptography", "h11", "litestar", "msgspec", "prometheus_client", "pycdlib", "pyroute2", "qemu.qmp",
    "structlog", "uvicorn", "wasmtime", "wsproto", "yaml", "zstandard",
)  # fmt: skip
"""What Roost imports; a test compares it with pyproject.toml."""

EMULATORS = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm", "riscv64": "qemu-system-misc"}
"""Debian's package of the emulator for each architecture."""

PROGRAMS: Mapping[str, tuple[str, bool, str]] = {
    "qemu-img": ("qemu-utils", True, "makes disks"),
    "passt": ("passt", True, "the network of machines"),
    "nft": ("nftables", False, "networks of several machines: what may pass"),
    "dnsmasq": ("dnsmasq-base", False, "networks of several machines: addresses and names"),
    "mmdebstrap": ("mmdebstrap", False, "builds the templates debian:12 and debian:13"),
    "busybox": ("busybox-static", False, "the template tiny"),
    "swtpm": ("swtpm", False, "the TPM of machines that ask for one"),
}
"""Program: its Debian package, whether machines need it, and what for."""

FIRMWARE = ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_CODE_4M.fd")
LEAST_DISK, GOOD_DISK = 1 * GiB, 10 * GiB


class Finding(NamedTuple):
    """One thing looked at. "missing": machines can not run without it; "warning": something will be slower, weaker or not possible."""

    name: str
    state: State
    detail: str
    fix: str = ""


class Look(NamedTuple):
    """What was seen. `kvm`: "ok", "absent", "denied" (the node is there, not for us). Sizes in bytes."""

    python: tuple[int, int]
    arch: str
    uid: int
    user: str
    missing_modules: tuple[str, ...]
    programs: frozenset[str]
    firmware: bool
    kvm: Literal["ok", "absent", "denied"]
    user_namespaces: bool
    apparmor_restricts: bool
    subuids: bool
    cgroup: Literal["v2", "v1", "none"]
    cgroup_ours: bool
    state: str
    free: int
    deb: bool


def look(config: Config) -> Look:
    """Ask the host. Reads files and the PATH only: nothing is started, nothing is changed."""
    wanted = {*PROGRAMS, *(f"qemu-system-{arch}" for arch in EMULATORS), "newuidmap"}
    path = (os.environ.get("PATH") or os.defpath) + ":/usr/sbin:/sbin"
    uid = os.getuid()
    user = _user(uid)
    return Look(
        python=sys.version_info[:2],
        arch=platform.machine(),
        uid=uid,
        user=user,
        missing_modules=tuple(name for name in MODULES if not _importable(name)),
        programs=frozenset(name for name in wanted if shutil.which(name, path=path)),
        firmware=any(Path(name).exists() for name in FIRMWARE),
        kvm=_kvm(Path("/dev/kvm")),
        user_namespaces=_number("/proc/sys/user/max_user_namespaces", 0) > 0
        and _number("/proc/sys/kernel/unprivileged_userns_clone", 1) > 0,
        apparmor_restricts=_number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", 0) > 0,
        subuids=any(line.split(":")[0] in (user, str(uid)) for line in _lines("/etc/subuid")),
        cgroup=_cgroup(),
        cgroup_ours=uid == 0 or _delegated(),
        state=str(config.state),
        free=files.free_space(_existing(config.state)),
        deb=Path("/usr/bin/dpkg").exists(),
    )


def judge(seen: Look) -> list[Finding]:
    """What is there, what is not, and how to get it."""
    return [
        _python(seen),
        *_programs(seen),
        *_accelerator(seen),
        *_isolation(seen),
        _disk(seen),
    ]


def lacking(findings: list[Finding]) -> bool:
    """Whether something is missing that machines can not do without."""
    return any(finding.state == "missing" for finding in findings)


def packages(findings: list[Finding]) -> list[str]:
    """The Debian packages that the fixes name."""
    fixes = [finding.fix.removeprefix(INSTALL) for finding in findings if finding.fix.startswith(INSTALL)]
    return sorted({package for fix in fixes for package in fix.split()})


def _python(seen: Look) -> Finding:
    version = f"{seen.python[0]}.{seen.python[1]}"
    if seen.python < (3, 11):
        return Finding("python", "missing", f"Python {version} is older than 3.11", apt("python3"))
    if seen.missing_modules:
        names = ", ".join(seen.missing_modules)
        return Finding(
            "python",
            "missing",
            f"packages are not installed: {names}",
            "scripts/quickstart, or install the roost package again",
        )
    return Finding("python", "ok", f"Python {version}, all packages are there")


def _programs(seen: Look) -> Iterator[Finding]:
    own = f"qemu-system-{seen.arch}"
    for arch, package in EMULATORS.items():
        name = f"qemu-system-{arch}"
        if name in seen.programs:
            yield Finding(name, "ok", f"runs {arch} machines")
        else:
            detail = (
                "is not installed: no machine can run"
                if name == own
                else f"is not installed: no {arch} machine can run"
            )
            yield Finding(name, "missing" if name == own else "warning", detail, apt(package))
    for name, (package, needed, use) in PROGRAMS.items():
        if name in seen.programs:
            yield Finding(name, "ok", use)
        else:
            yield Finding(name, "missing" if needed else "warning", f"is not installed: {use}", apt(package))
    if seen.firmware:
        yield Finding("ovmf", "ok", "UEFI firmware")
    else:
        yield Finding("ovmf", "warning", "is not installed: no x86_64 machine can boot by UEFI", apt("ovmf"))


def _accelerator(seen: Look) -> Iterator[Finding]:
    if seen.kvm == "ok":
        yield Finding(
            "kvm",
            "ok",
            "/dev/kvm opens; whether it really boots a guest is tried at the first launch (roost node list)",
        )
    elif seen.kvm == "denied":
        detail = f"/dev/kvm is not open to {seen.user}: machines run in emulation, ten times slower"
        yield Finding("kvm", "warning", detail, f"sudo usermod -aG kvm {seen.user}, then log in again")
    else:
        detail = "there is no /dev/kvm: machines run in emulation, ten times slower"
        yield Finding(
            "kvm",
            "warning",
            detail,
            "enable virtualization in the firmware (or nesting on the outer host), then: sudo modprobe kvm",
        )


def _isolation(seen: Look) -> Iterator[Finding]:
    if seen.uid != 0:
        yield _namespaces(seen)
        yield _subuids(seen)
    if seen.cgroup == "none":
        yield Finding("cgroups", "warning", "no control groups: memory and CPU of machines are bounded by rlimits only")
    elif not seen.cgroup_ours:
        fix = f"sudo loginctl enable-linger {seen.user}, then log in again"
        yield Finding(
            "cgroups", "warning", f"{seen.cgroup}, but none is delegated to {seen.user}: bounds by rlimits only", fix
        )
    else:
        yield Finding("cgroups", "ok", f"{seen.cgroup}: memory, CPU and processes of machines are bounded")


def _namespaces(seen: Look) -> Finding:
    if not seen.user_namespaces:
        fix = "sudo sysctl -w user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1"
        return Finding(
            "user namespaces", "missing", "are switched off: the jail of an ordinary user is made of them", fix
        )
    if seen.apparmor_restricts:
        fix = "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        return Finding(
            "user namespaces",
            "missing",
            "are restricted by AppArmor: the jail of an ordinary user is made of them",
            fix,
        )
    return Finding("user namespaces", "ok", "an ordinary user can make a jail")


def _subuids(seen: Look) -> Finding:
    if "newuidmap" not in seen.programs:
        return Finding(
            "subuid",
            "warning",
            "newuidmap is not installed: Debian templates can not be built by an ordinary user",
            apt("uidmap"),
        )
    if not seen.subuids:
        fix = f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {seen.user}"
        return Finding(
            "subuid", "warning", f"{seen.user} has no range in /etc/subuid: Debian templates can not be built", fix
        )
    return Finding("subuid", "ok", "Debian templates can be built without root")


def _disk(seen: Look) -> Finding:
    free = f"{seen.free / GiB:.1f} GiB free at {seen.state}"
    fix = f"make room there, or set ROOST_STATE to a directory with {GOOD_DISK // GiB} GiB"
    if seen.free < LEAST_DISK:
        return Finding("disk", "missing", f"{free}: too little for any image", fix)
    return (
        Finding("disk", "warning", f"{free}: little for images and disks", fix)
        if seen.free < GOOD_DISK
        else Finding("disk", "ok", free)
    )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _importable(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _kvm(node: Path) -> Literal["ok", "absent", "denied"]:
    if not node.exists():
        return "absent"
    return "ok" if os.access(node, os.R_OK | os.W_OK) else "denied"


def _number(path: str, default: int) -> int:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else default


def _lines(path: str) -> list[str]:
    try:
        return files.read_bounded(Path(path), 1 << 20).decode(errors="replace").splitlines()
    except OSError:
        return []


def _cgroup() -> Literal["v2", "v1", "none"]:
    controllers = _lines("/sys/fs/cgroup/cgroup.controllers")
    if controllers and controllers[0].strip():
        return "v2"
    return "v1" if Path("/sys/fs/cgroup/memory").is_dir() else "none"


def _delegated() -> bool:
    """Whether the group that we are in (cgroup v2) may be changed by us."""
    own = next((line.partition("::")[2] for line in _lines("/proc/self/cgroup") if line.startswith("0::")), None)
    return own is not None and os.access(f"/sys/fs/cgroup{own}/cgroup.procs", os.W_OK)


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())
