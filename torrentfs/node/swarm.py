"""This module is the node's only BitTorrent session: pieces in, pieces out. Which, and when, is `fetch`'s.

libtorrent's threads never run our Python: they ring, and `Swarm.run` takes the alerts. Nothing here waits for
libtorrent but `add` (2 ms; 0.6 of them parse the hashes of 1,000 pieces) and the `async` methods.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import libtorrent as lt
import trio

from torrentfs.config import SiteSettings, SwarmSettings, format_address
from torrentfs.errors import FormatError, ListenError
from torrentfs.node.answers import Answers
from torrentfs.node.names import Names, is_numeric, numeric
from torrentfs.node.seams import SwarmEvents
from torrentfs.node.session import SwarmCounters, open_session, read_counters
from torrentfs.node.site import KINDS, Site, share
from torrentfs.node.sockets import Address, tune_sockets
from torrentfs.node.torrent import AHEAD, URGENT, Torrent, credible
from torrentfs.node.wakeup import Wakeup
from torrentfs.repository.metainfo import InfoHash, Metainfo, PieceIndex

log = logging.getLogger(__name__)

LISTEN_DEADLINE_S = 10.0
CLOSE_DEADLINE_S = 1.5
ANSWER_DEADLINE_S = 5.0
INCOMING = "incoming connection"
"""In libtorrent's words; the alert has no other sign of the direction."""
RECOVER_PAUSE_S = 1.0
"""How long a torrent whose file could not be written rests before it is tried again."""
TEND_INTERVAL_S = 1.0
"""How often to look for what libtorrent leaves alone."""
REVIVE_AFTER_S = 30.0
"""After which a torrent whose file failed is tried again though nobody here wants any of it: peers may."""
SETTLE_PAUSE_S = (0.002, 0.1)
"""The first and the longest pause between two looks whether dialled sockets are connected."""


class Swarm:
    """All torrents of a node. Methods other than `run` may be called once `run` has started."""

    def __init__(self, settings: SwarmSettings, site: SiteSettings, events: SwarmEvents) -> None:
        """Prepare a session for the node of a *site*. Raises: UsageError: a network or an address is none."""
        self.listen: Address = ("", 0)
        """Where peers reach us, with the real port, once `run` has started; port 0: nowhere."""
        self.alerts_most = 0
        """The most that libtorrent had to say at a time."""
        self.banned = 0
        """Peers that sent wrong bytes."""
        self._settings = settings
        self._site = Site(site)
        self._own = ""
        self._listens: set[Address] = set()
        self._received: dict[str, int] = dict.fromkeys(KINDS, 0)
        self._silent_trackers: set[str] = set()
        self._events = events
        self._session: Any = None
        self._torrents: dict[InfoHash, Torrent] = {}
        self._names = Names(self._resolved)
        self._here: list[tuple[InfoHash, PieceIndex]] = []
        self._failing: dict[InfoHash, str] = {}
        self._counters: Answers[SwarmCounters] = Answers()
        self._bell = Wakeup()
        self._dialled = trio.Event()
        self._dispatch: dict[type, Callable[[Any], None]] = {
            lt.state_changed_alert: self._on_state_changed,
            lt.torrent_checked_alert: self._on_torrent_checked,
            lt.hash_failed_alert: self._on_hash_failed,
            lt.peer_connect_alert: self._on_peer_connect,
            lt.peer_disconnected_alert: self._on_peer_disconnected,
            lt.listen_succeeded_alert: self._on_listen_succeeded,
            lt.listen_failed_alert: self._on_listen_failed,
            lt.session_stats_alert: self._on_session_stats,
            lt.peer_ban_alert: self._on_peer_ban,
            lt.tracker_error_alert: self._on_tracker_error,
            lt.tracker_reply_alert: self._on_tracker_reply,
            lt.file_error_alert: self._on_file_error,
            lt.torrent_error_alert: self._on_file_error,
            lt.alerts_dropped_alert: self._on_alerts_dropped,
            lt.piece_availability_alert: self._on_piece_availability,
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started when listening.

        Raises: ListenError: the address is taken, or not ours.
        """
        host, port = await numeric(self._settings.listen) if self._site.has_peers else ("", 0)
        try:
            self._session = open_session(self._settings, self._site, host, port, self._bell.descriptor)
            if self._site.has_peers:
                await self._start_listening()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._names.run)
                nursery.start_soon(self._settle)
                nursery.start_soon(self._tend)
                nursery.start_soon(self._pump)
                task_status.started()
        finally:
            await self._close()

    # What fetch asks for.

    def add(
        self,
        metainfo: Metainfo,
        file: Path,
        have: Sequence[bool] | None,
        peers: Iterable[tuple[str, int]] = (),
        *,
        seed: bool = False,
    ) -> None:
        """Take up a torrent whose data lies, or will lie, in *file*; nothing is wanted of it yet.

        *have* is believed, piece by piece, but for those past the end of the file. With *seed* and no *have*,
        all of it is there, and each piece is verified before its first upload.
        """
        if metainfo.info_hash in self._torrents:
            raise ValueError(f"torrent {metainfo.info_hash.hex()} is there already")
        claimed = [seed] * metainfo.piece_count if have is None else list(have)
        torrent = Torrent(metainfo, file, credible(metainfo, file, claimed), seed, self._site)
        torrent.peers.update(self._known_numbers(torrent, peers))
        torrent.start(self._session, self._listens)
        self._torrents[metainfo.info_hash] = torrent

    def connect(self, info_hash: InfoHash, peers: Iterable[tuple[str, int]]) -> None:
        """Dial further peers; names are looked up in the background."""
        torrent = self._torrents[info_hash]
        torrent.dial(self._known_numbers(torrent, peers))

    def remove(self, info_hash: InfoHash) -> None:
        """Forget a torrent; its file stays. Wants and injections of it are forgotten too."""
        self._session.remove_torrent(self._torrents.pop(info_hash).handle)

    def want(self, info_hash: InfoHash, pieces: Sequence[PieceIndex], *, urgent: bool) -> None:
        """Ask peers for *pieces*: at once when *urgent*, else behind those, in the order of the file."""
        torrent = self._torrents[info_hash]
        if not self._recover(torrent):
            return
        torrent.want(pieces, URGENT if urgent else AHEAD)
        if urgent:
            self._dial_again(torrent)

    def unwant(self, info_hash: InfoHash, pieces: Sequence[PieceIndex]) -> None:
        """Take back the wish for *pieces*; what is under way still arrives.

        Readers leave at the node's end too, when the swarm may have left its torrents.
        """
        if torrent := self._torrents.get(info_hash):
            torrent.unwant(pieces)

    def inject(self, info_hash: InfoHash, piece: PieceIndex, data: bytes) -> None:
        """Hand over a piece that was fetched elsewhere: it is verified, reported and seeded like others.

        Raises: FormatError: *data* has another length than the piece.
        """
        torrent = self._torrents[info_hash]
        if len(data) != torrent.metainfo.piece_span(piece):
            raise FormatError(f"piece {piece} of {info_hash.hex()}: {len(data)} bytes")
        if torrent.have[piece]:  # libtorrent would say nothing
            self._here.append((info_hash, piece))
            self._bell.ring()
            return
        if self._recover(torrent):
            torrent.inject(piece, data)

    def drop(self, info_hash: InfoHash, pieces: Collection[PieceIndex]) -> None:
        """Believe no longer that *pieces* are there; wants and injections stay, connections are made anew.

        libtorrent knows no way to take a piece back: the torrent is added again (4 ms).
        """
        torrent = self._torrents[info_hash]
        for piece in pieces:
            torrent.have[piece] = False
        torrent.seed = False
        self._restart(torrent)

    def reveal(self, info_hash: InfoHash, have: Sequence[bool]) -> bool:
        """Believe that pieces we *have* are there too; return whether that is news. If it is, connections are
        made anew, as with `drop`.
        """
        torrent = self._torrents[info_hash]
        claimed = [here or before for here, before in zip(have, torrent.have, strict=True)]
        if claimed == torrent.have:
            return False
        torrent.have = credible(torrent.metainfo, torrent.file, claimed)
        self._restart(torrent)
        return True

    def look(self, info_hash: InfoHash) -> None:
        """Ask who has what; the answer comes in 10 to 400 µs (`SwarmEvents.seen`). We are not counted."""
        if torrent := self._torrents.get(info_hash):
            torrent.handle.post_piece_availability()

    def company(self, info_hash: InfoHash) -> tuple[str, frozenset[str]]:
        """Return our own IP address, as peers see it, and those of connected nodes of our site."""
        torrent = self._torrents.get(info_hash)
        hosts = {host for host, _ in torrent.connected} if torrent else set()
        return self._own, frozenset(host for host in hosts if self._site.kind(host) == "neighbour")

    # What stats ask for.

    def received(self) -> Mapping[str, int]:
        """Return payload bytes by the kind of peer that sent them, as of a second ago.

        What a peer sent in its last second before it went may be missing.
        """
        return self._received

    def connected(self, info_hash: InfoHash) -> int:
        """Return how many peers are connected, as of the last alerts; of an unknown torrent: 0."""
        torrent = self._torrents.get(info_hash)
        return len(torrent.connected) if torrent else 0

    async def counters(self) -> SwarmCounters:
        """Return the session's counters as of now. Raises: DeadlineError."""
        self._session.post_session_stats()
        return await self._counters.get(ANSWER_DEADLINE_S)

    def peers(self, info_hash: InfoHash) -> list[Address]:
        """Return the far ends of a torrent's connections, as of the last alerts."""
        torrent = self._torrents.get(info_hash)
        return sorted(torrent.connected) if torrent else []

    # Torrents and peers.

    def _restart(self, torrent: Torrent) -> None:
        self._session.remove_torrent(torrent.handle)
        torrent.start(self._session, self._listens)
        self._events.peers_changed(torrent.metainfo.info_hash, 0)

    def _recover(self, torrent: Torrent) -> bool:
        """Start anew after an error of the disk: libtorrent would rest for 10 minutes, or for ever.

        Return whether anything can be asked for; if that error is too fresh, it is told again.
        """
        if torrent.failed_at is None:
            return True
        if time.monotonic() - torrent.failed_at < RECOVER_PAUSE_S:
            self._failing[torrent.metainfo.info_hash] = torrent.failure
            self._bell.ring()
            return False
        self._restart(torrent)
        return True

    async def _tend(self) -> None:
        """Try again what libtorrent does not: files that failed, and peers that went while it waited."""
        while True:
            await trio.sleep(TEND_INTERVAL_S)
            for torrent in [*self._torrents.values()]:
                if torrent.has_moved:
                    await self._account(torrent)
                if torrent.failed_at is not None:
                    if time.monotonic() - torrent.failed_at >= REVIVE_AFTER_S:
                        self._restart(torrent)
                elif torrent.wanted and torrent.is_stranded:
                    self._restart(torrent)
                elif torrent.wanted:
                    self._dial_again(torrent)

    async def _account(self, torrent: Torrent) -> None:
        """Find out which peers have sent what since the last time."""
        torrent.has_moved = False
        try:
            # In a thread: it waits for libtorrent. Its peer_info_alert cannot be read in this binding.
            peers = await trio.to_thread.run_sync(torrent.handle.get_peer_info)
        except RuntimeError:  # it was removed meanwhile
            return
        for kind, count in share(torrent.account(peers), self._site).items():
            self._received[kind] += count

    def _dial_again(self, torrent: Torrent) -> None:
        if not torrent.connected and not torrent.dialled:
            # Names again: a seeder may have moved to another address.
            torrent.dial([*torrent.peers, *self._known_numbers(torrent, torrent.names)])

    def _known_numbers(self, torrent: Torrent, peers: Iterable[tuple[str, int]]) -> list[Address]:
        """Return those of *peers* whose addresses are known; the others are dialled when they are."""
        peers = list(peers) if self._site.has_peers else []
        torrent.names.update(peer for peer in peers if not is_numeric(peer[0]))
        known = {peer: address for peer in peers if (address := self._names.get(peer)) is not None}
        self._admit(known)
        return list(known.values())

    def _admit(self, known: Mapping[tuple[str, int], Address]) -> None:
        """Let peers through whom we were told of, given with their addresses."""
        news = [self._site.resolved(peer, address[0]) for peer, address in known.items()]
        if any(news):
            self._session.set_ip_filter(self._site.filter())

    def _resolved(self, peer: tuple[str, int], address: Address) -> None:
        self._admit({peer: address})
        for torrent in self._torrents.values():
            if peer in torrent.names and address not in torrent.peers:
                torrent.dial([address])

    # Alerts.

    async def _start_listening(self) -> None:
        with trio.move_on_after(LISTEN_DEADLINE_S):
            while not self.listen[0]:
                await self._bell.wait()
                self._take_alerts()
            return
        raise ListenError(f"cannot listen on {self._settings.listen}")

    async def _pump(self) -> None:
        while True:
            self._take_alerts()
            await self._bell.wait()

    def _take_alerts(self) -> None:
        """Handle what libtorrent has to say; pieces of one batch are reported together."""
        arrived: dict[InfoHash, list[PieceIndex]] = {}
        here, self._here = self._here, []
        for info_hash, piece in here:
            arrived.setdefault(info_hash, []).append(piece)
        alerts = self._session.pop_alerts()
        self.alerts_most = max(self.alerts_most, len(alerts))
        for alert in alerts:
            if type(alert) is lt.piece_finished_alert:
                torrent, piece = self._torrent_of(alert), PieceIndex(alert.piece_index)
                # libtorrent also reports every piece that we claimed when the torrent was added.
                if torrent is not None and torrent.finished(piece):
                    arrived.setdefault(torrent.metainfo.info_hash, []).append(piece)
            elif handle := self._dispatch.get(type(alert)):
                handle(alert)
        for info_hash, pieces in arrived.items():
            self._events.pieces_arrived(info_hash, pieces)
        failing, self._failing = self._failing, {}
        for info_hash, reason in failing.items():
            self._events.disk_failed(info_hash, reason)

    def _torrent_of(self, alert: Any) -> Torrent | None:
        """Return whom *alert* is about; None if that was removed, be it to be added anew."""
        try:
            info_hash = InfoHash(alert.handle.info_hashes().v2.to_bytes())
        except RuntimeError:  # invalid torrent handle
            return None
        torrent = self._torrents.get(info_hash)
        return torrent if torrent is not None and torrent.handle == alert.handle else None

    def _on_state_changed(self, alert: Any) -> None:
        if alert.state == lt.torrent_status.checking_files and (torrent := self._torrent_of(alert)):
            log.warning("%s does not hold what was said: all of it is checked", torrent.file)
            torrent.is_doubted = True
            torrent.handle.resume()  # asleep it would not be checked

    def _on_torrent_checked(self, alert: Any) -> None:
        if torrent := self._torrent_of(alert):
            torrent.open()

    def _on_hash_failed(self, alert: Any) -> None:
        if torrent := self._torrent_of(alert):
            piece = PieceIndex(alert.piece_index)
            log.warning("piece %d of %s failed its hash", piece, torrent.metainfo.info_hash.hex())
            torrent.injected.pop(piece, None)
            self._events.piece_failed(torrent.metainfo.info_hash, piece)

    def _on_file_error(self, alert: Any) -> None:
        torrent = self._torrent_of(alert)
        if torrent is None or torrent.failed_at is not None:
            return
        reason = alert.error.message()
        if reason != torrent.failure:  # a full disk is one line, not one for each attempt
            log.error("%s: %s", torrent.file, reason)
        torrent.fail(reason)
        self._failing[torrent.metainfo.info_hash] = reason

    def _on_piece_availability(self, alert: Any) -> None:
        if torrent := self._torrent_of(alert):
            counts = alert.piece_availability
            torrent.avoid_end_game(counts)
            self._events.seen(torrent.metainfo.info_hash, counts)

    def _on_peer_ban(self, alert: Any) -> None:
        self.banned += 1
        log.warning("peer %s sent wrong bytes: it is banned", format_address(*_address(alert.endpoint)))

    def _on_tracker_error(self, alert: Any) -> None:
        """Log that a tracker fails, once until it answers again."""
        if alert.url not in self._silent_trackers:
            self._silent_trackers.add(alert.url)
            log.warning("tracker %s: %s", alert.url, alert.failure_reason() or alert.error_message())

    def _on_tracker_reply(self, alert: Any) -> None:
        self._silent_trackers.discard(alert.url)

    def _on_alerts_dropped(self, alert: Any) -> None:
        """Ask libtorrent what it has: pieces may have arrived, and peers come and gone, unseen."""
        log.warning("alerts were lost: the queue of %d was full", self._settings.alert_queue_max)
        for info_hash, torrent in self._torrents.items():
            news = torrent.look_again()
            self._here += [(info_hash, piece) for piece in news]
            self._events.peers_changed(info_hash, len(torrent.connected))
        self._dialled.set()
        self._bell.ring()

    def _on_peer_connect(self, alert: Any) -> None:
        torrent = self._torrent_of(alert)
        if torrent is None:
            return
        if INCOMING in alert.message():
            # It inherited TCP_NODELAY: a busy origin need not go through thousands of sockets each time.
            torrent.connected.add(_address(alert.endpoint))
            if not self._own:
                self._find_own(tune_sockets())
            self._events.peers_changed(torrent.metainfo.info_hash, len(torrent.connected))
        else:
            torrent.dialled.add(_address(alert.endpoint))
            self._dialled.set()

    def _on_peer_disconnected(self, alert: Any) -> None:
        torrent = self._torrent_of(alert)
        if torrent is None:
            return
        address = _address(alert.endpoint)
        torrent.dialled.discard(address)
        if address in torrent.connected:
            torrent.connected.remove(address)
            self._events.peers_changed(torrent.metainfo.info_hash, len(torrent.connected))

    async def _settle(self) -> None:
        """Set TCP_NODELAY on new connections, and tell those that are there from those that may never be."""
        pause = math.inf
        while True:
            with trio.move_on_after(pause) as scope:
                await self._dialled.wait()
            if not scope.cancelled_caught:
                self._dialled = trio.Event()
                pause = SETTLE_PAUSE_S[0]
            pause = min(2 * pause, SETTLE_PAUSE_S[1]) if self._settle_dialled() else math.inf

    def _settle_dialled(self) -> bool:
        """Sort what was dialled; return whether some of it is still neither connected nor given up."""
        far_ends = tune_sockets()
        self._find_own(far_ends)
        unsettled = False
        for torrent in [torrent for torrent in self._torrents.values() if torrent.dialled]:
            made = torrent.dialled & far_ends.keys()
            torrent.dialled -= made
            unsettled |= bool(torrent.dialled)
            if made:
                torrent.connected |= made
                self._events.peers_changed(torrent.metainfo.info_hash, len(torrent.connected))
        return unsettled

    def _find_own(self, far_ends: Mapping[Address, str]) -> None:
        """Take note of our address towards the site, an IPv4 one if there is any: all must name us alike."""
        own = {
            near for (far, _), near in far_ends.items() if self._site.is_bounded and self._site.is_within(far)
        }
        if own:
            self._own = min(own, key=lambda host: (":" in host, host))

    def _on_listen_succeeded(self, alert: Any) -> None:
        if alert.socket_type == lt.socket_type_t.tcp:
            # What we accept inherits TCP_NODELAY from here.
            tune_sockets()
            self.listen = (str(alert.address), alert.port)
            self._listens.add(self.listen)

    def _on_listen_failed(self, alert: Any) -> None:
        failure = f"cannot listen on {self._settings.listen}: {alert.error.message()}"
        if not self.listen[0]:
            raise ListenError(failure)
        log.error("%s", failure)

    def _on_session_stats(self, alert: Any) -> None:
        peers = {info_hash: len(torrent.connected) for info_hash, torrent in self._torrents.items()}
        self._counters.give(read_counters(alert.values, peers))

    async def _close(self) -> None:
        """End the session. Bounded: its destructor joins threads that may be at a slow disk."""
        self._torrents.clear()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_DEADLINE_S):
            await trio.to_thread.run_sync(self._destroy, abandon_on_cancel=True)
            # Not if that takes longer: the session would ring at whoever gets the descriptor next.
            self._bell.close()

    def _destroy(self) -> None:
        self._session = None


def _address(endpoint: tuple[str, int]) -> Address:
    return endpoint[0], endpoint[1]
