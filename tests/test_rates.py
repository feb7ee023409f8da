from pathlib import Path

import msgspec
import trio
import trio.testing
from worlds import DATA, PACK, SETTINGS, read, world

from torrentfs.config import RateSettings, SiteSettings
from torrentfs.node.rates import Rate


async def test_transfers_that_share_a_rate_keep_to_it(autojump_clock: trio.testing.MockClock) -> None:
    rate = Rate(1000)

    async def transfer() -> None:
        for _ in range(10):
            await rate.take(500)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(transfer)

    assert trio.current_time() == 20.0


async def test_what_was_not_used_does_not_add_up(autojump_clock: trio.testing.MockClock) -> None:
    rate = Rate(1000)
    await trio.sleep(100)
    began = trio.current_time()

    await rate.take(3000)

    assert trio.current_time() == began + 3.0


async def test_without_a_bound_nothing_waits(autojump_clock: trio.testing.MockClock) -> None:
    await Rate(0).take(1 << 40)

    assert trio.current_time() == 0.0


async def test_a_mirror_beyond_the_site_keeps_to_the_rate_and_the_sites_own_does_not(tmp_path: Path) -> None:
    bound = RateSettings(download=len(DATA))
    settings = msgspec.structs.replace(SETTINGS, site=SiteSettings(beyond=bound))
    async with world(tmp_path / "beyond", settings) as w:
        web = await w.web()
        began = trio.current_time()

        await read(w.view(web), PACK.ref, 0, len(DATA))

        assert trio.current_time() - began >= 0.9  # never less, however fast the machine: that is the bound
        site = SiteSettings(mirrors=(web.url,), beyond=RateSettings(download=1))
    async with world(tmp_path / "within", msgspec.structs.replace(SETTINGS, site=site)) as w:
        web = await w.nursery.start(type(web)(PACK.files(), port=web.port).run)

        assert await read(w.view(web), PACK.ref, 0, len(DATA)) == DATA
