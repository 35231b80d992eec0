"""The processes of a network when the host's resolvers are others, and when nothing tells of them any more."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from roost.network import resolving
from roost.network.relay import Relay
from roost.network.services import Services
from tests.live.test_network_services import Lab, _Facts, _in_lab, _instance, _readable
from tests.needs import needs_program, needs_root
from tests.ordinary import WHO

__all__ = ("_readable",)
pytestmark = [needs_program("dnsmasq"), needs_program("busybox"), needs_program("ip")]


@needs_root  # an ordinary user may have no control groups
def test_what_an_earlier_daemon_started_ends_when_nothing_tells_of_it_any_more(tmp_path: Path) -> None:
    async def test(lab: Lab) -> Any:
        before = await lab.ensure()
        await lab.services.close()
        for path in lab.paths.run.glob("*/*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        lab.paths.network(lab.wanted.uid).directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        later = lab._replace(services=Services(lab.paths, _Facts(), lab.changed.put_nowait, _instance))
        after = await later.ensure()
        left = [name for name, pid in before.items() if _runs(pid)]
        await later.services.stop(lab.wanted.uid)
        return sorted(before) == sorted(after), left

    assert _in_lab("root", tmp_path, test) == (True, [])


@pytest.mark.parametrize("who", WHO)
def test_other_resolvers_of_the_host_are_asked_as_soon_as_it_names_them(
    who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(lab: Lab) -> Any:
        named = lab.paths.run / "resolv.conf"
        named.write_text("nameserver 127.0.0.77\n")
        monkeypatch.setattr(resolving, "RESOLVERS", named)
        await lab.ensure()
        before = await _asked(lab)
        (lab.paths.run / "new").write_text("nameserver 127.0.0.78\n")
        (lab.paths.run / "new").rename(named)
        async with asyncio.timeout(5):
            uid = await lab.changed.get()
        await lab.ensure()
        after = await _asked(lab)
        return uid == lab.wanted.uid, len(before), len(after), len(before & after)

    assert _in_lab(who, tmp_path, test) == (True, 2, 2, 0)


def _runs(pid: int) -> bool:
    """Whether the child of ours has not ended."""
    return os.waitpid(pid, os.WNOHANG) == (0, 0)


async def _asked(lab: Lab) -> frozenset[str]:
    """What the relay to the host's resolvers serves: each of them by UDP and by TCP."""
    control = Relay.connect("the relay", lab.paths.services.relay)
    with contextlib.closing(control):
        return (await control.keys())[1]
