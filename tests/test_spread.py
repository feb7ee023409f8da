"""Who goes outside for a piece, and when: each node of a site decides alone, by what it sees."""

from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from fakes import Published, Web
from worlds import DATA, PACK, PEERS, SETTINGS, World, read, torrent, until, world

from torrentfs.config import SiteSettings
from torrentfs.node import Sources, View, courier, fetch
from torrentfs.node.fetch import Fetcher
from torrentfs.node.patience import rank
from torrentfs.repository.metainfo import PIECE_LENGTH, PieceIndex

INFO_HASH = PACK.ref.info_hash
NEIGHBOURS = ["192.0.2.2", "192.0.2.3"]
FOREVER_S = 1000.0
"""Longer than any test runs: what waits for it never goes on."""


@asynccontextmanager
async def neighbour(directory: Path, web: Web | None = None, site: SiteSettings | None = None):  # type: ignore[no-untyped-def]
    """Give a node with an open pack, connected to neighbours that have nothing, its web server and a view."""
    settings = msgspec.structs.replace(SETTINGS, site=site or SiteSettings(), neighbour_wait_s=0.25)
    async with world(directory, settings) as w:
        web = await w.web() if web is None else await w.nursery.start(web.run)
        view = w.view(web, peers=PEERS)
        view.expect([PACK.ref])
        await until(lambda: INFO_HASH in w.swarm.added)
        w.swarm.neighbours = list(NEIGHBOURS)
        w.swarm.connect_peer(INFO_HASH)
        await settle()
        web.asked.clear()
        yield w, web, view


def fetcher(w: World) -> Fetcher:
    return w.node._fetcher


def piece_of_rank(wanted: int, w: World, besides: tuple[int, ...] = ()) -> PieceIndex:
    """Return a piece for which our node has *wanted* neighbours before it."""
    return next(
        piece
        for piece in map(PieceIndex, range(PACK.metainfo.piece_count - 1))
        if piece not in besides and rank(INFO_HASH, piece, w.swarm.own, NEIGHBOURS) == wanted
    )


def wait_for_ever(w: World) -> None:
    """Make every patience endless, so that only what goes on without it does."""
    fetcher(w)._patience.hedge.seconds = FOREVER_S
    fetcher(w)._patience._spread.seconds = FOREVER_S


async def read_piece(view: View, piece: PieceIndex) -> None:
    start = piece * PIECE_LENGTH
    assert await read(view, PACK.ref, start, 100) == DATA[start : start + 100]


async def settle() -> None:
    """Let everything happen that does not wait for time."""
    for _ in range(20):
        await trio.sleep(0.002)


async def test_what_no_peer_has_is_fetched_at_once(tmp_path: Path) -> None:
    async with neighbour(tmp_path) as (w, web, view):
        w.swarm.neighbours.clear()
        wait_for_ever(w)

        await read_piece(view, PieceIndex(3))

        assert len(web.asked) == 1
        assert (fetcher(w).counts.waits, fetcher(w).counts.hedges) == (0, 0)


async def test_what_is_ours_to_fetch_is_fetched_at_once(tmp_path: Path) -> None:
    async with neighbour(tmp_path) as (w, web, view):
        wait_for_ever(w)

        await read_piece(view, piece_of_rank(0, w))

        assert len(web.asked) == 1
        assert fetcher(w).counts.waits == 0


async def test_what_a_neighbour_may_fetch_is_left_to_it(tmp_path: Path) -> None:
    async with neighbour(tmp_path) as (w, web, view):
        wait_for_ever(w)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_piece, view, piece_of_rank(1, w))
            await until(lambda: fetcher(w).counts.waits)
            await settle()
            assert not web.asked

            w.swarm.peer[INFO_HASH] = DATA
            w.swarm._serve(INFO_HASH)

        assert not web.asked
        assert (fetcher(w).counts.waits, fetcher(w).counts.waits_won) == (1, 1)


async def test_a_neighbour_that_fetches_nothing_costs_a_bounded_wait(tmp_path: Path) -> None:
    async with neighbour(tmp_path) as (w, web, view):
        await read_piece(view, piece_of_rank(2, w))

        assert len(web.asked) == 1
        assert (fetcher(w).counts.waits, fetcher(w).counts.waits_won) == (1, 0)


async def test_after_two_waits_in_vain_the_next_piece_is_fetched_at_once(tmp_path: Path) -> None:
    async with neighbour(tmp_path) as (w, web, view):
        first = piece_of_rank(1, w)
        second = piece_of_rank(1, w, (first,))
        third = piece_of_rank(2, w)
        for piece in (first, second):
            await read_piece(view, piece)
        assert fetcher(w).counts.waits == 2
        wait_for_ever(w)

        await read_piece(view, third)

        assert fetcher(w).counts.waits == 2
        assert len(web.asked) == 3


async def test_a_piece_that_came_to_a_neighbour_at_the_last_moment_is_not_fetched_twice(
    tmp_path: Path,
) -> None:
    async with neighbour(tmp_path) as (w, web, view):
        piece = piece_of_rank(1, w)
        fetcher(w)._patience.hedge.seconds = FOREVER_S
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_piece, view, piece)
            await until(lambda: fetcher(w).counts.waits)
            w.swarm.neighbours_have.add(piece)
            await until(lambda: torrent(w).flights[piece].is_near)
            await settle()
            assert not web.asked
            w.swarm.peer[INFO_HASH] = DATA
            w.swarm._serve(INFO_HASH)

        assert not web.asked


async def web_to_be(fault: str = "") -> Web:
    """Return a web server that does not run yet, whose port is known."""
    web = Web(PACK.files(), fault)
    with trio.socket.socket() as free:
        await free.bind(("127.0.0.1", 0))
        web.port = free.getsockname()[1]
    return web


async def test_a_mirror_of_the_site_is_asked_at_once_whoever_may_fetch(tmp_path: Path) -> None:
    web = await web_to_be()
    async with neighbour(tmp_path, web, SiteSettings(mirrors=(web.url,))) as (w, web, view):
        wait_for_ever(w)

        await read_piece(view, piece_of_rank(2, w))

        assert fetcher(w).counts.waits == 0
        assert fetcher(w).counts.from_site_mirrors == PIECE_LENGTH
        assert fetcher(w).counts.from_mirrors == 0


async def test_a_mirror_of_the_site_is_left_to_a_few_where_there_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "SITE_MIRROR_FETCHERS", 2)
    web = await web_to_be()
    async with neighbour(tmp_path, web, SiteSettings(mirrors=(web.url,))) as (w, web, view):
        wait_for_ever(w)
        piece = piece_of_rank(2, w)
        await read_piece(view, piece_of_rank(1, w))
        assert len(web.asked) == 1
        wait_for_ever(w)  # it has just learned how long a piece takes

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_piece, view, piece)
            await until(lambda: fetcher(w).counts.waits == 1)
            await settle()
            w.swarm.peer[INFO_HASH] = DATA
            w.swarm._serve(INFO_HASH)

        assert len(web.asked) == 1


@pytest.mark.parametrize("fault", ["", "stall data", "error"])
async def test_what_a_mirror_of_the_site_is_to_bring_peers_are_not_asked_for_unless_it_fails(
    tmp_path: Path, fault: str
) -> None:
    web = await web_to_be()
    async with neighbour(tmp_path, web, SiteSettings(mirrors=(web.url,))) as (w, web, view):
        web.fault = fault
        wait_for_ever(w)
        wanted = w.swarm.wanted[INFO_HASH]

        if not fault:
            await read_piece(view, PieceIndex(3))
            assert PieceIndex(3) not in wanted
            return
        w.nursery.start_soon(read_piece, view, PieceIndex(3))
        await until(lambda: bool(web.asked))
        assert fault == "error" or PieceIndex(3) not in wanted

        await until(lambda: wanted.get(PieceIndex(3)) is True)
        w.swarm.peer[INFO_HASH] = DATA
        w.swarm._serve(INFO_HASH)
        await until(lambda: not torrent(w).held.missing(3 * PIECE_LENGTH, 1))


@pytest.mark.parametrize("patience_s", [FOREVER_S, 0.1])
async def test_a_mirror_of_the_site_that_has_much_to_do_is_waited_for_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    monkeypatch.setattr(courier, "NEXT_MIRROR_AFTER_S", patience_s)
    busy = await web_to_be("stall data")
    settings = msgspec.structs.replace(
        SETTINGS,
        site=SiteSettings(mirrors=(busy.url,)),
        mirror_requests_max=1,
        mirror_timeout_s=FOREVER_S,
    )
    async with world(tmp_path, settings) as w:
        await w.nursery.start(busy.run)
        beyond = await w.web()
        view = w.view(busy, beyond)
        view.expect([PACK.ref])
        await until(lambda: INFO_HASH in w.swarm.added)
        w.nursery.start_soon(read_piece, view, PieceIndex(0))
        await until(lambda: len(busy.asked) == 2)  # for metainfo, and for the piece

        w.nursery.start_soon(read_piece, view, PieceIndex(2))
        await settle()

        assert not beyond.asked
        if patience_s < FOREVER_S:
            await until(lambda: len(beyond.asked) == 2)
            await settle()
        assert bool(torrent(w).held.missing(2 * PIECE_LENGTH, 1)) == (patience_s == FOREVER_S)
        w.nursery.cancel_scope.cancel()


async def test_a_peer_that_is_late_with_what_it_has_is_helped_and_that_is_counted(tmp_path: Path) -> None:
    async with neighbour(tmp_path) as (w, web, view):
        w.swarm.neighbours_have.update(range(PACK.metainfo.piece_count))
        fetcher(w)._patience._spread.seconds = FOREVER_S

        await read_piece(view, piece_of_rank(2, w))

        counts = fetcher(w).counts
        assert (counts.hedges, counts.hedges_won, counts.waits) == (1, 1, 0)
        assert len(web.asked) == 1


async def test_peers_that_never_bring_what_they_have_are_no_longer_waited_for(tmp_path: Path) -> None:
    async with neighbour(tmp_path) as (w, web, view):
        w.swarm.neighbours_have.update(range(PACK.metainfo.piece_count))
        for piece in (0, 2):
            await read_piece(view, PieceIndex(piece))
        wait_for_ever(w)

        await read_piece(view, PieceIndex(4))

        assert len(web.asked) == 3


async def test_readahead_is_shared_among_neighbours(tmp_path: Path) -> None:
    async with neighbour(tmp_path) as (w, _, _):
        ours = [
            piece
            for piece in range(PACK.metainfo.piece_count)
            if rank(INFO_HASH, PieceIndex(piece), w.swarm.own, NEIGHBOURS) == 0
        ]
        assert 0 < len(ours) < PACK.metainfo.piece_count

        fetcher(w).ahead(torrent(w), map(PieceIndex, range(PACK.metainfo.piece_count)))
        await until(lambda: w.swarm.have[INFO_HASH] == set(ours))
        await settle()

        assert w.swarm.have[INFO_HASH] == set(ours)


async def test_peers_beyond_are_dialled_only_when_no_mirror_works(tmp_path: Path) -> None:
    beyond = ("198.51.100.7", 6881)
    async with world(tmp_path, SETTINGS) as w:
        web = await w.web()
        view = w.node.view(Sources((web.url,), (), (beyond,)))
        assert await read(view, PACK.ref, 0, 100) == DATA[:100]
        assert w.swarm.dialled == []
        web.fault = "error"
        w.swarm.peer[INFO_HASH] = DATA

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_piece, view, PieceIndex(5))
            await until(lambda: w.swarm.dialled == [beyond])
            w.swarm.connect_peer(INFO_HASH)


@pytest.mark.parametrize("known", [True, False])
async def test_who_finds_no_peer_stops_waiting_for_connections(tmp_path: Path, known: bool) -> None:
    site = SiteSettings(networks=("192.0.2.0/24",))
    settings = msgspec.structs.replace(SETTINGS, site=site, connect_grace_s=0.05)
    other = Published.of(DATA[1000:])
    async with world(tmp_path, settings) as w:
        web = await w.web(files={**PACK.files(), **other.files()})
        view = w.view(web, peers=PEERS if known else ())
        arriving = fetcher(w)._patience.arriving

        for pack in (PACK, other):
            assert arriving.is_up(trio.current_time())
            await read(view, pack.ref, 0, 100)

        assert not arriving.is_up(trio.current_time())
