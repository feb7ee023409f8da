from itertools import pairwise

import pytest

from torrentfs.node.patience import RANKS_MAX, Delay, Hope, Patience, rank
from torrentfs.repository.metainfo import InfoHash, PieceIndex

TORRENT = InfoHash(bytes(32))
SITE = [f"192.0.2.{host}" for host in range(1, 9)]


def patience(**changes: float) -> Patience:
    return Patience(**{"hedge_max_s": 0.5, "spread_max_s": 0.25, "connect_grace_s": 0.15} | changes)


def test_a_delay_is_somewhat_more_than_nearly_all_of_the_last_times() -> None:
    delay = Delay(0.2, 0.01, 1.0)
    assert delay.seconds == 0.2

    for took in [0.1] * 63 + [0.9]:
        delay.took(took)

    assert delay.seconds == pytest.approx(0.15)


@pytest.mark.parametrize(("took", "seconds"), [(0.0001, 0.03), (30.0, 0.5)])
def test_a_delay_stays_within_its_bounds(took: float, seconds: float) -> None:
    delay = Delay(0.2, 0.03, 0.5)
    for _ in range(100):
        delay.took(took)

    assert delay.seconds == seconds


def test_a_first_delay_is_no_longer_than_the_longest() -> None:
    assert Delay(0.2, 0.01, 0.1).seconds == 0.1


def test_after_two_waits_in_vain_nobody_waits_for_a_while_that_grows() -> None:
    hope, now, ends = Hope(), 0.0, list[float]()
    for _ in range(8):
        while hope.is_up(now):
            hope.broken(now, now + 0.1)
            now += 0.2
        began = now
        while not hope.is_up(now):
            now += 0.1
        ends.append(now - began)

    assert all(later >= earlier - 0.11 for earlier, later in pairwise(ends))
    assert ends[0] < 1 < ends[-1] < 16


def test_one_wait_in_vain_is_no_reason_and_one_that_paid_makes_up_for_many() -> None:
    hope = Hope()
    hope.broken(0.0, 0.1)
    assert hope.is_up(0.2)
    hope.broken(0.2, 0.3)
    assert not hope.is_up(0.3)

    hope.kept()

    assert hope.is_up(0.3)


def test_waits_side_by_side_count_once() -> None:
    hope = Hope()
    for _ in range(16):
        hope.broken(0.0, 0.1)

    assert hope.is_up(0.1)


def test_the_neighbours_of_a_site_agree_whose_piece_it_is_and_share_evenly() -> None:
    pieces = [PieceIndex(piece) for piece in range(800)]
    owners = [
        [own for own in SITE if rank(TORRENT, piece, own, frozenset(SITE) - {own}) == 0] for piece in pieces
    ]

    assert {len(found) for found in owners} == {1}
    shares = [sum(found == [own] for found in owners) for own in SITE]
    assert min(shares) > 60, shares


def test_a_node_that_leaves_changes_nothing_for_what_was_not_its_turn() -> None:
    stay = frozenset(SITE[:-1])
    for piece in map(PieceIndex, range(200)):
        before = {own: rank(TORRENT, piece, own, frozenset(SITE) - {own}) for own in stay}
        after = {own: rank(TORRENT, piece, own, stay - {own}) for own in stay}
        gone = rank(TORRENT, piece, SITE[-1], stay)
        assert all(after[own] == before[own] - (before[own] > gone) for own in stay)


def test_who_is_alone_or_does_not_know_itself_waits_for_nobody() -> None:
    p = patience()
    for piece in map(PieceIndex, range(50)):
        assert p.spread_s(TORRENT, piece, SITE[0], frozenset(), 0.0) == 0
        assert p.spread_s(TORRENT, piece, "", frozenset(SITE), 0.0) == 0


def test_nobody_waits_for_a_neighbour_longer_than_the_setting_says() -> None:
    p = patience(spread_max_s=0.25)
    for _ in range(100):
        p.fetched(10.0)

    waits = {
        p.spread_s(TORRENT, PieceIndex(piece), own, frozenset(SITE) - {own}, 0.0)
        for piece in range(50)
        for own in SITE
    }

    assert waits == {0.0, 0.25, RANKS_MAX * 0.25}


def test_neighbours_that_fetch_nothing_are_not_waited_for() -> None:
    p = patience()
    piece = next(
        piece
        for piece in map(PieceIndex, range(50))
        if p.spread_s(TORRENT, piece, SITE[0], frozenset(SITE), 0.0)
    )
    for began in (0.0, 1.0):
        p.neighbours.broken(began, began + 0.5)

    assert p.spread_s(TORRENT, piece, SITE[0], frozenset(SITE), 1.6) == 0
