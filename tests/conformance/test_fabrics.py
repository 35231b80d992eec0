"""The fake engine of networks and the real one, as root and as an ordinary user, keep the same promises."""

from __future__ import annotations

import pytest

from roost.testing.fabrics import check_fabric
from roost.testing.network import FakeFabrics
from tests.fabrics import engine, on_host, wanted
from tests.needs import needs_program
from tests.ordinary import WHO


async def test_the_fake_keeps_the_promises_of_an_engine() -> None:
    await check_fabric(FakeFabrics(), wanted())


@pytest.mark.live
@needs_program("nft")
@pytest.mark.parametrize("who", WHO)
def test_the_real_engine_keeps_the_promises_of_an_engine(who: str) -> None:
    async def main() -> None:
        async with engine() as fabric:
            await check_fabric(fabric, wanted())

    on_host(who, main)
