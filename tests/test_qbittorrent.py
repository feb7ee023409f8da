"""Tests of our swarm with a client that anybody has: Debian's qBittorrent."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from qbittorrent import Client, qbittorrent
from test_seed import publish_bytes
from test_swarm import running

from torrentfs.repository.metainfo import InfoHash, PieceIndex, parse
from torrentfs.repository.workshop import Repository

pytestmark = pytest.mark.needs("qbittorrent-nox")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with qbittorrent(tmp_path / "client") as made:
        yield made


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """The pack of a published package; its metainfo lies beside it, as any web server has it."""
    repository = Repository.create(tmp_path / "repository", "alice")
    publish_bytes(repository, "data/a")
    (found,) = (repository.public / "packs").glob("*.tar.zst")
    return found


@pytest.mark.parametrize("by", ["torrent", "magnet"])
async def test_a_stock_client_downloads_a_pack_from_us_and_seeds_it_to_us(
    client: Client, pack: Path, tmp_path: Path, by: str
) -> None:
    info_hash = InfoHash(bytes.fromhex(pack.name.partition(".")[0]))
    torrent = pack.with_name(f"{info_hash.hex()}.torrent").read_bytes()
    metainfo = parse(torrent, info_hash)
    everything = [PieceIndex(number) for number in range(metainfo.piece_count)]

    async with running() as (origin, _):
        origin.add(metainfo, pack, None, seed=True)
        if by == "torrent":
            await trio.to_thread.run_sync(client.add, torrent)
        else:
            # That names nothing but the info-hash: the rest is for peers to tell.
            await trio.to_thread.run_sync(client.add, b"", f"magnet:?xt=urn:btmh:1220{info_hash.hex()}")
        await trio.to_thread.run_sync(client.connect, info_hash, origin.listen[1])
        theirs = await trio.to_thread.run_sync(client.await_whole, info_hash)

    # Nobody else has it now.
    async with running() as (node, seen):
        node.add(metainfo, tmp_path / "cache", [False] * len(everything), [("127.0.0.1", client.port)])
        node.want(info_hash, everything, urgent=True)
        await seen.until(lambda seen: set(seen.arrived) == set(everything))

    assert theirs.read_bytes() == (tmp_path / "cache").read_bytes() == pack.read_bytes()
