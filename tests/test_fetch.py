import random
from pathlib import Path

import pytest
import trio
import trio.testing
from fakes import Published
from worlds import DATA, MANIFEST, PACK, PEERS, read, torrent, until, world

from torrentfs.config import NodeSettings
from torrentfs.errors import DeadlineError, FormatError, UsageError
from torrentfs.node import Sources, View, opening
from torrentfs.repository.metainfo import PIECE_LENGTH, Kind, NotCached, PieceIndex, TorrentRef
from torrentfs.repository.pack import encode_frame


async def test_a_range_comes_from_a_mirror_and_is_seeded(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        web = await w.web()

        data = await read(w.view(web), PACK.ref, 100, 1000)

        assert data == DATA[100:1100]
        assert w.swarm.have[PACK.ref.info_hash] == {0}
        stats = await w.node.stats()
        assert (stats.from_mirrors, stats.from_peers, stats.cached) == (PIECE_LENGTH, 0, PIECE_LENGTH)


async def test_a_range_comes_from_a_file_url_too(tmp_path: Path) -> None:
    for path, content in PACK.files().items():
        (tmp_path / "public" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "public" / path).write_bytes(content)
    async with world(tmp_path / "cache") as w:
        view = w.node.view(Sources(((tmp_path / "public").as_uri(),), ()))

        assert await read(view, PACK.ref, 0, len(DATA)) == DATA


async def test_peers_are_asked_first_and_mirrors_let_be(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        web = await w.web()
        view = w.view(web, peers=PEERS)
        view.expect([PACK.ref])
        await until(lambda: PACK.ref.info_hash in w.swarm.added)
        w.swarm.peer[PACK.ref.info_hash] = DATA
        w.swarm.connect_peer(PACK.ref.info_hash)

        data = await read(view, PACK.ref, 0, len(DATA))

        assert data == DATA
        assert [path for path, _ in web.asked] == [Kind.PACK.torrent_path(PACK.ref.info_hash)]
        stats = await w.node.stats()
        assert (stats.from_peers, stats.from_mirrors, stats.cached) == (len(DATA), 0, len(DATA))
        assert w.swarm.dialled == list(PEERS)


async def test_a_dead_peer_is_not_waited_for_when_a_mirror_works(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        web = await w.web()

        assert await read(w.view(web, peers=PEERS), PACK.ref, 0, 10) == DATA[:10]


async def test_a_peer_that_brings_nothing_is_helped_by_a_mirror(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        web = await w.web()
        view = w.view(web, peers=PEERS)
        await read(view, PACK.ref, 0, 10)
        w.swarm.connect_peer(PACK.ref.info_hash)

        assert await read(view, PACK.ref, PIECE_LENGTH, 10) == DATA[PIECE_LENGTH:][:10]


@pytest.mark.parametrize("fault", ["stall", "stall data", "absent", "whole", "wrong", "short", "error"])
async def test_a_mirror_that_fails_is_followed_by_the_next(tmp_path: Path, fault: str) -> None:
    pack = Published.of(
        random.Random(8).randbytes(17 * PIECE_LENGTH)
    )  # too long to bear a server without ranges
    async with world(tmp_path) as w:
        bad, good = await w.web(fault, files=pack.files()), await w.web(files=pack.files())

        data = await read(w.view(bad, good), pack.ref, 5 * PIECE_LENGTH - 5, 10)

        assert data == pack.data[5 * PIECE_LENGTH - 5 :][:10]
        stats = await w.node.stats()
        assert stats.cached == stats.from_mirrors == 2 * PIECE_LENGTH
        assert stats.failed_pieces == (fault == "wrong")


async def test_a_small_pack_comes_from_a_server_that_ignores_ranges(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        web = await w.web("whole")

        assert await read(w.view(web), PACK.ref, 3 * PIECE_LENGTH, 10) == DATA[3 * PIECE_LENGTH :][:10]


async def test_a_manifest_and_its_metainfo_are_asked_for_side_by_side(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        web = await w.web("stall", files=MANIFEST.files())

        w.view(web).expect([MANIFEST.ref])
        await until(lambda: len(web.asked) == 2)

        assert {wanted for _, wanted in web.asked} == {"", f"bytes=0-{PIECE_LENGTH - 1}"}


async def test_the_first_piece_of_a_manifest_comes_once(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        web = await w.web(files=MANIFEST.files())

        data = await read(w.view(web), MANIFEST.ref, 0, 1000)

        assert data == MANIFEST.data[:1000]
        stats = await w.node.stats()
        assert (stats.cached, stats.from_mirrors, stats.redundant) == (PIECE_LENGTH, PIECE_LENGTH, 0)
        assert len(web.asked) == 2


@pytest.mark.parametrize("fault", ["wrong", "short", "stall data"])
async def test_a_manifest_whose_first_piece_comes_badly_is_asked_of_the_next_mirror(
    tmp_path: Path, fault: str
) -> None:
    async with world(tmp_path) as w:
        bad, good = await w.web(fault, files=MANIFEST.files()), await w.web(files=MANIFEST.files())

        assert await read(w.view(bad, good), MANIFEST.ref, 0, 1000) == MANIFEST.data[:1000]


async def test_a_manifest_that_peers_may_have_is_not_taken_from_a_mirror(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        web = await w.web(files=MANIFEST.files())

        w.view(web, peers=PEERS).expect([MANIFEST.ref])
        await until(lambda: MANIFEST.ref.info_hash in w.swarm.added)

        assert [path for path, _ in web.asked] == [Kind.MANIFEST.torrent_path(MANIFEST.ref.info_hash)]


async def test_wrong_metainfo_puts_a_mirror_aside(tmp_path: Path) -> None:
    other = Published.of(b"another pack")
    lies = {path: other.metainfo.torrent() for path in PACK.files()}
    async with world(tmp_path) as w:
        bad, good = await w.web(files=lies), await w.web()

        assert await read(w.view(bad, good), PACK.ref, 0, 10) == DATA[:10]


async def test_a_torrent_of_another_length_than_signed_is_refused_at_once(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        web = await w.web()
        lie = TorrentRef(PACK.ref.info_hash, PACK.ref.length + 1, Kind.PACK)

        with pytest.raises(FormatError, match="as is signed"):
            await read(w.view(web), lie, 0, 10)


async def test_a_torrent_of_another_kind_than_signed_is_refused_and_not_kept(tmp_path: Path) -> None:
    lie = TorrentRef(PACK.ref.info_hash, PACK.ref.length, Kind.MANIFEST)
    files = {lie.kind.torrent_path(lie.info_hash): PACK.metainfo.torrent(), **PACK.files()}
    async with world(tmp_path) as w:
        view = w.view(await w.web(files=files))

        with pytest.raises(FormatError, match="as is signed"):
            await read(view, lie, 0, 10)

        assert await read(view, PACK.ref, 0, 10) == DATA[:10]


async def test_a_mirror_that_another_reader_knows_helps_who_waits_already(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await read(w.view(await w.web()), PACK.ref, 0, 10)
    async with world(tmp_path) as w:
        await until(lambda: PACK.ref.info_hash in w.swarm.added)
        at, got = 4 * PIECE_LENGTH, []

        async def reader(view: View) -> None:
            got.append(await read(view, PACK.ref, at, 10))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader, w.view())
            await until(lambda: PieceIndex(4) in torrent(w).flights)
            nursery.start_soon(reader, w.view(await w.web()))

        assert got == [DATA[at : at + 10]] * 2


@pytest.mark.warns("is not seeded: cannot read")
async def test_what_cannot_be_seeded_again_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with world(tmp_path) as w:
        await read(w.view(await w.web()), PACK.ref, 0, 10)
    kept = tmp_path / "metainfo" / f"{PACK.ref.info_hash.hex()}.torrent"
    kept.unlink()
    kept.mkdir()

    async with world(tmp_path) as w:
        await until(lambda: "is not seeded: cannot read" in caplog.text)

        assert not w.swarm.added


async def test_without_any_source_a_read_ends_at_its_deadline_and_says_why(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        web = await w.web("absent")

        with pytest.raises(DeadlineError, match=r"metainfo was not found.*HTTP status 404"):
            await read(w.view(web), PACK.ref, 0, 10, wait_s=0.2)

        assert (await w.node.stats()).waiting == 0


async def test_a_source_that_comes_back_is_noticed_by_who_waits(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        web = await w.web("error")
        got: list[bytes] = []

        async def reader() -> None:
            got.append(await read(w.view(web), PACK.ref, 0, 10))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await until(lambda: len(web.asked) >= 2)
            web.fault = ""

        assert got == [DATA[:10]]


async def test_many_readers_of_a_piece_make_one_request(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        web = await w.web()
        view = w.view(web)

        async with trio.open_nursery() as nursery:
            for offset in range(100):
                nursery.start_soon(read, view, PACK.ref, offset, 10)

        assert len(web.asked) == 2
        assert (await w.node.stats()).redundant == 0


async def test_a_second_reader_does_not_hurry_to_the_next_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be beyond the site, and the first is at work on the metainfo."""
    monkeypatch.setattr(opening, "NEXT_MIRROR_AFTER_S", float("inf"))
    async with world(tmp_path) as w:
        slow, second = await w.web("stall"), await w.web()
        view = w.view(slow, second)
        with trio.move_on_after(5) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, view, PACK.ref, 0, 10)
                await until(lambda: bool(slow.asked))
                nursery.start_soon(read, view, PACK.ref, 0, 10)
                await trio.testing.wait_all_tasks_blocked(0.1)
                scope.cancel()

        assert second.asked == []


async def test_neighbouring_pieces_are_asked_for_in_one_request(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        web = await w.web()

        await read(w.view(web), PACK.ref, 0, len(DATA))

        assert [wanted for _, wanted in web.asked] == ["", f"bytes=0-{len(DATA) - 1}"]


async def test_two_hundred_waiters_on_a_dead_source_hold_nothing_up(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        dead, good = await w.web("stall data"), await w.web()
        other = Published.of(random.Random(9).randbytes(200 * PIECE_LENGTH))
        dead.files = other.files()
        working, waiting = w.view(good), w.view(dead)
        await read(working, PACK.ref, 0, 10)

        async with trio.open_nursery() as nursery:
            for piece in range(200):
                nursery.start_soon(read, waiting, other.ref, piece * PIECE_LENGTH, 10)
            await until(lambda: w.node._fetcher.waiting == 200 and any(wanted for _, wanted in dead.asked))

            assert working.range(PACK.ref, 0, 10) == DATA[:10]  # without a single checkpoint
            assert await read(working, PACK.ref, 6 * PIECE_LENGTH, 10) == DATA[6 * PIECE_LENGTH :][:10]
            assert (await w.node.stats()).waiting == 200
            nursery.cancel_scope.cancel()

        assert (await w.node.stats()).waiting == 0


async def test_a_cancelled_reader_leaves_nothing_behind(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        web = await w.web()
        view = w.view(web)
        await read(view, PACK.ref, 0, 10)
        web.fault = "stall data"

        with trio.move_on_after(0.1):
            await read(view, PACK.ref, 4 * PIECE_LENGTH, 10)

        assert (await w.node.stats()).waiting == 0
        assert not w.swarm.wanted[PACK.ref.info_hash]
        assert not torrent(w).flights


async def test_a_reader_that_leaves_does_not_disturb_another(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        view = w.view(peers=PEERS)
        web = await w.web()
        await read(w.view(web), PACK.ref, 0, 10)
        web.fault = "stall"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, view, PACK.ref, 4 * PIECE_LENGTH, 10)
            with trio.move_on_after(0.05):
                await read(view, PACK.ref, 4 * PIECE_LENGTH, 10)
            w.swarm.peer[PACK.ref.info_hash] = DATA
            w.swarm.connect_peer(PACK.ref.info_hash)

        assert view.range(PACK.ref, 4 * PIECE_LENGTH, 10) == DATA[4 * PIECE_LENGTH :][:10]


async def test_an_urgent_piece_does_not_queue_behind_readahead(tmp_path: Path) -> None:
    settings = NodeSettings(mirror_requests_max=2)
    async with world(tmp_path, settings) as w:
        web = await w.web()
        view = w.view(web)
        await read(view, PACK.ref, 0, 10)
        web.fault = "stall data"
        w.node._fetcher.ahead(torrent(w), [1, 2, 3, 5, 6, 7])
        await until(lambda: len(web.asked) >= 3)
        web.fault = ""

        assert await read(view, PACK.ref, 7 * PIECE_LENGTH, 10) == DATA[7 * PIECE_LENGTH :][:10]


async def test_a_scan_is_read_ahead(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        web = await w.web()
        view = w.view(web)

        for offset in range(0, 3 * PIECE_LENGTH, 65536):
            await read(view, PACK.ref, offset, 65536)
        await until(lambda: not torrent(w).flights)

        assert (
            view.range(PACK.ref, 3 * PIECE_LENGTH, PIECE_LENGTH) == DATA[3 * PIECE_LENGTH : 4 * PIECE_LENGTH]
        )
        assert (await w.node.stats()).redundant == 0


@pytest.mark.warns("damaged on disk")
async def test_a_piece_that_rots_between_two_starts_is_fetched_again(tmp_path: Path) -> None:
    async with world(tmp_path / "cache") as w:
        await read(w.view(await w.web()), PACK.ref, 0, 3 * PIECE_LENGTH)
    path = tmp_path / "cache" / PACK.ref.kind.url_path(PACK.ref.info_hash)
    with path.open("r+b") as file:
        file.seek(PIECE_LENGTH + 5)
        file.write(b"rotten")

    async with world(tmp_path / "cache") as w:
        web = await w.web()
        view = w.view(web)
        data = await read(view, PACK.ref, 0, 3 * PIECE_LENGTH)

        assert data == DATA[: 3 * PIECE_LENGTH]
        assert [wanted for _, wanted in web.asked] == [f"bytes={PIECE_LENGTH}-{2 * PIECE_LENGTH - 1}"]
        assert (await w.node.stats()).damaged_pieces == 1


async def test_a_restarted_node_reads_and_seeds_what_it_had_without_a_source(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await read(w.view(await w.web()), PACK.ref, 0, 3 * PIECE_LENGTH)

    async with world(tmp_path) as w:
        data = w.view().range(PACK.ref, 0, 3 * PIECE_LENGTH)

        assert data == DATA[: 3 * PIECE_LENGTH]
        await until(lambda: PACK.ref.info_hash in w.swarm.added)
        assert w.swarm.have[PACK.ref.info_hash] == {0, 1, 2}


async def framed(view: View, pack: Published, offset: int, length: int) -> bytes:
    """Read a frame as the filesystem does."""
    while True:
        try:
            return view.frame(pack.ref, offset, length)
        except NotCached as missing:
            await view.ensure(missing, trio.current_time() + 5)


async def test_a_frame_that_was_published_malformed_is_refused_and_not_fetched_again(tmp_path: Path) -> None:
    good = encode_frame(b"hello" * 1000)
    pack = Published.of(good + good[:-1] + bytes([good[-1] ^ 1]))
    async with world(tmp_path) as w:
        view = w.view(await w.web(files=pack.files()))
        assert await framed(view, pack, 0, len(good)) == b"hello" * 1000

        for _ in range(2):
            with pytest.raises(FormatError):
                await framed(view, pack, len(good), len(good))

        assert (await w.node.stats()).damaged_pieces == 0
        assert (await w.node.stats()).cached == len(pack.data)


@pytest.mark.warns("damaged on disk")
async def test_a_frame_that_rots_after_its_piece_was_checked_is_fetched_again(tmp_path: Path) -> None:
    frame = encode_frame(b"hello" * 1000)
    pack = Published.of(frame)
    async with world(tmp_path) as w:
        view = w.view(await w.web(files=pack.files()))
        await read(view, pack.ref, 0, len(frame))
        with (tmp_path / pack.ref.kind.url_path(pack.ref.info_hash)).open("r+b") as file:
            file.seek(len(frame) - 1)
            file.write(bytes([frame[-1] ^ 1]))

        assert await framed(view, pack, 0, len(frame)) == b"hello" * 1000

        assert (await w.node.stats()).damaged_pieces == 1


@pytest.mark.warns("cannot read")
async def test_what_the_disk_refuses_comes_through_memory(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        web = await w.web()
        view = w.view(web)
        await read(view, PACK.ref, 0, 10)
        path = tmp_path / PACK.ref.kind.url_path(PACK.ref.info_hash)
        w.node._store.files.close_all()
        whole = path.rename(tmp_path / "aside")
        path.mkdir()  # reading a directory fails with EISDIR, for root too
        w.swarm.added[PACK.ref.info_hash] = (PACK.metainfo, whole)

        assert await read(view, PACK.ref, 5 * PIECE_LENGTH, 10) == DATA[5 * PIECE_LENGTH :][:10]
        assert await read(view, PACK.ref, 0, 10) == DATA[:10]
        path.rmdir()
        whole.rename(path)

        assert await read(view, PACK.ref, 5 * PIECE_LENGTH, 10) == DATA[5 * PIECE_LENGTH :][:10]


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (len(DATA), 1), (len(DATA) - 1, 2), (0, 1 << 40)])
async def test_a_range_outside_the_torrent_is_refused(tmp_path: Path, offset: int, length: int) -> None:
    async with world(tmp_path) as w:
        with pytest.raises(FormatError):
            w.view().range(PACK.ref, offset, length)


async def test_expected_torrents_are_opened_side_by_side(tmp_path: Path) -> None:
    packs = [Published.of(bytes([n]) * 1000) for n in range(10)]
    async with world(tmp_path) as w:
        web = await w.web(files={path: data for pack in packs for path, data in pack.files().items()})

        w.view(web).expect([pack.ref for pack in packs])
        await until(lambda: len(w.swarm.added) == len(packs))

        assert all(wanted == "" for _, wanted in web.asked)


async def test_a_url_that_is_no_mirror_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        with pytest.raises(UsageError, match="not the URL of a mirror"):
            w.node.view(Sources(("ftp://example.org/",), ()))
