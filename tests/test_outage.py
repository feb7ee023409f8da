"""No source can be reached: readers learn it soon, and soon that one can again."""

import socket
from pathlib import Path

import pytest
import trio
from fakes import Web
from worlds import DATA, PACK, PEERS, World, read, torrent, until, world

from torrentfs.errors import DeadlineError
from torrentfs.node import View, fetch, outage
from torrentfs.repository.metainfo import PIECE_LENGTH

PATIENCE_S = 0.4


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "PROBE_INTERVAL_S", 0.05)


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert isinstance(port, int)
        return port


async def cut_off(w: World, web: Web, *peers: tuple[str, int]) -> View:
    """Return a view of a mirror that has been out of reach for longer than a read's patience."""
    web.port = unused_port()
    view = w.view(web, peers=peers)
    with pytest.raises(DeadlineError, match="did not come in time"):
        await read(view, PACK.ref, 0, 10, PATIENCE_S)
    return view


async def test_who_comes_late_to_an_outage_does_not_wait(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        view = await cut_off(w, Web(PACK.files()))

        for _ in range(3):
            with pytest.raises(DeadlineError, match=r"no source can be reached.*127\.0\.0\.1"):
                await read(view, PACK.ref, 0, 10, PATIENCE_S / 2)


async def test_a_patient_reader_waits_on_and_gets_its_bytes_when_a_mirror_is_back(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        web = Web(PACK.files())
        view = await cut_off(w, web)

        async with trio.open_nursery() as nursery:

            async def patient() -> None:
                assert await read(view, PACK.ref, 0, 10) == DATA[:10]

            nursery.start_soon(patient)
            await until(lambda: w.node._fetcher.waiting == 1)
            with pytest.raises(DeadlineError, match="no source can be reached"):
                await read(view, PACK.ref, 0, 10, PATIENCE_S / 2)
            await w.nursery.start(web.run)

        assert not w.node._fetcher.torrents.aside()
        assert await read(view, PACK.ref, 5 * PIECE_LENGTH, 10, PATIENCE_S) == DATA[5 * PIECE_LENGTH :][:10]


async def test_the_first_read_after_quiet_times_finds_out_before_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as w:
        web = Web(PACK.files())
        view = await cut_off(w, web)
        await w.nursery.start(web.run)
        monkeypatch.setattr(outage, "KNOWN_S", 0.0)  # so long ago, all of it

        assert await read(view, PACK.ref, 0, 10, PATIENCE_S / 2) == DATA[:10]


async def test_a_connected_peer_is_waited_for(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        web = Web(PACK.files())
        web.port = unused_port()
        await w.nursery.start(web.run)
        view = w.view(web, peers=PEERS)
        await read(view, PACK.ref, 0, 10)
        w.swarm.peer[PACK.ref.info_hash] = DATA
        w.swarm.connect_peer(PACK.ref.info_hash)
        [mirror] = torrent(w).mirrors
        mirror.down_since = trio.current_time() - 1000
        mirror.probed_at = trio.current_time()

        assert await read(view, PACK.ref, PIECE_LENGTH, 10) == DATA[PIECE_LENGTH:][:10]


async def test_peers_get_their_time_when_the_metainfo_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a start, or for a moment after an eviction, none is connected yet."""
    async with world(tmp_path) as w:
        web = Web(PACK.files())
        web.port = unused_port()
        await w.nursery.start(web.run)
        await read(w.view(web), PACK.ref, 0, 10)
    async with world(tmp_path) as w:
        web.port = unused_port()
        view = w.view(web, peers=PEERS)
        w.swarm.peer[PACK.ref.info_hash] = DATA
        [mirror] = w.node._fetcher.torrents.mirrors(view.sources)
        mirror.down_since = trio.current_time() - 1000
        mirror.probed_at = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def reader() -> None:
                assert await read(view, PACK.ref, PIECE_LENGTH, 10) == DATA[PIECE_LENGTH:][:10]

            nursery.start_soon(reader)
            await until(lambda: w.node._fetcher.torrents.get(PACK.ref.info_hash) is not None)
            await trio.sleep(0.2)
            w.swarm.connect_peer(PACK.ref.info_hash)
        monkeypatch.setattr(fetch, "PEERS_PATIENCE_S", 0.0)
        w.swarm.disconnect_peer(PACK.ref.info_hash)
        with pytest.raises(DeadlineError, match="no source can be reached"):
            await read(view, PACK.ref, 3 * PIECE_LENGTH, 10, PATIENCE_S)


async def test_a_mirror_that_answers_badly_is_no_outage(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        view = w.view(await w.web("error"))

        for _ in range(3):
            with pytest.raises(DeadlineError, match="did not come in time"):
                await read(view, PACK.ref, 0, 10, PATIENCE_S / 2)
