"""A real machine, used as people use it: launched, spoken to, copied to and from, stopped, renamed and removed."""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.live.inside import until
from tests.needs import needs_root


def test_only_the_guest_can_answer(daemon: Daemon, tiny: str) -> None:
    nonce = secrets.token_hex(16)
    answer = daemon.roost(
        "exec", tiny, "--", "sh", "-c", "cat /proc/sys/kernel/random/boot_id; hostname; cat", stdin=nonce.encode()
    )
    boot, hostname, echoed = answer.stdout.splitlines()
    assert boot != Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (hostname, echoed) == (tiny, nonce)


@pytest.mark.parametrize("code", [0, 1, 42, 123, 255])
def test_exec_gives_the_guests_own_code(daemon: Daemon, tiny: str, code: int) -> None:
    assert daemon.roost("exec", tiny, "--", "sh", "-c", f"exit {code}", check=False).returncode == code


def test_exec_keeps_the_streams_apart(daemon: Daemon, tiny: str) -> None:
    done = daemon.roost("exec", tiny, "--", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_a_command_that_does_not_exist_is_127(daemon: Daemon, tiny: str) -> None:
    done = daemon.roost("exec", tiny, "--", "no-such-program", check=False)
    assert done.returncode == 127
    assert "no-such-program" in done.stderr


def test_a_timeout_kills_the_command(daemon: Daemon, tiny: str) -> None:
    mark = secrets.token_hex(4)
    done = daemon.roost("exec", "--timeout", "1", tiny, "--", "sh", "-c", f"sleep 1000 # {mark}", check=False)
    assert done.returncode == 124
    assert mark not in daemon.roost("exec", tiny, "--", "ps").stdout


def test_ten_megabytes_both_ways_are_the_same_bytes(daemon: Daemon, tiny: str, tmp_path: Path) -> None:
    data = os.urandom(10 << 20)
    with daemon.host() as host:
        done = host.machines.handle(tiny).run("cat", input=data)
    assert done.stdout_bytes == data


def test_many_sessions_at_once(daemon: Daemon, tiny: str) -> None:
    with daemon.host() as host:
        machine = host.machines.handle(tiny)
        sessions = [machine.execute("sh", "-c", f"sleep 1; echo {number}; exit {number}") for number in range(16)]
        results = [session.completed() for session in sessions]
    assert [(done.code, done.stdout.strip()) for done in results] == [(number, str(number)) for number in range(16)]


def test_leaving_a_stream_kills_the_command(daemon: Daemon, tiny: str) -> None:
    mark = f"mark-{secrets.token_hex(4)}"
    with daemon.host() as host:
        machine = host.machines.handle(tiny)
        with machine.stream("sh", "-c", f"echo first; exec -a {mark} sleep 1000; true") as stream:
            assert next(iter(stream)).text.startswith("first")
        until(lambda: "sleep 1000" not in machine.run("ps").stdout)


def test_directories_are_copied_both_ways_with_modes(daemon: Daemon, tiny: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "inner" / ("long-" * 30)).mkdir(parents=True)
    (tree / "inner" / "script").write_text("#!/bin/sh\necho run\n")
    (tree / "inner" / "script").chmod(0o750)
    (tree / "inner" / "übel name").write_bytes(os.urandom(200_000))
    (tree / "link").symlink_to("inner/script")
    daemon.roost("copy", str(tree), f"{tiny}:/tmp/")
    assert daemon.roost("exec", tiny, "--", "/tmp/tree/link").stdout == "run\n"
    daemon.roost("copy", f"{tiny}:/tmp/tree", str(tmp_path / "back"))
    back = tmp_path / "back"
    assert (back / "inner" / "script").stat().st_mode & 0o777 == 0o750
    assert (back / "inner" / "übel name").read_bytes() == (tree / "inner" / "übel name").read_bytes()
    assert str((back / "link").readlink()) == "inner/script"


def test_the_console_record_holds_what_the_kernel_said(daemon: Daemon, tiny: str) -> None:
    daemon.roost("exec", tiny, "--", "sh", "-c", "echo a-mark-on-the-console > /dev/console")
    until(lambda: "a-mark-on-the-console" in daemon.roost("logs", tiny).stdout)


def test_stop_start_pause_resume_restart_rename_delete(daemon: Daemon) -> None:
    daemon.roost("launch", "tiny", "power", "--memory", "128MiB")
    first = daemon.json("show", "power")
    daemon.roost("pause", "power")
    assert daemon.json("show", "power")["status"]["phase"] == "paused"
    daemon.roost("resume", "power")
    daemon.roost("exec", "power", "--", "true")
    daemon.roost("rename", "power", "renamed")
    daemon.roost("restart", "renamed")
    second = daemon.json("show", "renamed")
    assert second["status"]["phase"] == "running"
    assert second["status"]["pid"] != first["status"]["pid"]
    daemon.roost("exec", "renamed", "--", "true")
    daemon.roost("stop", "renamed")
    stopped = daemon.json("show", "renamed")["status"]
    assert stopped["phase"] == "stopped"
    assert "force" not in stopped["exit"], "the guest did not hear its power button"
    assert not Path(f"/proc/{second['status']['pid']}").exists()
    daemon.roost("start", "renamed")
    daemon.roost("exec", "renamed", "--", "true")
    daemon.roost("delete", "renamed", "--yes")
    assert daemon.roost("show", "renamed", check=False).returncode == 3


def test_a_guest_that_powers_off_is_stopped(daemon: Daemon) -> None:
    daemon.roost("launch", "tiny", "off", "--memory", "128MiB")
    daemon.roost("exec", "off", "--", "poweroff", check=False)
    status = _wait_for(daemon, "off", "stopped")
    assert status["error"] is None


def test_a_panic_is_a_crash_with_its_reason(daemon: Daemon) -> None:
    daemon.roost("launch", "tiny", "panic", "--memory", "128MiB")
    daemon.roost("exec", "panic", "--", "sh", "-c", "echo c > /proc/sysrq-trigger", check=False)
    status = _wait_for(daemon, "panic", "crashed")
    assert "panic" in status["exit"]
    assert "sysrq" in daemon.roost("logs", "panic").stdout.lower()


def test_a_killed_qemu_is_a_crash_and_starts_again(daemon: Daemon) -> None:
    daemon.roost("launch", "tiny", "killed", "--memory", "128MiB")
    os.kill(daemon.json("show", "killed")["status"]["pid"], 9)
    _wait_for(daemon, "killed", "crashed")
    daemon.roost("start", "killed")
    daemon.roost("exec", "killed", "--", "true")


def test_an_ephemeral_machine_is_gone_after_its_stop(daemon: Daemon) -> None:
    daemon.roost("launch", "tiny", "brief", "--memory", "128MiB", "--ephemeral")
    daemon.roost("stop", "brief", "--force")
    deadline = time.monotonic() + 60
    while daemon.roost("show", "brief", check=False).returncode != 3:
        assert time.monotonic() < deadline


def test_a_taken_name_is_a_conflict(daemon: Daemon, tiny: str) -> None:
    done = daemon.roost("launch", "tiny", tiny, check=False)
    assert done.returncode == 4
    assert "fix:" in done.stderr


def test_more_memory_than_the_host_has_is_refused(daemon: Daemon) -> None:
    done = daemon.roost("launch", "tiny", "huge", "--memory", "900GiB", check=False)
    assert done.returncode == 6
    assert "memory" in done.stderr
    assert "why:" in done.stderr


def test_a_spec_with_ten_mistakes_is_told_all_of_them(daemon: Daemon) -> None:
    spec = {"image": "X Y", "cpus": 0, "memory": "3XB", "disk": 5, "arch": "vax", "power": "off", "colour": 1,
            "publish": [{"host_port": 0, "guest_port": 1}], "users": [{}], "stop_grace": -1}  # fmt: skip
    document = json.dumps({"kind": "machine", "name": "bad", "spec": spec})
    done = daemon.roost("apply", "-f", "-", stdin=document.encode(), check=False)
    assert done.returncode == 2
    missing = [field for field in spec if field not in done.stderr]
    assert missing == []
    assert daemon.roost("show", "bad", check=False).returncode == 3


@needs_root
def test_every_layer_of_the_jail_holds(daemon: Daemon, tiny: str) -> None:
    shown = daemon.json("show", tiny)["status"]
    pid = shown["pid"]
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert min(int(uid) for uid in status["Uid"].split()) >= 300_000
    assert {
        name: int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")
    } == dict.fromkeys(("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"), 0)
    assert (status["NoNewPrivs"], status["Seccomp"], status["NSpid"].split()[1]) == ("1", "2", "1")
    spaces = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
    shared = [
        name for name in spaces if Path(f"/proc/{pid}/ns/{name}").readlink() == Path(f"/proc/self/ns/{name}").readlink()
    ]
    assert shared == []
    targets = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    ours = ("socket:", "anon_inode:", "/dev/null", "/memfd:", "pipe:", "/dev/urandom")
    foreign = [target for target in targets if not target.startswith(ours)]
    assert [Path(target).name for target in foreign] == ["memory (deleted)"], "QEMU knows its memory by an empty file"
    assert not (Path(f"/proc/{pid}/root/proc").exists() and any(Path(f"/proc/{pid}/root/proc").iterdir()))
    assert shown["isolation"]["boundary"] == "jail"


@pytest.mark.fault(67)
def test_an_emulated_machine_never_claims_more_than_its_jail(daemon: Daemon, tiny: str) -> None:
    isolation = daemon.json("show", tiny)["status"]["isolation"]
    assert isolation["boundary"] == "jail"
    assert "only" in isolation["note"]


def test_the_verdict_is_told_in_one_line(daemon: Daemon, tiny: str) -> None:
    status = daemon.json("show", tiny)["status"]
    assert status["accelerator"] == "kvm" or any("emulated" in line for line in status["warnings"])


def _wait_for(daemon: Daemon, name: str, phase: str, seconds: float = 60) -> dict[str, object]:
    deadline = time.monotonic() + seconds
    while True:
        status: dict[str, object] = daemon.machine(name)["status"]
        if status["phase"] == phase:
            return status
        assert time.monotonic() < deadline, f"{name} is {status['phase']}, not {phase}\n{daemon.log()[-3000:]}"
        time.sleep(0.2)
