"""Nodes with the real swarm: what the fake one in `test_fetch` only promises."""

import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from fakes import Published, Web

from torrentfs.config import NodeSettings, SiteSettings, SwarmSettings
from torrentfs.errors import CacheError
from torrentfs.node import Node, Sources, View
from torrentfs.node.swarm import Swarm
from torrentfs.repository.metainfo import PIECE_LENGTH, InfoHash, NotCached, TorrentRef
from torrentfs.repository.pack import FRAME_LENGTH, store_frame

ANY_PORT = SwarmSettings(listen="127.0.0.1:0")
SETTINGS = NodeSettings(swarm=ANY_PORT)
BREAKER_S = 30.0
FRAMES = [store_frame(random.Random(number).randbytes(FRAME_LENGTH)) for number in range(40)]
STORED = len(FRAMES[0])
PACK = Published.of(b"".join(FRAMES))
METAINFO_ONLY = {path: data for path, data in PACK.files().items() if path.endswith(".torrent")}


class Deaf:
    """Who seeds everything need not hear of anything."""

    def pieces_arrived(self, *_: object) -> None: ...
    def piece_failed(self, *_: object) -> None: ...
    def disk_failed(self, *_: object) -> None: ...
    def peers_changed(self, *_: object) -> None: ...

    def seen(self, *_: object) -> None: ...


@asynccontextmanager
async def origin(directory: Path) -> AsyncIterator[tuple[str, int]]:
    """Seed the pack; give the address for peers."""
    directory.mkdir(exist_ok=True)
    (directory / "pack").write_bytes(PACK.data)
    swarm = Swarm(ANY_PORT, SiteSettings(), Deaf())
    async with trio.open_nursery() as nursery:
        await nursery.start(swarm.run)
        swarm.add(PACK.metainfo, directory / "pack", None, seed=True)
        yield swarm.listen
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Node]:
    node = Node(SETTINGS, directory)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        yield node
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def serving(files: dict[str, bytes]) -> AsyncIterator[Web]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(Web(files).run)
        nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
async def breaker() -> AsyncIterator[None]:
    """End a test that hangs."""
    with trio.fail_after(BREAKER_S):
        yield


async def frame(view: View, number: int) -> bytes:
    deadline = trio.current_time() + 10
    while True:
        try:
            return view.frame(PACK.ref, number * STORED, STORED)
        except NotCached as missing:
            await view.ensure(missing, deadline)


async def read_all(view: View) -> None:
    for number in range(len(FRAMES)):
        assert store_frame(await frame(view, number)) == FRAMES[number]


def port_of(node: Node) -> tuple[str, int]:
    swarm = node._fetcher.swarm
    assert isinstance(swarm, Swarm)
    return swarm.listen


async def test_a_node_gets_all_from_a_peer_and_gives_it_to_the_next(tmp_path: Path) -> None:
    async with (
        origin(tmp_path / "origin") as first,
        serving(METAINFO_ONLY) as web,
        running(tmp_path / "a") as a,
        running(tmp_path / "b") as b,
    ):
        await read_all(a.view(Sources((web.url,), (first,))))
        await read_all(b.view(Sources((web.url,), (port_of(a),))))

        for stats in (await a.stats(), await b.stats()):
            assert stats.from_peers == stats.cached == len(PACK.data)
            assert stats.from_mirrors == 0
        assert (await a.stats()).uploaded >= len(PACK.data)


async def test_a_node_gets_all_from_a_mirror_and_seeds_it(tmp_path: Path) -> None:
    async with (
        serving(PACK.files()) as web,
        serving(METAINFO_ONLY) as no_data,
        running(tmp_path / "a") as a,
        running(tmp_path / "b") as b,
    ):
        await read_all(a.view(Sources((web.url,), ())))
        await read_all(b.view(Sources((no_data.url,), (port_of(a),))))

        stats = await a.stats()
        assert (stats.from_mirrors, stats.from_peers, stats.cached) == (len(PACK.data), 0, len(PACK.data))
        assert (await b.stats()).from_peers == len(PACK.data)


async def test_random_reads_fetch_little_more_than_they_need(tmp_path: Path) -> None:
    async with (
        origin(tmp_path / "origin") as first,
        serving(METAINFO_ONLY) as web,
        running(tmp_path / "a") as node,
    ):
        view = node.view(Sources((web.url,), (first,)))

        for number in (30, 3, 21, 12):
            await frame(view, number)

        assert (await node.stats()).cached <= 8 * PIECE_LENGTH


@pytest.mark.warns("damaged on disk")
async def test_a_piece_that_rots_is_fetched_from_a_peer_again(tmp_path: Path) -> None:
    async with origin(tmp_path / "origin") as first, serving(METAINFO_ONLY) as web:
        sources = Sources((web.url,), (first,))
        async with running(tmp_path / "a") as node:
            await read_all(node.view(sources))
        path = tmp_path / "a" / PACK.ref.kind.url_path(PACK.ref.info_hash)
        with path.open("r+b") as file:
            file.seek(5 * PIECE_LENGTH)
            file.write(bytes(PIECE_LENGTH))

        async with running(tmp_path / "a") as node:
            await read_all(node.view(sources))

            stats = await node.stats()
            assert (stats.from_peers, stats.damaged_pieces) == (PIECE_LENGTH, 1)


@pytest.mark.warns("No space left on device")
async def test_a_full_disk_fails_a_read_at_once_and_says_so(tmp_path: Path) -> None:
    async with (
        origin(tmp_path / "origin") as first,
        serving(METAINFO_ONLY) as web,
        running(tmp_path / "a") as node,
    ):
        path = tmp_path / "a" / PACK.ref.kind.url_path(PACK.ref.info_hash)
        path.symlink_to("/dev/full")
        view = node.view(Sources((web.url,), (first,)))

        with pytest.raises(CacheError, match="No space left on device"):
            await frame(view, 5)

        stats = await node.stats()
        assert (stats.cached, stats.waiting, stats.cache_errors) == (0, 0, 1)


async def test_a_killed_node_lost_nothing_that_it_had_answered(tmp_path: Path) -> None:
    async with origin(tmp_path / "origin") as first, serving(METAINFO_ONLY) as web:
        child = await trio.to_thread.run_sync(spawn, tmp_path / "a", web.url, first)
        assert child.stdout is not None
        line = await trio.to_thread.run_sync(child.stdout.readline)
        child.kill()
        await trio.to_thread.run_sync(child.wait)
        assert (line, child.returncode) == (b"20 frames read\n", -signal.SIGKILL)

        async with running(tmp_path / "a") as node:
            view = node.view(Sources())
            for number in range(20):
                assert store_frame(view.frame(PACK.ref, number * STORED, STORED)) == FRAMES[number]


async def test_readers_and_their_node_may_end_together(tmp_path: Path) -> None:
    stalled = Published.of(random.Random(99).randbytes(20 * PIECE_LENGTH))
    files = {path: data for path, data in stalled.files().items() if path.endswith(".torrent")}
    async with serving(files) as web:
        for number in range(10):
            node = Node(SETTINGS, tmp_path / str(number))
            async with trio.open_nursery() as nursery:
                await nursery.start(node.run)
                view = node.view(Sources((web.url,), ()))
                for piece in range(20):
                    missing = NotCached(stalled.ref, piece * PIECE_LENGTH, 1)
                    nursery.start_soon(view.ensure, missing, trio.current_time() + 10)
                while not node._fetcher.torrents.get(stalled.ref.info_hash):  # noqa: ASYNC110
                    await trio.sleep(0.001)
                await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()


async def test_two_nodes_cannot_share_a_cache(tmp_path: Path) -> None:
    async with running(tmp_path / "a"):
        with pytest.raises(CacheError, match="in use by process"):
            Node(SETTINGS, tmp_path / "a")


def spawn(directory: Path, url: str, peer: tuple[str, int]) -> subprocess.Popen[bytes]:
    arguments = [str(directory), url, peer[0], str(peer[1]), PACK.ref.info_hash.hex(), str(PACK.ref.length)]
    return subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE)


async def child(directory: str, url: str, host: str, port: str, info_hash: str, length: str) -> None:
    """Read half of the pack, say so, and wait to be killed."""
    ref = TorrentRef(InfoHash(bytes.fromhex(info_hash)), int(length), PACK.ref.kind)
    with trio.move_on_after(BREAKER_S):
        async with running(Path(directory)) as node:
            view = node.view(Sources((url,), ((host, int(port)),)))
            assert ref == PACK.ref
            for number in range(20):
                await frame(view, number)
            print("20 frames read", flush=True)
            await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(child, *sys.argv[1:])
