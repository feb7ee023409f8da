"""This module keeps who is in which swarm: the tables of a tracker. No I/O; the clock is the caller's.

Every table is bounded, and where one is full, whoever announced longest ago makes room: so one address can
fill its own share and no more. All is kept in the order of announces, so expiry is a look at the front: of an
OrderedDict, for to find a dict's front is to pass what was deleted there (200,000 took 17 s to expire).
"""

import random
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from torrentfs.config import TrackerSettings
from torrentfs.http.announce import Announce, Census, Endpoint, Event, TorrentKey, UnknownTorrentError

LIFE_INTERVALS = 1.5
"""After how many intervals of silence a peer is forgotten; clients try again soon where an announce fails."""
PORT_LENGTH = 2
SAMPLES = 3
"""How many peers are looked at, first, for each that is wanted."""

Entry = tuple[TorrentKey, Endpoint]


@dataclass(frozen=True, slots=True)
class _Peer:
    """Someone who is in a swarm until *ends_at*; *peer_id* only as a hash, to tell two of them apart."""

    ends_at: float
    is_complete: bool
    peer_id: int


@dataclass(slots=True)
class _Torrent:
    """A torrent that is followed; peers in the order of their announces."""

    is_ours: bool
    """Whether this seeder has all of it."""
    peers: OrderedDict[Endpoint, _Peer] = field(default_factory=OrderedDict)
    complete: int = 0
    downloaded: int = 0


class Swarms:
    """The swarms of a set of torrents, each with its peers."""

    def __init__(self, settings: TrackerSettings, chance: random.Random | None = None) -> None:
        self._settings = settings
        self._chance = chance or random.Random()
        self._torrents: dict[TorrentKey, _Torrent] = {}
        self._entries: OrderedDict[Entry, float] = OrderedDict()
        self._addresses: dict[bytes, OrderedDict[Entry, None]] = {}

    @property
    def peer_count(self) -> int:
        """How many are listed, once for each torrent that they are in; may count some that are expired."""
        return len(self._entries)

    @property
    def address_count(self) -> int:
        return len(self._addresses)

    @property
    def torrent_count(self) -> int:
        """How many torrents anyone is listed for."""
        return sum(1 for torrent in self._torrents.values() if torrent.peers)

    def follow(self, torrents: Iterable[TorrentKey], ours: Iterable[TorrentKey]) -> None:
        """Serve *torrents* from now on, and no others; we ourselves seed those of *ours*."""
        wanted, seeded = set(torrents), set(ours)
        for key in self._torrents.keys() - wanted:
            for endpoint in [*self._torrents[key].peers]:
                self._drop((key, endpoint))
            del self._torrents[key]
        for key in wanted:
            self._torrents.setdefault(key, _Torrent(False)).is_ours = key in seeded

    def learn(self, key: TorrentKey) -> None:
        """Serve a torrent, which we seed, besides the others."""
        self._torrents.setdefault(key, _Torrent(True)).is_ours = True

    def announce(
        self, announce: Announce, address: bytes, now: float, seeder: Endpoint | None = None
    ) -> list[Endpoint]:
        """List the client at *address* (packed), or forget it; return others of its kind of address.

        *seeder* is where it reaches us; of a torrent that we seed we come first.

        Raises: UnknownTorrentError.
        """
        self.expire(now)
        torrent = self._torrent(announce.torrent)
        endpoint = Endpoint(address + announce.port.to_bytes(PORT_LENGTH))
        entry = (announce.torrent, endpoint)
        if announce.event is Event.STOPPED:
            listed = torrent.peers.get(endpoint)
            # A torrent that is added anew has another id, and its first announce may overtake the last of
            # the old one.
            if listed is not None and listed.peer_id == hash(announce.peer_id):
                self._drop(entry)
            return []
        torrent.downloaded += announce.event is Event.COMPLETED
        if endpoint in torrent.peers:
            self._drop(entry)
        self._make_room(torrent, announce.torrent, address)
        ends_at = now + LIFE_INTERVALS * self._settings.interval_s
        torrent.peers[endpoint] = _Peer(ends_at, announce.is_complete, hash(announce.peer_id))
        torrent.complete += announce.is_complete
        self._entries[entry] = ends_at
        self._addresses.setdefault(address, OrderedDict())[entry] = None
        return self._others(torrent, announce, endpoint, seeder)

    def census(self, key: TorrentKey, now: float) -> Census:
        """Count a swarm, us included.

        Raises: UnknownTorrentError.
        """
        self.expire(now)
        torrent = self._torrent(key)
        return Census(
            torrent.complete + torrent.is_ours, len(torrent.peers) - torrent.complete, torrent.downloaded
        )

    def expire(self, now: float) -> None:
        """Forget who was silent for too long."""
        while self._entries:
            entry, ends_at = next(iter(self._entries.items()))
            if ends_at > now:
                return
            self._drop(entry)

    def _torrent(self, key: TorrentKey) -> _Torrent:
        torrent = self._torrents.get(key)
        if torrent is None:
            raise UnknownTorrentError("this tracker does not know the torrent")
        return torrent

    def _make_room(self, torrent: _Torrent, key: TorrentKey, address: bytes) -> None:
        """Make room for one more peer. The address's own entries go first: so no one pushes out others."""
        own = self._addresses.get(address, ())
        if len(own) >= self._settings.address_peers_max:
            self._drop(next(iter(own)))
        if len(torrent.peers) >= self._settings.torrent_peers_max:
            self._drop((key, next(iter(torrent.peers))))
        if len(self._entries) >= self._settings.peers_max:
            self._drop(next(iter(self._entries)))

    def _drop(self, entry: Entry) -> None:
        key, endpoint = entry
        torrent = self._torrents[key]
        torrent.complete -= torrent.peers.pop(endpoint).is_complete
        del self._entries[entry]
        address = endpoint[:-PORT_LENGTH]
        own = self._addresses[address]
        del own[entry]
        if not own:
            del self._addresses[address]

    def _others(
        self, torrent: _Torrent, announce: Announce, endpoint: Endpoint, seeder: Endpoint | None
    ) -> list[Endpoint]:
        """Choose whom a peer is told of, at random; who has everything needs no others of that kind."""
        most = self._settings.answer_peers_max
        wanted = most if announce.wanted is None else min(announce.wanted, most)
        ours = [seeder] if seeder and torrent.is_ours and not announce.is_complete else []
        count = max(wanted - len(ours), 0)
        # Few of a large swarm, as a rule: looking at all of 5,000 takes 1.5 ms.
        for looked_at in (min(SAMPLES * count + 1, len(torrent.peers)), len(torrent.peers)):
            chosen = [
                peer
                for peer in self._chance.sample([*torrent.peers], looked_at)
                if len(peer) == len(endpoint)
                and peer != endpoint
                and peer not in ours
                and not (announce.is_complete and torrent.peers[peer].is_complete)
            ]
            if len(chosen) >= count:
                break
        return [*ours, *chosen[:count]][:wanted]
