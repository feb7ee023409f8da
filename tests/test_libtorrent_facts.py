"""This module pins what the swarm relies on and libtorrent's manual does not promise.

A failure here after an upgrade says which assumption went away; sessions are bare, without our code between.
Two facts are not pinned, for they show in time alone: TCP_NODELAY takes a cold piece from 44 ms to 2, and
with pread's disk I/O 1–11 % of pieces are told of before their bytes can be read.
"""

import contextlib
import os
import queue
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import libtorrent as lt
import pytest

from torrentfs.config import SiteSettings, SwarmSettings
from torrentfs.node.session import open_session, session_settings, torrent_parameters
from torrentfs.node.site import Site
from torrentfs.node.sockets import tune_sockets
from torrentfs.node.swarm import INCOMING
from torrentfs.repository import bencode
from torrentfs.repository.metainfo import PIECE_LENGTH, Hasher, Metainfo

PIECES = 64
NO_SITE = Site(SiteSettings())
DEADLINE_S = 10
QUIET_S = 0.5
"""How long nothing must happen before we say that it does not."""


class Peer:
    """A session and the alerts that it gave."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self._alerts: deque[Any] = deque()
        self.session = open_session(SwarmSettings(), NO_SITE, "127.0.0.1", 0, self._theirs.fileno())
        self.port: int = self.until(lt.listen_succeeded_alert).port

    def add(self, metainfo: Metainfo, file: Path, have: list[bool], *peers: int, seed: bool = False) -> Any:
        parameters = torrent_parameters(
            metainfo, file, have, [("127.0.0.1", port) for port in peers], NO_SITE, seed=seed
        )
        handle = self.session.add_torrent(parameters)
        handle.resume()
        self.until(lt.torrent_checked_alert)
        return handle

    def until(self, kind: type, suits: Callable[[Any], bool] = lambda _: True) -> Any:
        alert = self.within(DEADLINE_S, kind, suits)
        assert alert is not None, f"no {kind.__name__}"
        return alert

    def within(self, seconds: float, kind: type, suits: Callable[[Any], bool] = lambda _: True) -> Any:
        """Return the first such alert; others are dropped. Waking up is by the descriptor alone."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            while self._alerts:
                alert = self._alerts.popleft()
                if isinstance(alert, lt.peer_connect_alert):
                    tune_sockets()
                if isinstance(alert, kind) and suits(alert):
                    return alert
            # What is popped here invalidates what was popped before: that is all dealt with by now.
            self._alerts.extend(self.session.pop_alerts())
            if self._alerts:
                continue
            self._ours.settimeout(left)
            try:
                self._ours.recv(4096)
            except TimeoutError:
                break
        return None


@pytest.fixture
def peers() -> Iterator[Callable[[], Peer]]:
    made: list[Peer] = []

    def make() -> Peer:
        made.append(Peer())
        return made[-1]

    yield make
    for peer in made:
        del peer.session


@pytest.fixture(scope="module")
def content() -> bytes:
    return random.Random(2).randbytes(PIECES * PIECE_LENGTH)


@pytest.fixture(scope="module")
def metainfo(content: bytes) -> Metainfo:
    hasher = Hasher()
    hasher.update(content)
    return hasher.finish(".tar.zst")


@pytest.fixture
def whole(content: bytes, tmp_path: Path) -> Path:
    file = tmp_path / "whole"
    file.write_bytes(content)
    return file


def part(content: bytes, piece: int) -> bytes:
    return content[piece * PIECE_LENGTH : (piece + 1) * PIECE_LENGTH]


def tcp_sockets(*ports: int) -> list[socket.socket]:
    """All TCP sockets of this process with one of *ports* at either end, duplicated."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            candidate = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        if candidate.family == socket.AF_INET and candidate.type == socket.SOCK_STREAM:
            ends = [candidate.getsockname()[1]]
            with contextlib.suppress(OSError):
                ends.append(candidate.getpeername()[1])
            if set(ends) & set(ports):
                found.append(candidate)
                continue
        candidate.close()
    return found


def test_settings_that_we_set_are_all_known(peers) -> None:
    settings = session_settings(SwarmSettings(), NO_SITE, "127.0.0.1", 0)

    unknown = settings.keys() - lt.default_settings().keys()

    assert unknown == set()
    taken = peers().session.get_settings()
    assert {name: taken[name] for name in settings if name != "listen_interfaces"} == {
        name: value for name, value in settings.items() if name != "listen_interfaces"
    }


def test_our_metainfo_is_loaded_with_the_info_hash_that_we_say(metainfo: Metainfo) -> None:
    parameters = lt.load_torrent_buffer(metainfo.torrent())

    assert parameters.ti.info_hashes().v2.to_bytes() == metainfo.info_hash
    assert not parameters.ti.info_hashes().has_v1()
    assert (parameters.ti.num_pieces(), parameters.ti.num_files()) == (PIECES, 1)


def test_bytes_are_in_the_file_when_a_piece_is_said_to_be_finished(
    peers, content: bytes, metainfo: Metainfo, whole: Path, tmp_path: Path
) -> None:
    seeder, leecher = peers(), peers()
    seeder.add(metainfo, whole, [True] * PIECES, seed=True)
    handle = leecher.add(metainfo, tmp_path / "cache", [False] * PIECES, seeder.port)

    handle.prioritize_pieces([(piece, 4) for piece in range(PIECES)])
    stale = []
    for _ in range(PIECES):
        piece = leecher.until(lt.piece_finished_alert).piece_index
        descriptor = os.open(tmp_path / "cache", os.O_RDONLY)
        if os.pread(descriptor, PIECE_LENGTH, piece * PIECE_LENGTH) != part(content, piece):
            stale.append(piece)
        os.close(descriptor)

    assert stale == []


def test_data_of_unwanted_files_goes_to_the_file_itself(
    peers, content: bytes, metainfo: Metainfo, tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir()
    peer = peers()
    handle = peer.add(metainfo, tmp_path / "cache" / "file", [False] * PIECES)

    handle.add_piece(3, part(content, 3), 0)
    peer.until(lt.piece_finished_alert)

    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["file"]
    status = (tmp_path / "cache" / "file").stat()
    assert status.st_size == 4 * PIECE_LENGTH
    assert status.st_blocks * 512 < 2 * PIECE_LENGTH


def test_added_piece_is_checked_against_its_hash(
    peers, content: bytes, metainfo: Metainfo, tmp_path: Path
) -> None:
    peer = peers()
    handle = peer.add(metainfo, tmp_path / "cache", [False] * PIECES)

    handle.add_piece(3, part(content, 4), 0)

    assert peer.until(lt.hash_failed_alert).piece_index == 3
    assert not handle.have_piece(3)


def test_added_piece_that_is_here_is_met_with_silence(
    peers, content: bytes, metainfo: Metainfo, whole: Path
) -> None:
    peer = peers()
    handle = peer.add(metainfo, whole, [True] * PIECES)
    peer.within(QUIET_S, lt.torrent_error_alert)

    handle.add_piece(3, part(content, 3), 0)

    assert peer.within(QUIET_S, (lt.piece_finished_alert, lt.hash_failed_alert)) is None


def test_claims_are_believed_even_if_they_are_wrong(peers, metainfo: Metainfo, tmp_path: Path) -> None:
    hole = tmp_path / "hole"
    with hole.open("wb") as file:
        file.truncate(metainfo.length)

    handle = peers().add(metainfo, hole, [True] * PIECES)

    assert all(handle.status(lt.torrent_handle.query_pieces).pieces)


def test_claims_past_the_end_of_the_file_make_it_check_all_of_it(
    peers, content: bytes, metainfo: Metainfo, tmp_path: Path
) -> None:
    short = tmp_path / "short"
    short.write_bytes(part(content, 0) + bytes(PIECE_LENGTH))

    handle = peers().add(metainfo, short, [True] * PIECES)

    assert list(handle.status(lt.torrent_handle.query_pieces).pieces)[:3] == [True, False, False]


def test_claimed_pieces_are_reported_as_finished(peers, metainfo: Metainfo, whole: Path) -> None:
    peer = peers()

    peer.session.add_torrent(
        torrent_parameters(metainfo, whole, [True] * 3 + [False] * 61, [], NO_SITE, seed=False)
    )

    assert {peer.until(lt.piece_finished_alert).piece_index for _ in range(3)} == {0, 1, 2}


def test_full_check_waits_for_the_torrent_to_be_resumed(
    peers, content: bytes, metainfo: Metainfo, tmp_path: Path
) -> None:
    (tmp_path / "short").write_bytes(part(content, 0))
    peer = peers()
    parameters = torrent_parameters(metainfo, tmp_path / "short", [True] * PIECES, [], NO_SITE, seed=False)
    handle = peer.session.add_torrent(parameters)
    peer.until(lt.state_changed_alert, lambda alert: alert.state == lt.torrent_status.checking_files)
    assert peer.within(QUIET_S, lt.torrent_checked_alert) is None

    handle.resume()

    assert peer.until(lt.torrent_checked_alert)


def test_torrent_that_is_believed_is_checked_while_it_is_paused(
    peers, metainfo: Metainfo, tmp_path: Path
) -> None:
    peer = peers()
    parameters = torrent_parameters(metainfo, tmp_path / "cache", [False] * PIECES, [], NO_SITE, seed=False)

    peer.session.add_torrent(parameters)

    assert peer.until(lt.torrent_checked_alert)


def test_removed_torrent_can_be_added_again_at_once(peers, metainfo: Metainfo, whole: Path) -> None:
    peer = peers()
    handle = peer.add(metainfo, whole, [True] * PIECES)

    peer.session.remove_torrent(handle)
    again = peer.session.add_torrent(
        torrent_parameters(metainfo, whole, [True] * PIECES, [], NO_SITE, seed=False)
    )

    assert again != handle
    assert again.is_valid()


def test_every_tcp_socket_has_nodelay_once_they_are_tuned(
    peers, metainfo: Metainfo, whole: Path, tmp_path: Path
) -> None:
    seeder, leecher = peers(), peers()
    tune_sockets()  # the listening ones
    seeder.add(metainfo, whole, [True] * PIECES, seed=True)
    leecher.add(metainfo, tmp_path / "cache", [False] * PIECES, seeder.port)

    leecher.until(lt.peer_connect_alert)
    seeder.until(lt.peer_connect_alert)
    sockets = tcp_sockets(seeder.port, leecher.port)

    # Two that listen, and both ends of a connection.
    assert len(sockets) == 4
    assert all(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in sockets)
    for one in sockets:
        one.close()


def test_accepted_sockets_inherit_nodelay_from_the_listening_one() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        tune_sockets()

        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_alerts_tell_who_dialled_in_their_message_only(
    peers, metainfo: Metainfo, whole: Path, tmp_path: Path
) -> None:
    seeder, leecher = peers(), peers()
    seeder.add(metainfo, whole, [True] * PIECES, seed=True)
    leecher.add(metainfo, tmp_path / "cache", [False] * PIECES, seeder.port)

    assert INCOMING in seeder.until(lt.peer_connect_alert).message()
    assert INCOMING not in leecher.until(lt.peer_connect_alert).message()


def test_libtorrent_does_not_set_nodelay_itself(peers) -> None:
    sockets = tcp_sockets(peers().port)

    assert [one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in sockets] == [0]
    for one in sockets:
        one.close()


def test_leecher_that_wants_nothing_stays_connected(
    peers, metainfo: Metainfo, whole: Path, tmp_path: Path
) -> None:
    seeder, leecher = peers(), peers()
    seeder.add(metainfo, whole, [True] * PIECES, seed=True)

    leecher.add(metainfo, tmp_path / "cache", [False] * PIECES, seeder.port)

    assert leecher.within(2.0, lt.peer_disconnected_alert) is None


def test_dial_is_reported_when_it_begins(peers, metainfo: Metainfo, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        leecher = peers()
        leecher.add(metainfo, tmp_path / "cache", [False] * PIECES, closed.getsockname()[1])

        assert leecher.until(lt.peer_connect_alert)
        assert "refused" in leecher.until(lt.peer_disconnected_alert).error.message()


def test_bad_bytes_on_a_seeders_disk_do_not_get_out(
    peers, content: bytes, metainfo: Metainfo, tmp_path: Path
) -> None:
    rotten = tmp_path / "rotten"
    rotten.write_bytes(part(content, 0) + bytes(PIECE_LENGTH) + content[2 * PIECE_LENGTH :])
    seeder, leecher = peers(), peers()
    seeder.add(metainfo, rotten, [True] * PIECES, seed=True)
    handle = leecher.add(metainfo, tmp_path / "cache", [False] * PIECES, seeder.port)

    handle.prioritize_pieces([(0, 4), (1, 4)])
    first = leecher.until((lt.piece_finished_alert, lt.hash_failed_alert))

    assert (type(first), first.piece_index) == (lt.piece_finished_alert, 0)
    assert leecher.within(QUIET_S, (lt.piece_finished_alert, lt.hash_failed_alert)) is None


def test_metainfo_of_others_may_name_trackers_and_web_seeds_which_ours_drops(metainfo: Metainfo) -> None:
    parts = bencode.split(metainfo.torrent())
    lying = bencode.join(
        {
            **parts,
            b"announce": bencode.encode(b"http://evil.invalid"),
            b"url-list": bencode.encode(b"http://evil.invalid"),
        }
    )

    assert lt.load_torrent_buffer(lying).trackers
    assert not lt.load_torrent_buffer(metainfo.torrent()).trackers
    assert not lt.load_torrent_buffer(metainfo.torrent()).url_seeds


# Trackers.

FOREVER_S = 900


class TrackerStub:
    """A tracker that tells everyone the same peers, and keeps what it is asked."""

    def __init__(self, *peers: int, answer: bytes | None = None) -> None:
        packed = b"".join(socket.inet_aton("127.0.0.1") + port.to_bytes(2) for port in peers)
        told = bencode.encode({b"interval": FOREVER_S, b"peers": packed})
        self.asked: queue.Queue[dict[bytes, bytes]] = queue.Queue()
        self._answer = told if answer is None else answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/announce"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                with self._socket.accept()[0] as client:
                    query = client.recv(4096).split(b" ")[1].partition(b"?")[2]
                    fields = (field.partition(b"=") for field in query.split(b"&"))
                    self.asked.put({name: value for name, _, value in fields})
                    client.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + self._answer)

    def event(self) -> bytes:
        """Return the event of the next announce."""
        return self.asked.get(timeout=DEADLINE_S).get(b"event", b"")

    def is_left_alone(self) -> bool:
        try:
            self.asked.get(timeout=QUIET_S)
        except queue.Empty:
            return True
        return False

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def trackers(peers: Callable[[], Peer]) -> Iterator[Callable[..., TrackerStub]]:
    made: list[TrackerStub] = []

    def make(*peers: int, answer: bytes | None = None) -> TrackerStub:
        made.append(TrackerStub(*peers, answer=answer))
        return made[-1]

    yield make
    # Before the sessions end: they hold the GIL while they wait for their trackers, threads of ours.
    for tracker in made:
        tracker.close()


def add_tracked(
    peer: Peer,
    metainfo: Metainfo,
    file: Path,
    *urls: str,
    want: bool = True,
    own: Sequence[tuple[str, int]] = (),
    **settings: Any,
) -> Any:
    """Take up a torrent that is told of trackers at *urls*, one a tier."""
    category = lt.alert.category_t.tracker_notification
    settings["alert_mask"] = peer.session.get_settings()["alert_mask"] | int(category)
    peer.session.apply_settings(settings)
    parameters = torrent_parameters(metainfo, file, [False] * PIECES, [], NO_SITE, own, seed=False)
    parameters.trackers = list(urls)
    parameters.tracker_tiers = list(range(len(urls)))
    handle = peer.session.add_torrent(parameters)
    peer.until(lt.torrent_checked_alert)
    if want:
        handle.piece_priority(3, 7)
    handle.resume()
    return handle


def test_tracker_is_asked_for_the_first_20_bytes_of_a_v2_info_hash(
    peers, trackers, metainfo: Metainfo, tmp_path: Path
) -> None:
    peer, tracker = peers(), trackers()

    add_tracked(peer, metainfo, tmp_path / "cache", tracker.url)
    asked = tracker.asked.get(timeout=DEADLINE_S)

    assert unquote_to_bytes(asked[b"info_hash"]) == metainfo.info_hash[:20]
    assert (int(asked[b"port"]), asked[b"compact"]) == (peer.port, b"1")
    assert not {b"ip", b"ipv4", b"ipv6"} & asked.keys()


def test_who_wants_something_before_it_announces_is_started_and_at_its_end_stopped(
    peers, trackers, metainfo: Metainfo, tmp_path: Path
) -> None:
    peer, tracker = peers(), trackers()
    handle = add_tracked(peer, metainfo, tmp_path / "cache", tracker.url, stop_tracker_timeout=5)
    peer.until(lt.tracker_reply_alert)

    peer.session.remove_torrent(handle)

    assert [tracker.event(), tracker.event()] == [b"started", b"stopped"]


def test_who_wants_nothing_when_it_announces_is_paused_and_never_stopped(
    peers, trackers, metainfo: Metainfo, tmp_path: Path
) -> None:
    peer, tracker = peers(), trackers()
    handle = add_tracked(peer, metainfo, tmp_path / "cache", tracker.url, want=False, stop_tracker_timeout=5)
    peer.until(lt.tracker_reply_alert)
    handle.piece_priority(3, 7)

    peer.session.remove_torrent(handle)

    assert tracker.event() == b"paused"
    assert tracker.is_left_alone()


def test_pause_and_resume_at_once_leave_the_tracker_with_stopped_until_it_is_asked_for(
    peers, trackers, metainfo: Metainfo, tmp_path: Path
) -> None:
    peer, tracker = peers(), trackers()
    handle = add_tracked(peer, metainfo, tmp_path / "cache", tracker.url, stop_tracker_timeout=5)
    peer.until(lt.tracker_reply_alert)

    handle.pause()
    handle.resume()
    peer.until(lt.tracker_reply_alert)
    events = [tracker.event(), tracker.event()]
    alone = tracker.is_left_alone()
    # Within a second; together with the pause it would have no effect.
    handle.force_reannounce(0, -1, lt.reannounce_flags_t.ignore_min_interval)

    assert (events, alone) == ([b"started", b"stopped"], True)
    assert tracker.event() in (b"started", b"paused")


def test_without_time_for_stopping_no_tracker_is_told_and_a_resumed_torrent_starts_anew(
    peers, trackers, metainfo: Metainfo, tmp_path: Path
) -> None:
    peer, tracker = peers(), trackers()
    handle = add_tracked(peer, metainfo, tmp_path / "cache", tracker.url, stop_tracker_timeout=0)
    peer.until(lt.tracker_reply_alert)

    handle.pause()
    handle.resume()
    events = [tracker.event(), tracker.event()]
    peer.session.remove_torrent(handle)

    assert events == [b"started", b"started"]
    assert tracker.is_left_alone()


def test_peers_that_a_tracker_tells_are_dialled(
    peers, trackers, metainfo: Metainfo, whole: Path, tmp_path: Path
) -> None:
    seeder, leecher = peers(), peers()
    seeder.add(metainfo, whole, [True] * PIECES, seed=True)

    add_tracked(leecher, metainfo, tmp_path / "cache", trackers(seeder.port).url)

    assert leecher.until(lt.piece_finished_alert).piece_index == 3


@pytest.mark.parametrize("told", [True, False])
def test_who_is_told_of_itself_dials_itself_unless_its_address_is_banned(
    peers, trackers, metainfo: Metainfo, tmp_path: Path, told: bool
) -> None:
    peer = peers()
    other = peers()
    other.add(metainfo, tmp_path / "other", [False] * PIECES)
    own = () if told else [("127.0.0.1", peer.port)]

    add_tracked(peer, metainfo, tmp_path / "cache", trackers(peer.port, other.port).url, own=own)
    dialled = {peer.until(lt.peer_connect_alert).endpoint[1] for _ in range(2 if told else 1)}

    assert dialled >= ({peer.port} if told else {other.port})
    assert told or peer.port not in dialled


@pytest.mark.parametrize(
    ("settings", "both"),
    [
        ({"announce_to_all_trackers": False, "announce_to_all_tiers": False}, False),
        # With one tracker in each tier it is the other one that counts: their names are the wrong way round.
        ({"announce_to_all_trackers": False, "announce_to_all_tiers": True}, False),
        ({"announce_to_all_trackers": True, "announce_to_all_tiers": True}, True),
    ],
)
def test_second_tracker_is_asked_beside_one_that_answers_only_with_both_settings(
    peers, trackers, metainfo: Metainfo, tmp_path: Path, settings: dict[str, bool], both: bool
) -> None:
    first, second = trackers(), trackers()

    add_tracked(peers(), metainfo, tmp_path / "cache", first.url, second.url, **settings)

    assert first.event() == b"started"
    assert second.is_left_alone() is not both


def test_tracker_that_refuses_makes_the_next_be_asked(
    peers, trackers, metainfo: Metainfo, tmp_path: Path
) -> None:
    refusing = trackers(answer=bencode.encode({b"failure reason": b"no such torrent"}))
    peer, second = peers(), trackers()

    add_tracked(peer, metainfo, tmp_path / "cache", refusing.url, second.url)

    assert "no such torrent" in peer.until(lt.tracker_error_alert).message()
    assert second.event() == b"started"


@pytest.mark.parametrize("flagged", [False, True])
def test_filter_of_addresses_holds_for_torrents_with_its_flag_only_and_for_their_trackers(
    peers, trackers, metainfo: Metainfo, whole: Path, tmp_path: Path, flagged: bool
) -> None:
    seeder, leecher = peers(), peers()
    seeder.add(metainfo, whole, [True] * PIECES, seed=True)
    shut = lt.ip_filter()
    shut.add_rule("127.0.0.0", "127.255.255.255", 1)
    leecher.session.set_ip_filter(shut)
    tracker = trackers()
    parameters = torrent_parameters(
        metainfo, tmp_path / "cache", [False] * PIECES, [("127.0.0.1", seeder.port)], NO_SITE, seed=False
    )
    parameters.trackers = [tracker.url]
    parameters.flags &= ~lt.torrent_flags.apply_ip_filter
    if flagged:
        parameters.flags |= lt.torrent_flags.apply_ip_filter

    leecher.session.add_torrent(parameters).resume()

    assert (leecher.within(QUIET_S, lt.peer_connect_alert) is None) is flagged
    assert tracker.is_left_alone() is flagged
