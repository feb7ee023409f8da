from fakes import Published
from hypothesis import given, settings
from hypothesis import strategies as st

from torrentfs.node.flights import MIRRORS_MAX, PEERS_MAX, Torrent, runs
from torrentfs.node.held import Held
from torrentfs.node.mirrors import Mirror
from torrentfs.repository.metainfo import PIECE_LENGTH

PIECES = st.sets(st.integers(0, 40))


@settings(deadline=None)
@given(PIECES, PIECES, st.integers(1, 16))
def test_every_piece_is_in_one_run_of_neighbours(urgent: set[int], others: set[int], length_max: int) -> None:
    found = list(runs(urgent, others - urgent, length_max))  # type: ignore[arg-type]

    assert sorted(piece for run in found for piece in run) == sorted(urgent | others)
    for run in found:
        assert 1 <= len(run) <= length_max
        assert run == list(range(run[0], run[0] + len(run)))


@settings(deadline=None)
@given(PIECES, PIECES, st.integers(1, 16))
def test_runs_with_urgent_pieces_begin_with_one_and_come_first(
    urgent: set[int], others: set[int], length_max: int
) -> None:
    found = list(runs(urgent, others - urgent, length_max))  # type: ignore[arg-type]

    begins = [run[0] in urgent for run in found]
    assert begins == sorted(begins, reverse=True)
    assert not any(urgent & set(run) for run, begin in zip(found, begins, strict=True) if not begin)


def test_the_sources_of_a_torrent_are_bounded() -> None:
    pack = Published.of(b"x")
    torrent = Torrent(pack.metainfo, Held(pack.ref, PIECE_LENGTH, 1), readahead_pieces_max=0)
    mirrors = [Mirror(f"file:///{n}", requests_max=1, timeout_s=1.0) for n in range(MIRRORS_MAX + 1)]

    new = torrent.learn(mirrors, [("127.0.0.1", port) for port in range(PEERS_MAX + 5)])

    assert len(torrent.mirrors) == MIRRORS_MAX
    assert len(new) == len(torrent.peers) == PEERS_MAX
    assert not torrent.learn([], [("127.0.0.1", 1), ("127.0.0.2", 1)])
