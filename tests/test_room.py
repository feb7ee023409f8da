"""Tests of the cache's bounds: what goes, and that nobody who reads notices."""

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from fakes import Published
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worlds import SETTINGS, World, read, until, world

from torrentfs.config import NodeSettings
from torrentfs.errors import CacheError
from torrentfs.node import View, room
from torrentfs.repository.metainfo import PIECE_LENGTH, NotCached

PACKS = [Published.of(random.Random(number).randbytes(8 * PIECE_LENGTH + 1000)) for number in range(3)]
FILES = {path: data for pack in PACKS for path, data in pack.files().items()}
OVERHEAD = 400_000
"""More than state and metainfo take here."""


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "BATCH_LEAST", PIECE_LENGTH)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let packs count as idle as soon as another one is read."""
    monkeypatch.setattr(room, "IDLE_READS", 1)


def bounded(pieces: int, **more: int) -> NodeSettings:
    return msgspec.structs.replace(
        SETTINGS, cache_size_max=pieces * PIECE_LENGTH + OVERHEAD, readahead_pieces_max=0, **more
    )


def taken(directory: Path) -> int:
    """Return what *directory* takes of its disk."""
    return sum(512 * entry.lstat().st_blocks for entry in directory.rglob("*") if entry.is_file())


def data_of(pack: Published, piece: int) -> bytes:
    data = FILES[pack.ref.kind.url_path(pack.ref.info_hash)]
    return data[piece * PIECE_LENGTH : (piece + 1) * PIECE_LENGTH]


async def read_piece(view: View, pack: Published, piece: int) -> None:
    wanted = data_of(pack, piece)
    assert await read(view, pack.ref, piece * PIECE_LENGTH, len(wanted)) == wanted


async def served(w: World) -> View:
    return w.view(await w.web(files=FILES))


async def test_a_pack_larger_than_the_cache_is_read_whole_and_stays_within_bounds(tmp_path: Path) -> None:
    async with world(tmp_path, bounded(4)) as w:
        view = await served(w)

        for _ in range(2):
            for piece in range(9):
                await read_piece(view, PACKS[0], piece)
                assert taken(tmp_path) <= 4 * PIECE_LENGTH + OVERHEAD

        stats = await w.node.stats()
        assert stats.cached < 6 * PIECE_LENGTH
        assert stats.evicted >= 10 * PIECE_LENGTH
        assert stats.refetched >= 5 * PIECE_LENGTH
        assert w.swarm.have[PACKS[0].ref.info_hash] == {p for p, s in enumerate(held(w).states) if s}


def held(w: World):  # type: ignore[no-untyped-def]
    return w.node._store.get(PACKS[0].ref.info_hash)


async def test_what_was_read_longest_ago_goes_first(tmp_path: Path) -> None:
    async with world(tmp_path, bounded(4)) as w:
        view = await served(w)
        for piece in (0, 1, 2, 3, 0, 4, 5):
            await read_piece(view, PACKS[0], piece)

        assert held(w).states[0]
        assert not held(w).states[1]


@pytest.mark.usefixtures("at_once")
async def test_a_pack_that_nobody_uses_goes_as_a_whole_and_can_come_again(tmp_path: Path) -> None:
    async with world(tmp_path, bounded(4)) as w:
        view = await served(w)
        for piece in range(3):
            await read_piece(view, PACKS[0], piece)
        for piece in range(4):
            await read_piece(view, PACKS[1], piece)

        assert not w.node._store.path(PACKS[0].ref).exists()
        assert held(w) is None
        assert PACKS[0].ref.info_hash not in w.swarm.added
        await until(lambda: not [*(tmp_path / "leaving").iterdir()])
        await read_piece(view, PACKS[0], 2)


@pytest.mark.usefixtures("at_once")
async def test_what_is_pinned_stays_and_the_rest_makes_room(tmp_path: Path) -> None:
    async with world(tmp_path, bounded(5)) as w:
        view = await served(w)
        w.node.pin("alice:A/v1", [PACKS[0].ref.info_hash])
        for piece in range(3):
            await read_piece(view, PACKS[0], piece)

        for pack in PACKS[1:]:
            for piece in range(9):
                await read_piece(view, pack, piece)
        await w.node.evict([pack.ref.info_hash for pack in PACKS])

        assert w.node.holdings() == {PACKS[0].ref.info_hash: 3 * PIECE_LENGTH}
        assert [*held(w).states[:4]] == [2, 2, 2, 0]


@pytest.mark.usefixtures("at_once")
async def test_a_pack_that_somebody_waits_for_stays(tmp_path: Path) -> None:
    async with world(tmp_path, msgspec.structs.replace(bounded(4), mirror_timeout_s=60.0)) as w:
        web = await w.web(files=FILES)
        view = w.view(web)
        for piece in range(3):
            await read_piece(view, PACKS[0], piece)
        web.fault = "stall data"
        with trio.CancelScope() as waiting:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_piece, view, PACKS[0], 7)
                await until(lambda: bool(w.node._fetcher.waiting))
                web.fault = ""
                for piece in range(4):
                    await read_piece(view, PACKS[1], piece)

                assert PACKS[0].ref.info_hash in w.swarm.added
                waiting.cancel()


async def test_without_a_bound_nothing_goes(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        view = await served(w)
        for pack in PACKS:
            for piece in range(9):
                await read_piece(view, pack, piece)

        assert (await w.node.stats()).evicted == 0


@pytest.mark.warns("is larger than it may be: no room in the cache")
@pytest.mark.warns(r"reading through memory: no room in the cache.*node.free_space_min")
async def test_where_nothing_fits_reads_go_through_memory(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    settings = bounded(4, free_space_min=free.f_blocks * free.f_frsize, pieces_in_memory_max=2)
    async with world(tmp_path, settings) as w:
        view = await served(w)

        for piece in range(9):
            await read_piece(view, PACKS[0], piece)
        two = data_of(PACKS[0], 4)[-10:] + data_of(PACKS[0], 5)[:10]
        assert await read(view, PACKS[0].ref, 5 * PIECE_LENGTH - 10, 20) == two

        stats = await w.node.stats()
        assert (stats.cached, stats.from_mirrors) == (0, 0)
        assert stats.bypassed > 9 * PIECE_LENGTH
        assert len(held(w).in_memory) == 2


@pytest.mark.warns("is larger than it may be")
@pytest.mark.warns("reading through memory")
async def test_where_nothing_fits_and_no_mirror_has_it_a_read_fails_and_says_which_setting(
    tmp_path: Path,
) -> None:
    free = os.statvfs(tmp_path)
    async with world(tmp_path, bounded(4, free_space_min=free.f_blocks * free.f_frsize)) as w:
        metainfo = {path: data for path, data in FILES.items() if path.endswith(".torrent")}
        view = w.view(await w.web(files=metainfo))

        with pytest.raises(CacheError, match=r"no room in the cache.*node.free_space_min"):
            await read_piece(view, PACKS[0], 0)


@pytest.mark.warns("is larger than it may be")
@pytest.mark.warns("reading through memory")
async def test_a_mirror_that_comes_back_serves_who_waits_for_memory(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    async with world(tmp_path, bounded(4, free_space_min=free.f_blocks * free.f_frsize)) as w:
        web = await w.web(files=FILES)
        view = w.view(web)
        await read_piece(view, PACKS[0], 0)
        web.fault = "error"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_piece, view, PACKS[0], 5)
            await until(lambda: len(w.node._fetcher.torrents.aside()) == 1)
            web.fault = ""

        assert held(w).in_memory.keys() >= {5}


async def test_a_cache_that_may_be_smaller_now_shrinks_at_its_start(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        view = await served(w)
        for pack in PACKS:
            for piece in range(9):
                await read_piece(view, pack, piece)
    async with world(tmp_path, bounded(4)) as w:
        await until(lambda: w.node._store.used <= 4 * PIECE_LENGTH + OVERHEAD)
        await until(lambda: taken(tmp_path) <= 4 * PIECE_LENGTH + OVERHEAD)


async def test_what_a_crash_left_is_deleted_at_the_next_start(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await read_piece(await served(w), PACKS[0], 0)
    (tmp_path / "packs" / "litter.tar.zst").write_bytes(bytes(1000))
    (tmp_path / "leaving" / "litter").write_bytes(bytes(1000))

    async with world(tmp_path) as w:
        await until(lambda: not [*(tmp_path / "leaving").iterdir()])

        assert [entry.name for entry in (tmp_path / "packs").iterdir()] == [
            w.node._store.path(PACKS[0].ref).name
        ]
        assert w.swarm.have == {} or held(w).states[0]


async def test_many_readers_of_more_than_fits_all_get_their_bytes(tmp_path: Path) -> None:
    async with world(tmp_path, bounded(3)) as w:
        view = await served(w)

        async with trio.open_nursery() as nursery:
            for pack in PACKS:
                for piece in range(9):
                    nursery.start_soon(read_piece, view, pack, piece)

        assert taken(tmp_path) <= 3 * PIECE_LENGTH + OVERHEAD


@pytest.mark.warns("reading through memory: no room")
async def test_long_reads_side_by_side_in_too_small_a_cache_all_end(tmp_path: Path) -> None:
    """Each needs several ranges at once, and readahead takes what is left of the room."""
    settings = msgspec.structs.replace(bounded(3), readahead_pieces_max=32, mirror_timeout_s=5.0)
    pack, chance = Published.of(random.Random(9).randbytes(40 * PIECE_LENGTH)), random.Random(2)
    data = pack.files()[pack.ref.kind.url_path(pack.ref.info_hash)]
    async with world(tmp_path, settings) as w:
        view = w.view(await w.web(files=pack.files()))

        def attempt(offsets: list[int]) -> bytes:
            return b"".join(view.range(pack.ref, offset, PIECE_LENGTH) for offset in offsets)

        async def job(starts: list[int]) -> None:
            for start in starts:
                offsets = [(start + number) * PIECE_LENGTH + 100 for number in range(4)]
                wanted = [NotCached(pack.ref, offset, PIECE_LENGTH) for offset in offsets]
                with view.needing(wanted):
                    async with trio.open_nursery() as ranges:
                        for one in wanted:
                            ranges.start_soon(view.ensure, one, trio.current_time() + 10)
                    assert attempt(offsets) == data[offsets[0] :][: 4 * PIECE_LENGTH]

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(job, [chance.randrange(35) for _ in range(8)])
        assert taken(tmp_path) <= 3 * PIECE_LENGTH + OVERHEAD


PACK, PIECE = st.integers(0, 2), st.integers(0, 8)
STEP = st.one_of(
    st.tuples(st.just("read"), PACK, PIECE, st.integers(1, 3)),
    st.tuples(st.sampled_from(["evict", "pin", "unpin"]), PACK),
    st.tuples(st.just("restart"), st.sampled_from(["end", "kill"]), st.lists(st.tuples(PACK, PIECE))),
)
"""Restarts: how the node ends, and which pieces the disk damages then."""


@pytest.fixture
def directories(tmp_path: Path) -> Iterator[Path]:
    return (tmp_path / str(number) for number in range(10_000))


@pytest.mark.warns("damaged on disk")
@pytest.mark.warns("reading through memory")
@pytest.mark.warns("is larger than it may be")
@given(steps=st.lists(STEP, min_size=1, max_size=30), pieces=st.integers(1, 12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_reads_give_right_bytes_and_the_cache_stays_within_bounds(
    directories: Iterator[Path], steps: list[tuple[Any, ...]], pieces: int
) -> None:
    """A model of the cache is simple: right bytes, bounds, pinned pieces stay but for damage and ends."""
    directory, pinned = next(directories), dict.fromkeys(range(3), False)

    async def live(left: list[tuple[Any, ...]]) -> tuple[Any, ...] | None:
        async with world(directory, bounded(pieces)) as w:
            view = await served(w)
            while left:
                match step := left.pop(0):
                    case ("read", pack, piece, count):
                        await read_pieces(view, PACKS[pack], piece, count)
                    case ("evict", pack):
                        before = w.node.holdings().get(PACKS[pack].ref.info_hash, 0)
                        await w.node.evict([PACKS[pack].ref.info_hash])
                        after = w.node.holdings().get(PACKS[pack].ref.info_hash, 0)
                        assert after == (before if pinned[pack] else 0)
                    case ("pin", pack):
                        pinned[pack] = True
                        w.node.pin(str(pack), [PACKS[pack].ref.info_hash])
                    case ("unpin", pack):
                        pinned[pack] = False
                        w.node.unpin(str(pack))
                    case ("restart", how, _):
                        if how == "kill":
                            copy = directory.with_suffix(".copy")
                            await trio.run_process(["cp", "-a", "--sparse=always", directory, copy])
                        return step
                assert taken(directory) <= pieces * PIECE_LENGTH + OVERHEAD
        return None

    left = list(steps)
    while restart := trio.run(live, left):
        _, how, damages = restart
        if how == "kill":  # what another process found there at that instant
            shutil.rmtree(directory)
            directory.with_suffix(".copy").rename(directory)
        for pack, piece in damages:
            damage(directory / PACKS[pack].ref.kind.url_path(PACKS[pack].ref.info_hash), piece)


async def read_pieces(view: View, pack: Published, piece: int, count: int) -> None:
    wanted = b"".join(data_of(pack, one) for one in range(piece, piece + count))
    assert await read(view, pack.ref, piece * PIECE_LENGTH, len(wanted)) == wanted


def damage(path: Path, piece: int) -> None:
    """Flip a bit of a piece on disk, if it is there."""
    with suppress(FileNotFoundError), path.open("r+b") as file:
        file.seek(piece * PIECE_LENGTH + 77)
        if byte := file.read(1):
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 4]))


async def test_the_last_copy_at_the_site_goes_last(tmp_path: Path) -> None:
    async with world(tmp_path, bounded(8)) as w:
        view = await served(w)
        for piece in range(8):
            await read_piece(view, PACKS[0], piece)
        w.swarm.neighbours, w.swarm.neighbours_have = ["192.0.2.2"], {3, 4, 5, 6, 7, 8}
        w.swarm.connect_peer(PACKS[0].ref.info_hash)

        for piece in range(3):
            await read_piece(view, PACKS[1], piece)

        # Though they were read longest ago.
        assert [bool(state) for state in held(w).states[:4]] == [True, True, True, False]
        for piece in range(3, 9):
            await read_piece(view, PACKS[1], piece)
        assert taken(tmp_path) <= 8 * PIECE_LENGTH + OVERHEAD


@pytest.mark.warns("reading through memory: no room")
async def test_a_read_longer_than_the_cache_comes_through_memory(tmp_path: Path) -> None:
    """Pieces of it must not push out one another, neither on disk nor in memory."""
    async with world(tmp_path, bounded(4, pieces_in_memory_max=2)) as w:
        view = await served(w)
        await read_piece(view, PACKS[1], 0)

        await read_pieces(view, PACKS[0], 0, 9)

        stats = await w.node.stats()
        assert stats.bypassed >= 5 * PIECE_LENGTH
        assert stats.cached <= 4 * PIECE_LENGTH


async def test_what_a_kill_left_unclaimed_is_given_back(tmp_path: Path) -> None:
    """It came between a piece and its claim, or between an eviction and its hole."""
    async with world(tmp_path) as w:
        view = await served(w)
        for piece in range(9):
            await read_piece(view, PACKS[0], piece)
        w.node._store._state.drop(held(w).number, [1, 2, 8])
    before = taken(tmp_path / "packs")

    async with world(tmp_path, bounded(9)) as w:
        await until(lambda: not w.node._store.overgrown and not w.node._store.going)

        assert taken(tmp_path / "packs") <= before - 2 * PIECE_LENGTH
        view = await served(w)
        for piece in range(9):
            await read_piece(view, PACKS[0], piece)
