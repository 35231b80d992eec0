"""What this host lacks for programs of other platforms, from what their runtimes found (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from roost.host import packages
from roost.host.doctor import Finding

RUNTIMES = {"java": "jvm", "windows": "wine", "clr": "clr", "foreign": "foreign"}
"""The areas of `roost doctor` for programs, and the runtime whose probe each judges."""


def judge(area: str, probed: Mapping[str, Any]) -> list[Finding]:
    """What is there of an area, what is not, and how to get it. `probed` is what the area's runtime found of itself."""
    judges = {"java": _java, "windows": _windows, "clr": _clr, "foreign": _foreign}
    return judges[area](probed)


def _java(probed: Mapping[str, Any]) -> list[Finding]:
    if not probed:
        why = "is not installed: no jar and no class file can run"
        return [Finding("java", "missing", f"{why}; without root: {packages.JAVA_EXTRA}", packages.apt(*packages.JAVA))]
    found = [Finding("java", "ok", f"{version} at {home}") for home, version in probed.items()]
    newest = max(_release(str(version)) for version in probed.values())
    if newest < packages.JAVA_EXTRA_RELEASE:
        detail = f"programs that are built for Java {newest + 1} or later do not run"
        found.append(Finding("newer java", "warning", detail, packages.JAVA_EXTRA))
    return found


def _release(version: str) -> int:
    """The feature release of a version: 8 of "1.8.0_392", 17 of "17.0.15"."""
    numbers = [int(part) for part in version.replace("_", ".").replace("+", ".").split(".") if part.isdecimal()]
    old = len(numbers) > 1 and numbers[0] == 1
    return numbers[1] if old else numbers[0] if numbers else 0


def _windows(probed: Mapping[str, Any]) -> list[Finding]:
    if not probed:
        return [
            Finding("wine", "missing", "is not installed: no program of Windows can run", packages.apt(*packages.WINE))
        ]
    return [Finding("wine", "ok", f"{probed.get('version', '')} at {probed.get('path', '')}")]


def _clr(probed: Mapping[str, Any]) -> list[Finding]:
    if not probed:
        return [Finding("mono", "missing", "is not installed: no program of .NET can run", packages.apt(*packages.CLR))]
    return [Finding("mono", "ok", f"at {probed.get('path', '')}")]


def _foreign(probed: Mapping[str, Any]) -> list[Finding]:
    emulators, roots = probed.get("emulators", {}), probed.get("sysroots", {})
    if emulators:
        found = [Finding("qemu-user", "ok", f"runs programs of {len(emulators)} architectures")]
    else:
        why = "is not installed: no program for another processor can run"
        found = [Finding("qemu-user", "missing", why, packages.apt(*packages.QEMU_USER))]
    return found + [_libraries(arch, str(roots.get(arch, ""))) for arch in packages.COMMON]


def _libraries(arch: str, directory: str) -> Finding:
    name = f"libraries {arch}"
    if directory:
        return Finding(name, "ok", f"at {directory}")
    detail = f"are not installed: static programs for {arch} run, dynamic ones do not"
    return Finding(name, "warning", detail, packages.apt(*packages.SYSROOTS[arch].packages))
