"""Programs of an ordinary user: `roost run` of every kind, a daemon of the user's own, and a daemon of root that serves its group."""

from __future__ import annotations

import grp
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import leftovers
from tests.checkout import ROOT
from tests.daemon import ROOST, Daemon
from tests.needs import needs_program, needs_root
from tests.programs import build, managed
from tests.somebody import Ordinary, processes, python_for

pytestmark = [needs_root, pytest.mark.timeout(300)]

UID = 12346
"""Not the user of other tests, all of whose processes they end."""
GROUP = 64321
SECONDS = 30.0

MAKERS: dict[str, Callable[[], Path]] = {
    "wasm": lambda: build.program("probe", "wasm"),
    "native": build.program,
    "foreign": lambda: build.program("probe", "aarch64"),
    "script": lambda: ROOT / "tests/programs/probe.py",
    "jvm": managed.jar,
    "wine": lambda: build.program("probe", "exe"),
    "clr": managed.clr,
}
"""A program that speaks the probe's language, for each runtime."""


@pytest.fixture(scope="module")
def somebody() -> Iterator[Ordinary]:
    """A user with a home and the sources; none of the user's processes and files are left at the end."""
    home = Path(tempfile.mkdtemp(prefix="roost-user-", dir="/tmp"))
    try:
        shutil.copytree(ROOT / "src", home / "src", ignore=shutil.ignore_patterns("__pycache__"))
        (home / "tmp").mkdir()
        subprocess.run(["chown", "-R", f"{UID}:{UID}", home], check=True)
        home.chmod(0o755)
        who = Ordinary(home, python_for(home, UID), UID)
        who.environ |= {"ROOST_ZYGOTE": "0", "TMPDIR": str(home / "tmp")}
        yield who
        who.roost("serve", "--stop", check=False)
        left = leftovers.wait_until_none(who.state, who.run)
        until(lambda: not processes(UID), "no process of the user is left")
    finally:
        for pid in processes(UID):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)
    assert left == [], "left behind:\n" + "\n".join(left)


def until(holds: Callable[[], Any], what: str) -> Any:
    """What `holds` gives as soon as it gives something."""
    deadline = time.monotonic() + SECONDS
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what}: not within {SECONDS} s"
        time.sleep(0.05)
    return found


def bring(who: Ordinary, file: Path) -> str:
    """A copy of the file in the user's home; skips the test where this host can not run it."""
    copy = who.home / file.name
    shutil.copy(file, copy)
    os.chown(copy, UID, UID)
    copy.chmod(0o755)
    said = who.roost("inspect", "-o", "json", str(copy), check=False)
    needs = json.loads(said.stdout)["missing"]
    if needs:
        pytest.skip(f"not installed: {needs}")
    return str(copy)


def script(who: Ordinary, name: str, text: str) -> str:
    """A shell script of the user."""
    file = who.home / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


def in_phase(who: Ordinary, name: str, phase: str) -> dict[str, Any]:
    return dict(until(lambda: (it := who.show(name))["status"]["phase"] == phase and it, f"{name} is {phase}"))


@pytest.mark.parametrize("runtime", MAKERS)
def test_every_kind_runs_with_its_own_code_and_keeps_its_things_in_the_users_cache(
    somebody: Ordinary, runtime: str
) -> None:
    file = bring(somebody, MAKERS[runtime]())
    said = somebody.roost("run", file, "out", "grüße")
    assert (said.stdout, said.stderr) == ("grüße\n", "")
    assert somebody.roost("run", file, "exit", "7", check=False).returncode == 7
    kept = [entry for entry in somebody.home.rglob(".cache/roost/*")]
    assert {entry.stat().st_uid for entry in kept} <= {UID}
    assert not list((somebody.home / "tmp").iterdir())


@pytest.mark.parametrize("runtime", ["wasm", "native", "script", "jvm"])
def test_programs_are_kept_by_the_users_own_daemon(somebody: Ordinary, runtime: str) -> None:
    file = bring(somebody, MAKERS[runtime]())
    said = somebody.roost("run", "--detach", "--name", "kept", file, "out", "kept")
    assert said.stdout.startswith("kept ") and "next: roost logs kept" in said.stdout
    try:
        in_phase(somebody, "kept", "exited")
        assert somebody.roost("logs", "kept").stdout == "kept\n"
        assert somebody.show("kept")["status"]["runtime"] == runtime
    finally:
        somebody.roost("program", "delete", "kept")


def test_a_program_of_the_users_daemon_outlives_it_and_comes_back_after_its_own_end(somebody: Ordinary) -> None:
    file = script(somebody, "serve.sh", "trap 'exit 0' TERM\necho $1\nwhile :; do sleep 0.1; done")
    somebody.roost("run", "--detach", "--name", "api", "--restart", "always", file, "up")
    (pid,) = [pid for pid in processes(UID) if b"\0serve\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    before = in_phase(somebody, "api", "running")["status"]
    os.kill(pid, signal.SIGKILL)
    assert in_phase(somebody, "api", "running")["status"]["process"] == before["process"]
    (shell,) = [pid for pid in processes(UID) if b"/app/serve.sh" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(shell, signal.SIGKILL)
    until(lambda: somebody.show("api")["status"]["restarted"] == 1, "it comes back")
    in_phase(somebody, "api", "running")
    until(lambda: somebody.roost("logs", "api").stdout == "up\nup\n", "both runs are in the log")
    somebody.roost("stop", "api")
    assert "stopped" in somebody.roost("list").stdout
    somebody.roost("program", "delete", "api")
    assert somebody.roost("list", "-o", "json").stdout.strip() == "[]"
    assert not [*(somebody.state / "programs").iterdir(), *(somebody.state / "contents").iterdir()]


def test_a_file_that_the_user_may_not_read_is_refused_in_words(somebody: Ordinary) -> None:
    secret = somebody.home / "secret.wasm"
    secret.write_bytes(b"\0asm\1\0\0\0")
    secret.chmod(0o600)
    detached = somebody.roost("run", "--detach", str(secret), check=False)
    assert (detached.returncode, detached.stderr.splitlines()[0]) == (5, f"error: {secret} can not be read")
    assert somebody.roost("run", str(secret), check=False).returncode == 125


@pytest.fixture(scope="module")
def served(somebody: Ordinary) -> Iterator[Ordinary]:
    """The same user as a member of the group `roost`, with a daemon of root and a project there. The group exists for that daemon alone."""
    daemon = Daemon()
    groups = daemon.run / "group"
    names = [f"{it.gr_name}:x:{it.gr_gid}:" for it in grp.getgrall() if it.gr_name != "roost"]
    groups.write_text("\n".join([*names, f"roost:x:{GROUP}:", ""]))
    member = Ordinary(somebody.home, somebody.python, UID)
    member.groups = (GROUP,)
    member.environ |= {"ROOST_HOST": f"unix:{daemon.socket}", "ROOST_PROJECT": "lab"}
    own = ["sh", "-c", f'mount --bind {groups} /etc/group && exec "$@"', "sh", *ROOST, "serve"]
    try:
        with daemon.log_file.open("ab") as log:
            daemon.process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", *own],
                env=daemon.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        daemon.wait_healthy()
        member.roost("project", "create", "lab")
        yield member
    finally:
        left = daemon.close()
    assert left == [], "left behind:\n" + "\n".join(left)


@needs_program("unshare")
@pytest.mark.fault(79)
@pytest.mark.parametrize(
    ("flags", "given"),
    [
        (("--fs", "/etc:/e:ro"), "fs: /etc"),
        (("--fs", "."), "fs: /"),
        (("--publish", "18099:80"), "publish: 127.0.0.1:18099"),
        (("--net", "localhost:22"), "net: localhost:22"),
        (("--net", "[::ffff:127.0.0.1]:22"), "net: [::ffff:127.0.0.1]:22"),
        (("--gui",), "gui"),
    ],
    ids=lambda value: "".join(value[:1]) if isinstance(value, tuple) else "",
)
def test_a_member_of_the_group_is_lent_nothing_of_roots(served: Ordinary, flags: tuple[str, ...], given: str) -> None:
    file = script(served, "idle.sh", "sleep 60")
    said = served.roost("run", "--detach", "--name", "greedy", *flags, file, check=False)
    assert said.returncode == 5
    assert f"only an admin of this daemon may lend it the host's own: {given}" in said.stderr
    assert "fix: leave that out; or run it without the daemon" in said.stderr
    assert served.roost("list", "-o", "json").stdout.strip() == "[]"


@needs_program("unshare")
@pytest.mark.fault(79)
def test_a_members_program_is_nobody_on_the_host_and_sees_nothing_of_root(served: Ordinary) -> None:
    file = script(served, "look.sh", "cat /etc/shadow /etc/gshadow; echo up; exec sleep 60")
    served.roost("run", "--detach", "--name", "look", file)
    try:
        until(lambda: served.roost("logs", "look").stdout.endswith("up\n"), "it has looked")
        assert served.roost("logs", "look").stdout.count("No such file or directory") == 2
        keeper = in_phase(served, "look", "running")["status"]["process"]["pid"]
        init = int(Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()[0])
        asleep = int(Path(f"/proc/{init}/task/{init}/children").read_text().split()[0])
        status = Path(f"/proc/{asleep}/status").read_text().split("\n")
        (uids,) = [set(line.split()[1:]) for line in status if line.startswith("Uid:")]
        assert min(map(int, uids)) >= 10_000_000
    finally:
        served.roost("delete", "look", "--yes")


@needs_program("unshare")
@pytest.mark.parametrize("runtime", ["wasm", "script", "jvm", "wine", "clr"])
def test_root_s_daemon_runs_every_kind_for_a_member(served: Ordinary, runtime: str) -> None:
    file = bring(served, MAKERS[runtime]())
    served.roost("run", "--detach", "--name", "mine", file, "out", "mine")
    try:
        in_phase(served, "mine", "exited")
        assert served.roost("logs", "mine").stdout == "mine\n"
    finally:
        served.roost("delete", "mine", "--yes")
