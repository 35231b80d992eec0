"""The first and last network of a host, made and removed again and again."""

from __future__ import annotations

import pytest

from tests.daemon import Daemon
from tests.live.test_networks import clear, wait_for
from tests.needs import needs_program, needs_root

pytestmark = [pytest.mark.timeout(120), needs_root, needs_program("nft", "dnsmasq")]


def test_what_networks_share_begins_as_often_as_it_is_wanted() -> None:
    daemon = Daemon().start()
    try:
        for _ in range(7):
            daemon.roost("network", "create", "lan")
            wait_for(lambda: _phase(daemon) in ("ready", "failed"), "the network")
            assert _phase(daemon) == "ready", daemon.log()[-2000:]
            clear(daemon)
    finally:
        left = daemon.close()
    assert not left, "left behind:\n" + "\n".join(left)


def _phase(daemon: Daemon) -> str:
    return str(daemon.request("GET", "/v1/networks/default/lan")[1]["status"]["phase"])
