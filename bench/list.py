"""The command `roost list` over ten machines against `virsh list --all` over none, wall time from the shell.

libvirtd is started by hand on a socket of its own and is given no domains: it is not asked to change anything on this host, and an empty
list is the best case for the peer. Needs root for the peer, as libvirt's system driver does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.figures import median, promise, row
from tests.daemon import ROOST, Daemon

MACHINES = 10
RUNS = 30
CONFIGURATION = 'unix_sock_dir = "{directory}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'


def timed(command: list[str], environ: dict[str, str], machines: int) -> float:
    """Seconds of wall time of a command that must succeed and name at least `machines` machines."""
    begin = time.perf_counter()
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - begin
    if done.stdout.count("bench-") < machines:
        raise SystemExit(f"{command[0]} did not list the machines:\n{done.stdout}")
    return seconds


@contextmanager
def libvirt() -> Iterator[list[str]]:
    """A libvirtd of our own; yields the beginning of a virsh command line."""
    with tempfile.TemporaryDirectory(prefix="virt-") as directory:
        configuration = Path(directory) / "conf"
        configuration.write_text(CONFIGURATION.format(directory=directory))
        daemon = subprocess.Popen(
            ["libvirtd", "-f", str(configuration), "-p", f"{directory}/pid"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        virsh = ["virsh", "-c", f"qemu+unix:///system?socket={directory}/libvirt-sock"]
        try:
            wait_for([*virsh, "list"])
            yield virsh
        finally:
            end(daemon)


def end(daemon: subprocess.Popen[bytes]) -> None:
    """End libvirtd; it waits for its probes of every QEMU, we do not."""
    daemon.terminate()
    try:
        daemon.wait(5)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def wait_for(command: list[str]) -> None:
    """Until a command succeeds; at most a minute."""
    deadline = time.monotonic() + 60
    while not succeeds(command):
        if time.monotonic() > deadline:
            raise SystemExit(f"{' '.join(command)} did not succeed within a minute")
        time.sleep(0.1)


def succeeds(command: list[str]) -> bool:
    """Whether a command ends well within ten seconds: libvirtd at times leaves a request unanswered while it probes QEMU."""
    try:
        return subprocess.run(command, check=False, capture_output=True, timeout=10).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def roost_command() -> list[str]:
    """The installed command, as a shell would run it; the sources' own where nothing is installed."""
    installed = Path(sys.executable).with_name("roost")
    return [str(installed)] if installed.exists() else ROOST


def main(runs: int) -> None:
    """Measure in turn and print."""
    daemon = Daemon()
    try:
        daemon.start()
        with daemon.host() as host:
            for number in range(MACHINES):
                host.machines.launch("tiny", name=f"bench-{number}", wait=False, power="stopped")
        ours = [timed([*roost_command(), "list"], daemon.environ, MACHINES) for _ in range(runs)]
        print(promise("roost list", median(ours), 0.15))
        if os.getuid() != 0:
            print("virsh: left out, for libvirt's system driver needs root")
            return
        with libvirt() as virsh:
            theirs = [timed([*virsh, "list", "--all"], dict(os.environ), 0) for _ in range(runs)]
            print(row("list (ours 10, virsh 0 machines)", median(ours), median(theirs), "virsh 9 (Debian, C)"))
    finally:
        daemon.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else RUNS)
