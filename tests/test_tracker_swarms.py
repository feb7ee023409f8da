"""Tests of the tracker's tables, by themselves and beside a model of what they should hold."""

import random
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from torrentfs.config import TrackerSettings
from torrentfs.http.announce import Announce, Endpoint, Event, TorrentKey, UnknownTorrentError
from torrentfs.http.swarms import LIFE_INTERVALS, Swarms

A, B, C = (TorrentKey(bytes([number] * 20)) for number in range(3))
SETTINGS = TrackerSettings(interval_s=100)
LIFE_S = LIFE_INTERVALS * SETTINGS.interval_s
SEEDER = Endpoint(b"\x0a\0\0\xff\x1a\xe1")


def address(number: int) -> bytes:
    return b"\x0a\0" + number.to_bytes(2)


def endpoint(number: int, port: int = 6881) -> Endpoint:
    return Endpoint(address(number) + port.to_bytes(2))


def ask(
    torrent: TorrentKey = A,
    *,
    port: int = 6881,
    event: Event = Event.NONE,
    complete: bool = False,
    wanted: int | None = None,
    peer_id: bytes = b"one",
) -> Announce:
    return Announce(torrent, port, peer_id, event, complete, wanted)


def following(**limits: int) -> Swarms:
    swarms = Swarms(msgspec.structs.replace(SETTINGS, **limits), random.Random(1))
    swarms.follow([A, B], [])
    return swarms


@pytest.fixture
def swarms() -> Iterator[Swarms]:
    return following()


def test_second_of_two_is_told_of_the_first(swarms: Swarms) -> None:
    first = swarms.announce(ask(), address(1), 0)
    second = swarms.announce(ask(), address(2), 0)

    assert (first, second) == ([], [endpoint(1)])


def test_torrents_are_apart(swarms: Swarms) -> None:
    swarms.announce(ask(A), address(1), 0)

    assert swarms.announce(ask(B), address(2), 0) == []


def test_torrent_that_is_not_followed_is_refused(swarms: Swarms) -> None:
    with pytest.raises(UnknownTorrentError):
        swarms.announce(ask(C), address(1), 0)
    with pytest.raises(UnknownTorrentError):
        swarms.census(C, 0)


def test_torrent_that_is_no_longer_followed_is_forgotten_with_its_peers(swarms: Swarms) -> None:
    swarms.announce(ask(A), address(1), 0)
    swarms.announce(ask(B), address(1), 0)

    swarms.follow([B], [])

    assert (swarms.peer_count, swarms.torrent_count, swarms.address_count) == (1, 1, 1)
    with pytest.raises(UnknownTorrentError):
        swarms.announce(ask(A), address(1), 0)


def test_kinds_of_address_are_apart(swarms: Swarms) -> None:
    swarms.announce(ask(), address(1), 0)
    swarms.announce(ask(), bytes(16), 0)

    assert swarms.announce(ask(), address(2), 0) == [endpoint(1)]
    assert swarms.announce(ask(), bytes(15) + b"\2", 0) == [bytes(16) + b"\x1a\xe1"]


def test_sessions_of_one_host_are_told_of_each_other(swarms: Swarms) -> None:
    swarms.announce(ask(port=1), address(1), 0)

    assert swarms.announce(ask(port=2), address(1), 0) == [endpoint(1, 1)]


def test_who_is_silent_for_too_long_is_forgotten(swarms: Swarms) -> None:
    swarms.announce(ask(), address(1), 0)
    swarms.announce(ask(), address(2), 1)

    assert swarms.announce(ask(), address(3), LIFE_S) == [endpoint(2)]
    assert swarms.peer_count == 2


def test_announcing_again_counts_from_then(swarms: Swarms) -> None:
    swarms.announce(ask(), address(1), 0)
    swarms.announce(ask(), address(1), SETTINGS.interval_s)

    assert swarms.announce(ask(), address(2), LIFE_S + 1) == [endpoint(1)]
    assert swarms.peer_count == 2


def test_who_stops_is_forgotten_and_told_nothing(swarms: Swarms) -> None:
    swarms.announce(ask(), address(1), 0)
    swarms.announce(ask(), address(2), 0)

    assert swarms.announce(ask(event=Event.STOPPED), address(1), 0) == []
    assert swarms.announce(ask(), address(3), 0) == [endpoint(2)]


def test_stopping_without_having_come_is_nothing(swarms: Swarms) -> None:
    assert swarms.announce(ask(event=Event.STOPPED), address(1), 0) == []
    assert swarms.peer_count == 0


def test_end_of_a_torrent_that_was_added_anew_meanwhile_is_not_that_ones(swarms: Swarms) -> None:
    swarms.announce(ask(peer_id=b"one"), address(1), 0)
    swarms.announce(ask(peer_id=b"another"), address(1), 0)

    swarms.announce(ask(peer_id=b"one", event=Event.STOPPED), address(1), 0)

    assert swarms.peer_count == 1


def test_who_has_everything_is_not_told_of_others_who_do(swarms: Swarms) -> None:
    swarms.follow([A, B], [A])
    swarms.announce(ask(complete=True), address(1), 0, SEEDER)
    swarms.announce(ask(), address(2), 0, SEEDER)

    assert swarms.announce(ask(complete=True), address(3), 0, SEEDER) == [endpoint(2)]


def test_seeder_itself_comes_first_for_what_it_has(swarms: Swarms) -> None:
    swarms.follow([A, B], [A])
    for number in range(100):
        swarms.announce(ask(), address(number), 0, SEEDER)

    assert swarms.announce(ask(wanted=1), address(100), 0, SEEDER) == [SEEDER]
    assert swarms.announce(ask(wanted=0), address(100), 0, SEEDER) == []
    assert swarms.announce(ask(B), address(100), 0, SEEDER) == []
    assert swarms.announce(ask(), address(100), 0, None) != []


def test_answer_is_bounded_and_another_each_time() -> None:
    swarms = following(answer_peers_max=10)
    for number in range(100):
        swarms.announce(ask(), address(number), 0)

    answers = [swarms.announce(ask(wanted=wanted), address(100), 0) for wanted in (None, 10**9, 200)]

    assert [len(set(answer)) for answer in answers] == [10, 10, 10]
    assert len(set().union(*answers)) > 10


def test_census_counts_us_too(swarms: Swarms) -> None:
    swarms.follow([A, B], [A])
    swarms.announce(ask(complete=True), address(1), 0)
    swarms.announce(ask(), address(2), 0)
    swarms.announce(ask(event=Event.COMPLETED, complete=True), address(3), 0)

    census = swarms.census(A, 0)

    assert (census.complete, census.incomplete, census.downloaded) == (3, 1, 1)


def test_full_torrent_forgets_whom_it_heard_of_longest_ago() -> None:
    swarms = following(torrent_peers_max=2)
    for number in (1, 2, 1, 3):
        swarms.announce(ask(), address(number), 0)

    assert set(swarms.announce(ask(), address(1), 0)) == {endpoint(3)}


def test_one_address_pushes_out_nobody_else() -> None:
    swarms = following(torrent_peers_max=10, address_peers_max=3)
    swarms.announce(ask(), address(1), 0)

    for port in range(1, 1000):
        swarms.announce(ask(port=port), address(2), 0)

    assert set(swarms.announce(ask(), address(3), 0)) == {
        endpoint(1),
        *(endpoint(2, port) for port in (997, 998, 999)),
    }


def test_all_together_are_bounded() -> None:
    swarms = following(peers_max=2)
    for number, torrent in ((1, A), (2, B), (3, A)):
        swarms.announce(ask(torrent), address(number), 0)

    assert swarms.peer_count == 2
    assert swarms.announce(ask(A), address(4), 0) == [endpoint(3)]


class Beside(RuleBasedStateMachine):
    """Tables of any history, beside a list of who announced what, and when."""

    @initialize(
        total=st.integers(1, 12), torrent=st.integers(1, 6), host=st.integers(1, 6), answer=st.integers(1, 5)
    )
    def start(self, total: int, torrent: int, host: int, answer: int) -> None:
        self.limits = msgspec.structs.replace(
            SETTINGS,
            peers_max=total,
            torrent_peers_max=torrent,
            address_peers_max=host,
            answer_peers_max=answer,
        )
        self.swarms = Swarms(self.limits, random.Random(0))
        self.known: set[TorrentKey] = set()
        self.now = 0.0
        self.heard: list[tuple[TorrentKey, Endpoint, float, bytes]] = []
        """Oldest first, each torrent and endpoint once."""

    def forget(self, torrent: TorrentKey, peer: Endpoint) -> None:
        self.heard = [one for one in self.heard if one[:2] != (torrent, peer)]

    def pop_oldest(self, count: int, *, torrent: TorrentKey | None = None, host: bytes | None = None) -> None:
        suiting = [one for one in self.heard if torrent in (None, one[0]) and host in (None, one[1][:4])]
        for one in suiting[: max(len(suiting) - count, 0)]:
            self.heard.remove(one)

    @rule(torrents=st.sets(st.sampled_from([A, B, C])), ours=st.sets(st.sampled_from([A, B, C])))
    def follow(self, torrents: set[TorrentKey], ours: set[TorrentKey]) -> None:
        self.swarms.follow(torrents, ours)
        self.known = torrents
        self.heard = [one for one in self.heard if one[0] in torrents]

    @rule(seconds=st.sampled_from([0.0, 1.0, 60.0, LIFE_S]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.heard = [one for one in self.heard if one[2] + LIFE_S > self.now]

    @rule(
        torrent=st.sampled_from([A, B, C]),
        host=st.integers(1, 3),
        port=st.integers(1, 3),
        event=st.sampled_from(Event),
        complete=st.booleans(),
        wanted=st.none() | st.integers(0, 9),
        peer_id=st.sampled_from([b"one", b"two"]),
    )
    def announce(
        self,
        torrent: TorrentKey,
        host: int,
        port: int,
        event: Event,
        complete: bool,
        wanted: int | None,
        peer_id: bytes,
    ) -> None:
        me = endpoint(host, port)
        request = ask(torrent, port=port, event=event, complete=complete, wanted=wanted, peer_id=peer_id)
        if torrent not in self.known:
            with pytest.raises(UnknownTorrentError):
                self.swarms.announce(request, address(host), self.now, SEEDER)
            return

        answer = self.swarms.announce(request, address(host), self.now, SEEDER)

        if event is Event.STOPPED:
            assert answer == []
            self.heard = [one for one in self.heard if one[:2] != (torrent, me) or one[3] != peer_id]
            return
        self.forget(torrent, me)
        self.pop_oldest(self.limits.address_peers_max - 1, host=address(host))
        self.pop_oldest(self.limits.torrent_peers_max - 1, torrent=torrent)
        self.pop_oldest(self.limits.peers_max - 1)
        self.heard.append((torrent, me, self.now, peer_id))
        assert len(answer) <= min(self.limits.answer_peers_max, 9 if wanted is None else wanted)
        assert len(set(answer)) == len(answer)
        assert me not in answer
        assert set(answer) <= {one[1] for one in self.heard if one[0] == torrent} | {SEEDER}

    @invariant()
    def tables_hold_what_was_heard(self) -> None:
        for torrent in self.known:
            census = self.swarms.census(torrent, self.now)
            listed = [one for one in self.heard if one[0] == torrent]
            assert census.complete + census.incomplete - len(listed) in (0, 1)
        assert self.swarms.peer_count == len(self.heard) or not self.known
        assert self.swarms.address_count == len({one[1][:4] for one in self.heard}) or not self.known


TestBeside = Beside.TestCase
TestBeside.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
