"""Volumes through the real daemon, in a real guest: every verb, a move under a writer, a full pool, and a daemon that dies in the middle."""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from roost.host.failpoints import POINTS
from tests.daemon import Daemon

pytestmark = pytest.mark.live

BLOCK = 512
SPARE_MIB = 24
"""What fills the small pool beside its volume, so that it can be taken away again."""


@pytest.fixture(scope="module")
def storage() -> Iterator[Daemon]:
    """A daemon with a machine and a second pool."""
    made = Daemon()
    # Naming the socket keeps the commands from starting a daemon of their own when this one dies.
    made.environ["ROOST_HOST"] = f"unix:{made.socket}"
    made.start()
    try:
        made.roost("launch", "tiny", "web", "--memory", "128MiB", timeout=300)
        (made.state / "other").mkdir()
        made.roost("pool", "create", "other", "--path", str(made.state / "other"))
        yield made
    finally:
        left = made.close()
    assert not left, "left behind:\n" + "\n".join(left)


@pytest.fixture
def web(storage: Daemon) -> Iterator[Daemon]:
    """The same; afterwards its machine has no volume, and there is none."""
    yield storage
    if storage.process is None or storage.process.poll() is not None:
        storage.start()
    storage.request("PATCH", "/v1/machines/default/web", {"spec": {"volumes": [], "power": "running"}})
    _until(lambda: not storage.machine("web")["status"]["volumes"], "volumes are detached", storage)
    for kind in ("volumesnapshots", "volumes"):
        _delete_all(storage, kind)


def _delete_all(daemon: Daemon, kind: str) -> None:
    for item in _all(daemon, kind):
        daemon.request("DELETE", f"/v1/{kind}/default/{item['name']}?now=true")
    _until(lambda: not _all(daemon, kind), f"{kind} are gone", daemon)


def _all(daemon: Daemon, kind: str) -> list[dict[str, Any]]:
    return list(daemon.request("GET", f"/v1/{kind}")[1]["items"])


def _volume(daemon: Daemon, name: str = "data") -> dict[str, Any]:
    status, found = daemon.request("GET", f"/v1/volumes/default/{name}")
    assert status == 200, found
    return dict(found)


def _until(holds: Callable[[], bool], what: str, daemon: Daemon, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        said = [daemon.machine("web")["status"], _all(daemon, "volumes")]
        assert time.monotonic() < deadline, f"not after {seconds} s: {what}\n{json.dumps(said)}\n{daemon.log()[-3000:]}"
        time.sleep(0.05)


def _inside(daemon: Daemon, script: str, *, check: bool = True, timeout: float = 60) -> str:
    return daemon.roost("exec", "web", "--", "sh", "-c", script, check=check, timeout=timeout).stdout.strip()


def _disk(name: str) -> str:
    """A line of shell that finds the disk with this serial, and waits for it."""
    look = 'for d in /sys/block/sd*; do tail -c +5 $d/device/vpd_pg80 2>/dev/null | grep -aqx "{}" && dev=/dev/${{d##*/}}; done'
    return f'n=0; dev=; while [ -z "$dev" ] && [ $n -lt 100 ]; do {look.format(name)}; n=$((n+1)); [ -n "$dev" ] || sleep 0.1; done; '


def _write(daemon: Daemon, text: str, name: str = "data") -> None:
    _inside(daemon, _disk(name) + f"echo {text} | dd of=$dev bs={BLOCK} conv=sync,fsync,notrunc 2>/dev/null")


def _read(daemon: Daemon, name: str = "data") -> str:
    return _inside(
        daemon,
        _disk(name) + f"echo 3 > /proc/sys/vm/drop_caches; dd if=$dev bs={BLOCK} count=1 2>/dev/null | head -n 1",
    )


def _attached(daemon: Daemon, name: str = "data", size: str = "64MiB") -> str:
    """A new volume, attached, with a nonce in it."""
    nonce = secrets.token_hex(8)
    daemon.roost("volume", "create", name, "--size", size)
    daemon.roost("volume", "attach", name, "web")
    _write(daemon, nonce, name)
    return nonce


def _whole(daemon: Daemon) -> None:
    assert "whole" in daemon.roost("doctor", "storage").stdout


# ---------------------------------------------------------------------- every verb


def test_a_volume_lives_through_every_verb(web: Daemon) -> None:
    first = _attached(web)
    assert _read(web) == first
    web.roost("volume", "grow", "data", "96MiB")
    assert _inside(web, _disk("data") + "cat /sys/block/${dev##*/}/size") == str((96 << 20) // 512)
    web.roost("volume", "snapshot", "data", "one")
    second = secrets.token_hex(8)
    _write(web, second)
    web.roost("volume", "clone", "data.one", "old")
    web.roost("volume", "clone", "data", "new")  # of a volume that the guest writes
    for name, nonce in (("old", first), ("new", second)):
        web.roost("volume", "attach", name, "web")
        assert _read(web, name) == nonce
    web.roost("volume", "limit", "data", "--iops", "5000")
    web.roost("volume", "move", "data", "other")
    assert (_read(web), _volume(web)["status"]["pool"]) == (second, "other")
    web.roost("volume", "detach", "data")
    web.roost("volume", "rename", "data", "kept")
    web.roost("volume", "delete", "kept")
    (trash,) = [item["name"] for item in _all(web, "volumes") if item["status"]["phase"] == "trash"]
    web.roost("volume", "restore", trash)
    web.roost("volume", "attach", "kept", "web")
    assert (trash.startswith("kept--trash-"), _read(web, "kept")) == (True, second)
    _whole(web)


def test_a_volume_that_a_machine_writes_is_nobody_elses(web: Daemon) -> None:
    nonce = _attached(web)
    refused = web.roost("launch", "tiny", "thief", "--volume", "data", check=False)
    assert refused.returncode == 4
    assert "web has it" in refused.stderr
    assert web.roost("volume", "delete", "data", check=False).returncode == 4
    refused = web.roost("snapshot", "web", "s", check=False)
    assert (refused.returncode, "--no-memory" in refused.stderr) == (4, True)
    assert _read(web) == nonce


@pytest.mark.parametrize("key", ["held", "lost"])
def test_an_encrypted_volume_is_read_with_its_key_alone(web: Daemon, key: str) -> None:
    web.roost("volume", "create", "data", "--size", "16MiB", "--encrypted")
    nonce = secrets.token_hex(8)
    web.roost("volume", "attach", "data", "web")
    _write(web, nonce)
    web.roost("volume", "snapshot", "data", "one")
    web.roost("volume", "detach", "data")
    web.stop()
    files = [path for path in (web.state / "pools").rglob("*.qcow2") if path.is_file()]
    assert files
    assert not [path for path in files if nonce.encode() in path.read_bytes()]
    kept = web.state / "keys"
    if key == "lost":
        kept.rename(web.state / "hidden")
    web.start()
    attached = web.roost("volume", "attach", "data", "web", check=False, timeout=30)
    if key == "lost":
        assert attached.returncode != 0
        assert "key" in attached.stderr
        (web.state / "hidden").rename(kept)
        _until(lambda: _is_attached(web), "it is attached when the key is back", web)
    assert _read(web) == nonce


def _is_attached(daemon: Daemon, name: str = "data") -> bool:
    mounts = daemon.machine("web")["status"]["volumes"]
    return [mount["phase"] for mount in mounts if mount["volume"] == name] == ["attached"]


# ---------------------------------------------------------------------- moves under a writer

WRITER = """
i=0
while [ ! -e /tmp/stop ]; do
  i=$((i+1)); s="$i {nonce}"
  echo "$s $(echo $s | md5sum)" | dd of=$dev bs={block} seek=$i conv=sync,fsync,notrunc 2>/dev/null || break
  echo $i > /tmp/acknowledged
done
"""
CHECKER = """
echo 3 > /proc/sys/vm/drop_caches
i=0; bad=0; n=$(cat /tmp/acknowledged)
while [ $i -lt $n ]; do
  i=$((i+1)); s="$i {nonce}"
  [ "$(dd if=$dev bs={block} skip=$i count=1 2>/dev/null | tr -d '\\000')" = "$s $(echo $s | md5sum)" ] || bad=$((bad+1))
done
echo $n $bad
"""


def _begin_writer(daemon: Daemon, nonce: str) -> None:
    script = _disk("data") + WRITER.format(nonce=nonce, block=BLOCK)
    _inside(daemon, f"rm -f /tmp/stop /tmp/acknowledged; ({script}) >/dev/null 2>&1 </dev/null & true")


def _acknowledged(daemon: Daemon) -> int:
    return int(_inside(daemon, "cat /tmp/acknowledged 2>/dev/null || echo 0") or 0)


def _check_writer(daemon: Daemon, nonce: str) -> int:
    """How many blocks were acknowledged; each of them is there."""
    _inside(daemon, "touch /tmp/stop; sleep 0.5")
    done, bad = _inside(daemon, _disk("data") + CHECKER.format(nonce=nonce, block=BLOCK)).split()
    assert bad == "0", f"{bad} of {done} acknowledged blocks are lost"
    return int(done)


@pytest.mark.fault(8)
def test_a_volume_moves_under_a_writer_and_loses_nothing(web: Daemon) -> None:
    nonce = _attached(web)
    _begin_writer(web, nonce)
    _until(lambda: _acknowledged(web) > 3, "the writer writes", web)
    before = _acknowledged(web)
    web.roost("volume", "move", "data", "other")
    web.roost("volume", "snapshot", "data", "one")
    web.roost("volume", "move", "data", "default")
    _until(lambda: _acknowledged(web) > before + 3, "the writer goes on", web)
    assert _check_writer(web, nonce) > before
    _whole(web)


# ---------------------------------------------------------------------- a full pool


@pytest.fixture
def small(web: Daemon, tmp_path: Path) -> Iterator[Path]:
    """A pool of 64 MiB, some of it taken by something else."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=0755", "roost-test", str(place)], check=True)
    try:
        (place / "other").write_bytes(bytes(SPARE_MIB << 20))
        web.roost("pool", "create", "small", "--path", str(place))
        yield place
        web.request("PATCH", "/v1/machines/default/web", {"spec": {"volumes": []}})
        _until(lambda: not web.machine("web")["status"]["volumes"], "volumes are detached", web)
        for item in _all(web, "volumes"):
            web.request("DELETE", f"/v1/volumes/default/{item['name']}?now=true")
        _until(lambda: not _all(web, "volumes"), "volumes are gone", web)
        web.roost("pool", "delete", "small")
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.mark.fault(10)
def test_a_full_pool_holds_its_writers_and_lets_them_go_on(web: Daemon, small: Path) -> None:
    web.roost("volume", "create", "data", "--size", "48MiB", "--pool", "small")
    web.roost("volume", "attach", "data", "web")
    fill = "dd if=/dev/urandom of=/tmp/noise bs=1M count=1 2>/dev/null; md5sum < /tmp/noise > /tmp/sum; " + (
        "i=0; while [ $i -lt 44 ]; do dd if=/tmp/noise of=$dev bs=1M seek=$i conv=fsync,notrunc 2>/dev/null; i=$((i+1)); done; touch /tmp/done"
    )
    _inside(web, f"rm -f /tmp/done; ({_disk('data') + fill}) >/dev/null 2>&1 </dev/null & true")
    _until(lambda: web.machine("web")["status"]["phase"] == "paused", "the writer stands still", web)
    told = web.machine("web")["status"]["error"]
    assert 'pool "small" is all but full' in told["why"]
    refused = web.roost("volume", "create", "more", "--size", "1MiB", "--pool", "small", check=False)
    assert refused.returncode != 0
    assert "small" in refused.stderr
    web.stop()
    web.start()  # it is held by the next daemon, too
    time.sleep(1)
    assert web.machine("web")["status"]["phase"] == "paused"
    (small / "other").unlink()
    _until(lambda: web.machine("web")["status"]["phase"] == "running", "it goes on by itself", web)
    _until(lambda: _inside(web, "ls /tmp/done", check=False) != "", "everything is written", web, 60)
    check = "i=0; while [ $i -lt 44 ]; do dd if=$dev bs=1M skip=$i count=1 2>/dev/null | md5sum | cmp - /tmp/sum || echo $i; i=$((i+1)); done"
    assert _inside(web, _disk("data") + "echo 3 > /proc/sys/vm/drop_caches; " + check, timeout=120) == ""
    _inside(web, "rm -f /tmp/noise")


# ---------------------------------------------------------------------- a daemon that dies

ATTACH = ("mount.attaching", "mount.claimed", "mount.held", "mount.attached")
DETACH = ("mount.detached", "mount.released")
CREATE = ("volume.creating", "volume.created")
GROW = ("volume.growing", "volume.grown")
LIMIT = ("volume.limited",)
SNAPSHOT = ("volumesnapshot.saving", "volume.covering", "volume.kept", "volumesnapshot.kept")
MOVE = ("volume.moving", "volume.mirroring", "volume.switching", "volume.moved", "volume.settled", "volume.cleared")
DELETE = ("volume.trashed", "volume.removed")
QUICK = {"mount.claimed", "mount.attached", "mount.detached", "volume.creating", "volume.covering", "volume.kept"}
QUICK |= {"volume.grown", "volume.mirroring", "volume.switching", "volume.settled", "volume.trashed"}
"""Those that every run of the suite tries; the others take part in the soak."""


def _cases() -> list[Any]:
    verbs = {
        "attach": ATTACH, "detach": DETACH, "create": CREATE, "grow": GROW, "limit": LIMIT,
        "snapshot": SNAPSHOT, "move": MOVE, "delete": DELETE,
    }  # fmt: skip
    return [
        pytest.param(verb, point, id=point, marks=() if point in QUICK else (pytest.mark.soak,))
        for verb, points in verbs.items()
        for point in points
    ]


VERBS = {
    "attach": ("volume", "attach", "data", "web"),
    "detach": ("volume", "detach", "data"),
    "create": ("volume", "create", "more", "--size", "16MiB"),
    "grow": ("volume", "grow", "data", "32MiB"),
    "limit": ("volume", "limit", "data", "--iops", "777"),
    "snapshot": ("volume", "snapshot", "data", "one"),
    "move": ("volume", "move", "data", "other"),
    "delete": ("volume", "delete", "gone"),
}


def _is_done(daemon: Daemon, verb: str) -> bool:
    """Whether what the verb wants is so, by what the API says."""
    names = {item["name"]: item["status"] for item in _all(daemon, "volumes")}
    taken = {item["name"]: item["status"]["phase"] for item in _all(daemon, "volumesnapshots")}
    return {
        "attach": lambda: _is_attached(daemon),
        "detach": lambda: not daemon.machine("web")["status"]["volumes"] and not names["data"]["holders"],
        "create": lambda: names.get("more", {}).get("phase") == "ready",
        "grow": lambda: names["data"]["size"] == 32 << 20,
        "limit": lambda: names["data"]["limits"]["iops"] == 777,
        "snapshot": lambda: taken.get("data.one") == "ready",
        "move": lambda: (names["data"]["pool"], names["data"]["phase"]) == ("other", "ready"),
        "delete": lambda: "gone" not in names,
    }[verb]()


def _after(daemon: Daemon, armed: subprocess.Popen[bytes] | None) -> None:
    """The armed daemon is dead, and another one serves."""
    assert armed is not None
    assert armed.wait(60) == -9, "the failpoint was never reached"
    daemon.start()


@pytest.mark.parametrize(("verb", "point"), _cases())
def test_a_daemon_that_dies_does_it_once(web: Daemon, verb: str, point: str) -> None:
    assert point in POINTS
    nonce = _attached(web, size="16MiB")
    pid = web.machine("web")["status"]["pid"]
    if verb == "attach":
        web.roost("volume", "detach", "data")
    if verb == "snapshot":  # the second: QEMU opened the file that it writes under the name that the third is to have
        web.roost("volume", "snapshot", "data", "zero")
    if verb == "delete":
        web.roost("volume", "create", "gone", "--size", "1MiB")
    web.kill()
    web.start(ROOST_FAILPOINT=f"{point}:kill")
    words = (*VERBS[verb], *(("--now",) if point == "volume.removed" else ()))
    with suppress(subprocess.TimeoutExpired):
        web.roost(*words, check=False, timeout=20)
    _after(web, web.process)
    _until(lambda: _is_done(web, verb), f"{verb} comes to be after a cut at {point}", web)
    if verb == "snapshot":
        _write(web, nonce := secrets.token_hex(8))
        web.roost("volume", "detach", "data")
    if verb in ("detach", "snapshot"):
        web.roost("volume", "attach", "data", "web")
    assert (_read(web), web.machine("web")["status"]["pid"]) == (nonce, pid)
    _whole(web)
