"""This module gives tests a node with a fake swarm, and web servers that can be started for it."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio
from fakes import FakeSwarm, Published, Web

from torrentfs.config import NodeSettings
from torrentfs.node import Node, Sources, View
from torrentfs.node.flights import Torrent
from torrentfs.repository.metainfo import PIECE_LENGTH, Kind, NotCached, TorrentRef

SETTINGS = NodeSettings(connect_grace_s=0.05, hedge_delay_s=0.1, mirror_timeout_s=0.3)
PEERS = (("127.0.0.1", 1),)
DATA = random.Random(7).randbytes(8 * PIECE_LENGTH + 1000)
PACK = Published.of(DATA)
MANIFEST = Published.of(DATA[::-1], Kind.MANIFEST)
BREAKER_S = 20.0
"""No test waits longer, whatever goes wrong."""


@dataclass
class World:
    """A node with a fake swarm, and web servers that can be started for it."""

    node: Node
    swarm: FakeSwarm
    nursery: trio.Nursery

    async def web(self, fault: str = "", *, files: dict[str, bytes] | None = None) -> Web:
        return await self.nursery.start(Web(PACK.files() if files is None else files, fault).run)

    def view(self, *webs: Web, peers: tuple[tuple[str, int], ...] = ()) -> View:
        return self.node.view(Sources(tuple(web.url for web in webs), peers))


@asynccontextmanager
async def world(directory: Path, settings: NodeSettings = SETTINGS) -> AsyncIterator[World]:
    swarms: list[FakeSwarm] = []

    def make_swarm(events):
        swarms.append(FakeSwarm(events))
        return swarms[0]

    node = Node(settings, directory, make_swarm)
    with trio.fail_after(BREAKER_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            yield World(node, swarms[0], nursery)
            nursery.cancel_scope.cancel()


async def read(view: View, ref: TorrentRef, offset: int, length: int, wait_s: float = 10.0) -> bytes:
    deadline = trio.current_time() + wait_s
    while True:
        try:
            return view.range(ref, offset, length)
        except NotCached as missing:
            await view.ensure(missing, deadline)


def torrent(w: World) -> Torrent:
    found = w.node._fetcher.torrents.get(PACK.ref.info_hash)
    assert found is not None
    return found


async def until(done: Callable[[], bool]) -> None:
    while not done():  # noqa: ASYNC110 - what is waited for has no event of its own
        await trio.sleep(0.005)
