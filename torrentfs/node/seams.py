"""This module says what the fetcher and the swarm expect of each other; neither imports the other."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import trio

from torrentfs.repository.metainfo import InfoHash, Metainfo, PieceIndex


class SwarmEvents(Protocol):
    """What a swarm tells; it is called from the swarm's task and must not block."""

    def pieces_arrived(self, info_hash: InfoHash, pieces: Sequence[PieceIndex]) -> None:
        """Pieces are verified, and on disk: they can be read now. Injected ones too."""

    def piece_failed(self, info_hash: InfoHash, piece: PieceIndex) -> None:
        """A piece, injected or from peers, does not match its hash; if it was wanted it still is."""

    def disk_failed(self, info_hash: InfoHash, reason: str) -> None:
        """The torrent's file cannot be used: nothing that was wanted or injected comes any more."""

    def peers_changed(self, info_hash: InfoHash, connected: int) -> None:
        """So many peers that can serve are connected now."""

    def seen(self, info_hash: InfoHash, counts: Sequence[int]) -> None:
        """So many connected peers have each piece: the answer to `Swarm.look`."""


class Counters(Protocol):
    """Payload bytes of a session, and its peers."""

    @property
    def uploaded(self) -> int:
        """Bytes sent to peers."""

    @property
    def redundant(self) -> int:
        """Bytes that peers sent twice."""

    @property
    def peers(self) -> int:
        """Peers connected now."""


class Swarm(Protocol):
    """What the fetcher needs of a swarm; nothing but `run` and `counters` waits."""

    @property
    def listen(self) -> tuple[str, int]:
        """Where peers reach us, with the real port, once it runs."""

    @property
    def alerts_most(self) -> int:
        """The most alerts that were waiting at a time."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled."""

    def connected(self, info_hash: InfoHash) -> int:
        """Return how many peers that can serve are connected; 0 of an unknown torrent."""

    def look(self, info_hash: InfoHash) -> None:
        """Ask who has what; the answer comes soon (`SwarmEvents.seen`)."""

    def company(self, info_hash: InfoHash) -> tuple[str, frozenset[str]]:
        """Return our own IP address, as peers see it, and those of connected nodes of our site."""

    def received(self) -> Mapping[str, int]:
        """Return payload bytes by the kind of peer that sent them: neighbour, site_seeder, upstream."""

    async def counters(self) -> Counters:
        """Return the session's figures."""

    def add(
        self,
        metainfo: Metainfo,
        file: Path,
        have: Sequence[bool] | None,
        peers: Iterable[tuple[str, int]] = (),
    ) -> None:
        """Take part in a torrent whose data lies in *file*, of which we *have* some pieces."""

    def remove(self, info_hash: InfoHash) -> None:
        """Leave a torrent; its file stays."""

    def connect(self, info_hash: InfoHash, peers: Iterable[tuple[str, int]]) -> None:
        """Connect to more peers."""

    def drop(self, info_hash: InfoHash, pieces: Collection[PieceIndex]) -> None:
        """Believe no longer that we have pieces; what is wanted stays wanted."""

    def reveal(self, info_hash: InfoHash, have: Sequence[bool]) -> bool:
        """Believe that we *have* pieces too; return whether that is news, and connections were broken."""

    def want(self, info_hash: InfoHash, pieces: Sequence[PieceIndex], *, urgent: bool) -> None:
        """Ask peers for pieces."""

    def unwant(self, info_hash: InfoHash, pieces: Sequence[PieceIndex]) -> None:
        """Ask no more; of a torrent that the swarm has left too, as at a node's end."""

    def inject(self, info_hash: InfoHash, piece: PieceIndex, data: bytes) -> None:
        """Take a piece from elsewhere: verify, write, tell, seed it."""
