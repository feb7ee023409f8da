"""This module keeps what the swarm knows of one torrent, and asks libtorrent for its pieces."""

import logging
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libtorrent as lt

from torrentfs.node.session import torrent_parameters
from torrentfs.node.site import Site
from torrentfs.node.sockets import Address
from torrentfs.repository.metainfo import Metainfo, PieceIndex

log = logging.getLogger(__name__)

REDIAL_PAUSE_S = 0.5
"""How often a torrent without peers may be made to dial at once; libtorrent itself does so once a second."""

URGENT, AHEAD, DECOY, UNWANTED = 7, 4, 1, 0
"""Piece priorities."""


@dataclass(slots=True, eq=False)
class Torrent:
    """One torrent in the session."""

    metainfo: Metainfo
    file: Path
    have: list[bool]
    seed: bool
    site: Site
    handle: Any = None
    is_open: bool = False
    """What is injected before libtorrent has looked at the file is lost in 2 of 100 cases."""
    is_doubted: bool = False
    """Whether libtorrent reads the whole file instead of taking our word."""
    peers: set[Address] = field(default_factory=set)
    """Whom we were told of, by number."""
    names: set[tuple[str, int]] = field(default_factory=set)
    """Those of them that have names; what a name stands for may change."""
    wanted: dict[PieceIndex, int] = field(default_factory=dict)
    decoy: PieceIndex | None = None
    """A piece that no peer has, asked for beside those that are wanted; see `avoid_end_game`."""
    injected: dict[PieceIndex, bytes] = field(default_factory=dict)
    """What libtorrent has not answered yet."""
    dialled: set[Address] = field(default_factory=set)
    """Connections that may not be there yet: libtorrent reports a dial when it begins."""
    connected: set[Address] = field(default_factory=set)
    received: dict[Address, int] = field(default_factory=dict)
    """Payload bytes that each connected peer has sent, when last looked at."""
    has_moved: bool = False
    """Whether something came since then."""
    dialled_at: float = 0.0
    failed_at: float | None = None
    failure: str = ""
    """What the disk said last, until a piece was written again."""

    def start(self, session: Any, own: Iterable[Address]) -> None:
        """Add it to *session*, which listens at *own*; asleep until `open`."""
        self.is_open = False
        self.failed_at = None
        self.decoy = None
        self.connected.clear()
        self.dialled.clear()
        seed = self.seed and all(self.have)
        self.handle = session.add_torrent(
            torrent_parameters(self.metainfo, self.file, self.have, self.peers, self.site, own, seed=seed)
        )

    def open(self) -> None:
        """Dial, and ask for what was wanted so far: libtorrent has looked at the file, or taken our word."""
        self.is_open = True
        if self.is_doubted:
            self.is_doubted = False
            self.have = list(self.handle.status(lt.torrent_handle.query_pieces).pieces)
        self.dialled_at = time.monotonic()
        # Before it is announced: who wants nothing is announced as "paused" (BEP 21).
        for level in (URGENT, AHEAD):
            self._ask([piece for piece, at in self.wanted.items() if at == level], level)
        # Not before: resumed while its file is looked at, it would dial at the next tick, up to 1 s on.
        self.handle.resume()
        for piece, data in self.injected.items():
            self.handle.add_piece(piece, data, 0)

    def want(self, pieces: Sequence[PieceIndex], level: int) -> None:
        """Ask for those of *pieces* that are neither here nor wanted as much already."""
        news = [
            piece for piece in pieces if not self.have[piece] and self.wanted.get(piece, UNWANTED) < level
        ]
        self.wanted.update(dict.fromkeys(news, level))
        if self.decoy in self.wanted:
            self.decoy = None
        if self.is_open:
            self._ask(news, level)

    def inject(self, piece: PieceIndex, data: bytes) -> None:
        """Hand over a piece that is not here."""
        self.injected[piece] = data
        if self.is_open:
            self.handle.add_piece(piece, data, 0)

    def unwant(self, pieces: Sequence[PieceIndex]) -> None:
        """Ask no longer."""
        for piece in pieces:
            if self.wanted.pop(piece, UNWANTED) == URGENT:
                self.handle.reset_piece_deadline(piece)
        self.handle.prioritize_pieces([(piece, UNWANTED) for piece in pieces])
        self._rest()

    def avoid_end_game(self, counts: Sequence[int]) -> None:
        """Keep libtorrent from asking several peers for the same; *counts* says how many have each piece.

        It does so once all that is left is under way (end game), which with single pieces is always: with
        six nodes 9 % of all bytes came twice; with a piece asked for that cannot be under way, 0.4 %.
        """
        is_good = self.decoy is not None and self.decoy < len(counts) and not counts[self.decoy]
        if is_good or not self.wanted:
            return
        self._drop_decoy()
        rare = [
            PieceIndex(piece)
            for piece, count in enumerate(counts)
            if not (count or self.have[piece] or piece in self.wanted or piece in self.injected)
        ]
        if rare:
            self.decoy = random.choice(rare)
            self.handle.piece_priority(self.decoy, DECOY)

    def _rest(self) -> None:
        """Ask for nothing at all when nothing is wanted."""
        if not self.wanted:
            self._drop_decoy()

    def _drop_decoy(self) -> None:
        if self.decoy is not None:
            self.handle.piece_priority(self.decoy, UNWANTED)
            self.decoy = None

    def _ask(self, pieces: Sequence[PieceIndex], level: int) -> None:
        if level == URGENT:
            for piece in pieces:
                # Both: a priority queues behind readahead, a deadline may wait for the once-a-second pass.
                self.handle.piece_priority(piece, level)
                self.handle.set_piece_deadline(piece, 0)
        elif pieces:
            self.handle.prioritize_pieces([(piece, level) for piece in pieces])

    def finished(self, piece: PieceIndex) -> bool:
        """Take note of a piece that is here; return whether that is news."""
        asked = [held.pop(piece, None) for held in (self.wanted, self.injected)]
        news = any(asked) or not self.have[piece]
        if news:
            self.failure = ""
            self.has_moved = True
        self.have[piece] = True
        self._rest()
        return news

    def look_again(self) -> list[PieceIndex]:
        """Ask libtorrent what is here and who is connected; return the pieces that are news. Waits for it."""
        has = self.handle.status(lt.torrent_handle.query_pieces).pieces
        pieces = [PieceIndex(piece) for piece, here in enumerate(has) if here]
        self.connected.clear()
        self.dialled.clear()
        for peer in self.handle.get_peer_info():
            is_new = peer.flags & (lt.peer_info.connecting | lt.peer_info.handshake)
            (self.dialled if is_new else self.connected).add((peer.ip[0], peer.ip[1]))
        return [piece for piece in pieces if self.finished(piece)]

    @property
    def is_stranded(self) -> bool:
        """Tell whether libtorrent knows peers but will dial none: seen of those that went while it waited."""
        if not self.is_open or not self.peers or self.connected or self.dialled:
            return False
        status = self.handle.status()
        return not status.connect_candidates and not status.num_connections

    def account(self, peers: Iterable[Any]) -> list[tuple[str, int]]:
        """Return the IP addresses of *peers* (libtorrent's) and what each has sent since the last call."""
        before, self.received = self.received, {}
        news = []
        for peer in peers:
            address = peer.ip[0], peer.ip[1]
            self.received[address] = peer.total_download
            news.append((address[0], max(0, peer.total_download - before.get(address, 0))))
        return news

    def fail(self, reason: str) -> None:
        """Take note that the disk failed: who asked for pieces is told, and asks again."""
        self.failed_at = time.monotonic()
        self.failure = reason
        self.wanted.clear()
        self.injected.clear()

    def dial(self, peers: Sequence[Address]) -> None:
        """Connect to *peers*, at once if there is no connection that this would break."""
        self.peers.update(peers)
        for peer in peers:
            self.handle.connect_peer(peer)
        now = time.monotonic()
        if self.is_open and peers and not self.connected and now - self.dialled_at >= REDIAL_PAUSE_S:
            self.dialled_at = now
            # Activation dials at once, else the next tick does: 3 ms instead of up to 1 s.
            self.handle.pause()
            self.handle.resume()


def credible(metainfo: Metainfo, file: Path, have: Sequence[bool]) -> list[bool]:
    """Drop claims past the end of *file*: they would make libtorrent hash all of it (1 s a GiB)."""
    try:
        length = file.stat().st_size
    except FileNotFoundError:
        length = 0
    whole = metainfo.piece_count if length >= metainfo.length else length // metainfo.piece_length
    if any(have[whole:]):
        log.warning("%s is shorter than what is said to be in it", file)
    return [*have[:whole], *[False] * (metainfo.piece_count - whole)]
