"""This program is a node's swarm and no more, for tests with hosts that are network namespaces.

Usage: swarm_worker.py LISTEN TORRENT INFO_HASH FILE SITE, SITE being a site's settings in JSON, and on
standard input, line by line:

    seed                take up the torrent, all of which is in FILE
    fetch PEER…         take it up with an empty file beside FILE, dial the peers (HOST:PORT), want all of it
    look                tell how many peers have each piece
    company             tell of ourselves and our neighbours

It prints what happens, one JSON object a line, with `ms` since the torrent was taken up: `listening` (port),
`piece`, `connected` (how many), `counts`, `own` with `others`. It ends with its input.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import trio

from torrentfs.config import SiteSettings, SwarmSettings, parse_address
from torrentfs.node.swarm import Swarm
from torrentfs.repository.metainfo import InfoHash, Metainfo, PieceIndex, parse


class Worker:
    """A swarm with one torrent."""

    def __init__(self, listen: str, metainfo: Metainfo, file: Path, site: SiteSettings) -> None:
        self._metainfo, self._file = metainfo, file
        self._swarm = Swarm(SwarmSettings(listen=listen), site, self)
        self._since = 0.0

    async def run(self) -> None:
        """Do as standard input says, until its end."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._swarm.run)
            self._say(listening=self._swarm.listen[1])
            async for line in trio.wrap_file(sys.stdin):
                self._do(*line.split())
            nursery.cancel_scope.cancel()

    def _do(self, word: str, *peers: str) -> None:
        info_hash = self._metainfo.info_hash
        if word in ("seed", "fetch"):
            seed = word == "seed"
            file = self._file if seed else self._file.with_name(f"cache.{time.monotonic_ns()}")
            self._since = time.monotonic()
            self._swarm.add(self._metainfo, file, None, map(parse_address, peers), seed=seed)
            if not seed:
                pieces = [PieceIndex(piece) for piece in range(self._metainfo.piece_count)]
                self._swarm.want(info_hash, pieces, urgent=True)
        elif word == "look":
            self._swarm.look(info_hash)
        else:
            own, others = self._swarm.company(info_hash)
            self._say(own=own, others=sorted(others))

    def pieces_arrived(self, info_hash: InfoHash, pieces: Sequence[PieceIndex]) -> None:
        for piece in pieces:
            self._say(piece=piece)

    def piece_failed(self, info_hash: InfoHash, piece: PieceIndex) -> None:
        self._say(failed=piece)

    def disk_failed(self, info_hash: InfoHash, reason: str) -> None:
        self._say(disk=reason)

    def peers_changed(self, info_hash: InfoHash, connected: int) -> None:
        self._say(connected=connected)

    def seen(self, info_hash: InfoHash, counts: Sequence[int]) -> None:
        self._say(counts=list(counts))

    def _say(self, **event: Any) -> None:
        print(json.dumps({**event, "ms": round(1000 * (time.monotonic() - self._since), 1)}), flush=True)


def main(listen: str, torrent: str, info_hash: str, file: str, site: str) -> None:
    metainfo = parse(Path(torrent).read_bytes(), InfoHash(bytes.fromhex(info_hash)))
    trio.run(Worker(listen, metainfo, Path(file), msgspec.json.decode(site, type=SiteSettings)).run)


if __name__ == "__main__":
    main(*sys.argv[1:])
