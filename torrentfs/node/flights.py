"""This module holds what is under way for one torrent, and groups pieces into requests. No clock, no I/O.

A *flight* is one piece on its way, whoever brings it and however many readers wait for it. A *request* is
one range that a mirror was asked for, and serves several flights.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import trio

from torrentfs.errors import CacheError
from torrentfs.node.held import Held
from torrentfs.node.mirrors import Mirror
from torrentfs.node.prefetch import Prefetch
from torrentfs.repository.metainfo import Metainfo, PieceIndex

Peer = tuple[str, int]
LATE_PIECES = 2
"""A piece that comes after so many others in a request is asked for again when somebody waits for it."""
MIRRORS_MAX = 64
PEERS_MAX = 1024
"""Sources of one torrent, of all mounts that use it."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where bytes may come from: base URLs of mirrors of `public/`, in order, and peers to connect to."""

    mirrors: tuple[str, ...] = ()
    peers: tuple[Peer, ...] = ()
    upstream: tuple[Peer, ...] = ()
    """Peers beyond the site, for when no mirror works: all nodes would fetch from them alike."""


class Request:
    """A run of neighbouring pieces asked of *mirror*; `open` are those still wanted of it."""

    __slots__ = ("mirror", "open", "run", "scope")

    def __init__(self, mirror: Mirror, run: list[PieceIndex]) -> None:
        self.mirror = mirror
        self.run = run
        self.open = set(run)
        self.scope = trio.CancelScope()

    def is_late_for(self, piece: PieceIndex) -> bool:
        """Tell whether a piece that has become urgent would queue behind others here."""
        return sum(1 for other in self.open if other < piece) >= LATE_PIECES

    def forget(self, piece: PieceIndex) -> None:
        """Take note that a piece is no longer wanted; end the request with the last one."""
        if piece in self.open:
            self.open.remove(piece)
            if not self.open:
                self.scope.cancel()


class Flight:
    """A piece on its way. Times are trio's: `due` is when the next source is asked, `expires` when it is
    given up unless somebody waits for it.
    """

    __slots__ = (
        "asked",
        "due",
        "error",
        "expires",
        "hedged",
        "is_near",
        "landed",
        "looked",
        "piece",
        "readers",
        "requests",
        "urgent",
        "waited",
    )

    def __init__(self, piece: PieceIndex, *, began: float, expires: float, urgent: bool) -> None:
        self.piece = piece
        self.asked = began
        """Since when somebody waits for it, or at least wants it."""
        self.is_near: bool | None = None
        """Whether a connected peer has it; None: not known yet."""
        self.waited = False
        """Whether a neighbour was given time to fetch it."""
        self.looked = False
        """Whether it was looked once more, after that, who has it."""
        self.hedged = False
        """Whether mirrors were asked for what a peer has."""
        self.due = float("inf")
        self.expires = expires
        self.urgent = urgent
        self.readers = 0
        self.requests: list[Request] = []
        self.landed = trio.Event()
        self.error: CacheError | None = None

    def is_asked_of(self, mirror: Mirror) -> bool:
        """Tell whether *mirror* was asked and, if there is a hurry, will send it soon."""
        return any(
            r.mirror is mirror and not (self.urgent and r.is_late_for(self.piece)) for r in self.requests
        )


class Torrent:
    """A torrent that may be fetched from: what it is, what is here, who has it, what is under way."""

    def __init__(self, metainfo: Metainfo, held: Held, *, readahead_pieces_max: int) -> None:
        self.metainfo = metainfo
        self.held = held
        self.prefetch = Prefetch(held.piece_length, held.piece_count, readahead_pieces_max)
        self.mirrors: list[Mirror] = []
        self.peers: dict[Peer, None] = {}
        self.upstream: dict[Peer, None] = {}
        """Peers to turn to when no mirror helps."""
        self.connected = 0
        self.alone_since = float("-inf")
        """Since when no peer is connected, if that is so."""
        self.copies: Sequence[int] = ()
        self.copies_at = float("-inf")
        """How many peers had each piece when some of them were neighbours, and when that was, trio's time."""
        self.grace_until = 0.0
        self.grace_s = 0.0
        """How long connections were given to come about; 0 once it is known whether they did."""
        self.last_arrival = float("-inf")
        self.flights: dict[PieceIndex, Flight] = {}
        self.injected: dict[PieceIndex, bool] = {}
        """Pieces given to the swarm that it has not said anything of, and whether a mirror of the site
        sent them.
        """
        self.wake = trio.Event()
        self.wakes_at = float("inf")

    def give_grace(self, now: float, seconds: float) -> None:
        """Wait *seconds* for connections before mirrors are asked."""
        self.grace_until, self.grace_s = now + seconds, seconds

    def has_site_mirror(self, now: float) -> bool:
        """Tell whether a mirror of the site may be asked: going there costs nobody outside anything."""
        return any(
            mirror.within and mirror.ready_at(self.metainfo.info_hash) <= now for mirror in self.mirrors
        )

    def learn(self, mirrors: Iterable[Mirror], peers: Iterable[Peer]) -> list[Peer]:
        """Add sources, as many as a torrent may have; return the peers that are new.

        A new mirror may bring at once what others wait for: the courier looks again.
        """
        for mirror in mirrors:
            if mirror not in self.mirrors and len(self.mirrors) < MIRRORS_MAX:
                self.mirrors.append(mirror)
                self.wake.set()
        new = [peer for peer in dict.fromkeys(peers) if peer not in self.peers]
        new = new[: PEERS_MAX - len(self.peers)]
        self.peers.update(dict.fromkeys(new))
        return new


def runs(
    urgent: Collection[PieceIndex], others: Collection[PieceIndex], length_max: int
) -> Iterator[list[PieceIndex]]:
    """Group pieces into runs of neighbours, at most *length_max* long: each run that has an urgent piece
    begins with one, and those come first; what is left over follows. Every piece is in exactly one run.
    """
    left = {*urgent, *others}
    for start in (*sorted(urgent), *sorted(others)):
        run: list[PieceIndex] = []
        piece = start
        while piece in left and len(run) < length_max:
            left.remove(piece)
            run.append(piece)
            piece = PieceIndex(piece + 1)
        if run:
            yield run
