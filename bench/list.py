"""The command `roost list` against `virsh list --all`, wall time from the shell, each over ten machines that are not running.

libvirtd is started by hand on a socket of its own; its ten domains are removed again. Needs root for the peer, as libvirt's system
driver does.
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
DOMAIN = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>128</memory><os><type arch='x86_64'>hvm</type></os></domain>"""
CONFIGURATION = 'unix_sock_dir = "{directory}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'


def timed(command: list[str], environ: dict[str, str]) -> float:
    """Seconds of wall time of a command that must succeed and name all machines."""
    begin = time.perf_counter()
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - begin
    if done.stdout.count("bench-") < MACHINES:
        raise SystemExit(f"{command[0]} did not list the machines:\n{done.stdout}")
    return seconds


@contextmanager
def libvirt() -> Iterator[list[str]]:
    """A libvirtd with the domains; yields the beginning of a virsh command line."""
    with tempfile.TemporaryDirectory(prefix="virt-") as directory:
        configuration = Path(directory) / "conf"
        configuration.write_text(CONFIGURATION.format(directory=directory))
        daemon = subprocess.Popen(
            ["libvirtd", "-f", str(configuration), "-p", f"{directory}/pid"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        virsh = ["virsh", "-c", f"qemu+unix:///system?socket={directory}/libvirt-sock"]
        names = [f"roost-bench-{number}" for number in range(MACHINES)]
        try:
            wait_for([*virsh, "list"])
            for name in names:
                document = Path(directory) / f"{name}.xml"
                document.write_text(DOMAIN.format(name=name))
                wait_for([*virsh, "define", str(document)])
            yield virsh
        finally:
            for name in names:
                subprocess.run([*virsh, "undefine", name], check=False, capture_output=True)
            daemon.terminate()
            daemon.wait()


def wait_for(command: list[str]) -> None:
    """Until a command succeeds; at most a minute."""
    deadline = time.monotonic() + 60
    while (done := subprocess.run(command, check=False, capture_output=True, text=True)).returncode:
        if time.monotonic() > deadline:
            raise SystemExit(f"{' '.join(command)}: {done.stderr}")
        time.sleep(0.1)


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
        ours = [timed([*roost_command(), "list"], daemon.environ) for _ in range(runs)]
        print(promise("roost list", median(ours), 0.15))
        if os.getuid() != 0:
            print("virsh: left out, for libvirt's system driver needs root")
            return
        with libvirt() as virsh:
            theirs = [timed([*virsh, "list", "--all"], dict(os.environ)) for _ in range(runs)]
        print(row("list of 10 machines", median(ours), median(theirs), "virsh 9 (Debian, C)"))
    finally:
        daemon.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else RUNS)
