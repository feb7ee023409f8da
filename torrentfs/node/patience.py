"""This module decides how long neighbours are waited for, by what they did lately. No I/O; times are trio's.

Without a bound a missing neighbour would cost a job; without patience each of N nodes would fetch everything
from outside.
"""

import hashlib
import math
from collections import deque
from collections.abc import Collection

from torrentfs.repository.metainfo import InfoHash, PieceIndex

SAMPLES_MAX = 64
PERCENTILE = 0.95
MARGIN = 1.5
"""A piece is late when it takes so many times what nearly all of the last ones took."""
HEDGE_LEAST_S = 0.03
HEDGE_FIRST_S = 0.15
SPREAD_LEAST_S = 0.05
SPREAD_FIRST_S = 0.1
STRIKES = 2
"""Waits in vain, one after the other, after which nobody waits for a while."""
PAUSE_S = (0.5, 15.0)
"""The first and the longest such while."""
RANKS_MAX = 2
"""Nodes further down the ranking wait no longer: by then somebody has fetched it, or nobody will."""


class Delay:
    """How long something takes at most, nearly always: learned from the last times, within bounds."""

    def __init__(self, first_s: float, least_s: float, most_s: float) -> None:
        self.seconds = min(first_s, most_s)
        self._least_s = least_s
        self._most_s = most_s
        self._times: deque[float] = deque(maxlen=SAMPLES_MAX)

    def took(self, seconds: float) -> None:
        """Learn from one that came."""
        self._times.append(seconds)
        late = sorted(self._times)[math.ceil(PERCENTILE * len(self._times)) - 1]
        self.seconds = min(max(MARGIN * late, self._least_s), self._most_s)


class Hope:
    """Whether something is worth waiting for. After some waits in vain it is not, for a growing while."""

    def __init__(self) -> None:
        self._strikes = 0
        self._pause_s = 0.0
        self._until = -math.inf
        self._broken_at = -math.inf

    def is_up(self, now: float) -> bool:
        """Tell whether to wait."""
        return now >= self._until

    def kept(self) -> None:
        """Take note that it came in time."""
        self._strikes = 0
        self._pause_s = 0.0
        self._until = -math.inf

    def broken(self, began: float, now: float) -> None:
        """Take note of a wait in vain. Of those side by side one counts."""
        if began < self._broken_at:
            return
        self._broken_at = now
        self._strikes += 1
        if self._strikes >= STRIKES and now >= self._until:
            # One more after the pause is enough to know that nothing has changed.
            self._strikes = STRIKES - 1
            self._pause_s = min(max(2 * self._pause_s, PAUSE_S[0]), PAUSE_S[1])
            self._until = now + self._pause_s


class Patience:
    """What a node has learned of its neighbours, for all torrents."""

    def __init__(self, *, hedge_max_s: float, spread_max_s: float, connect_grace_s: float) -> None:
        """Know nothing yet. *spread_max_s* 0: a piece that a neighbour may be fetching is not waited for."""
        self.arriving = Hope()
        """That connections to peers come about."""
        self.peers = Hope()
        """That connected peers bring what they have."""
        self.neighbours = Hope()
        """That a neighbour fetches what we both lack."""
        self.hedge = Delay(HEDGE_FIRST_S, min(HEDGE_LEAST_S, hedge_max_s), hedge_max_s)
        self._spread = Delay(SPREAD_FIRST_S, min(SPREAD_LEAST_S, spread_max_s), spread_max_s)
        self._connect_grace_s = connect_grace_s

    def grace_s(self, now: float) -> float:
        """Return how long connections may take."""
        return self._connect_grace_s if self.arriving.is_up(now) else 0.0

    def hedge_s(self, now: float) -> float:
        """Return how long a peer that has a piece may take to bring it."""
        return self.hedge.seconds if self.peers.is_up(now) else 0.0

    def fetched(self, seconds: float) -> None:
        """Learn how long a piece from outside took."""
        self._spread.took(seconds)

    def spread_s(
        self,
        info_hash: InfoHash,
        piece: PieceIndex,
        own: str,
        others: Collection[str],
        now: float,
        *,
        at_once: int = 1,
    ) -> float:
        """Return how long to wait for a neighbour that may be fetching a piece; 0: it is ours to fetch.

        All neighbours rank themselves for each piece alike (rendezvous hashing); the first *at_once* go at
        once, the next when those must have been served.
        """
        if not own or not others or not self.neighbours.is_up(now):
            return 0.0
        return min(rank(info_hash, piece, own, others) // at_once, RANKS_MAX) * self._spread.seconds


def rank(info_hash: InfoHash, piece: PieceIndex, own: str, others: Collection[str]) -> int:
    """Return how many of *others* (IP addresses) have a better claim to fetch a piece than *own*."""
    mine = _weight(info_hash, piece, own)
    return sum(_weight(info_hash, piece, other) > mine for other in others if other != own)


def _weight(info_hash: InfoHash, piece: PieceIndex, address: str) -> bytes:
    return hashlib.blake2b(b"%d %s" % (piece, address.encode()), key=info_hash, digest_size=8).digest()
