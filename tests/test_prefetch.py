import random

from hypothesis import given, settings
from hypothesis import strategies as st

from torrentfs.node.prefetch import CREDIT_MAX, STREAMS_MAX, WINDOW_TREE_MAX, Prefetch

PIECE = 256 * 1024
COUNT = 4096
READS = st.lists(st.tuples(st.integers(0, COUNT * PIECE - 1), st.integers(1, 1 << 20)), max_size=60)


def asked(prefetch: Prefetch, reads: list[tuple[int, int]]) -> list[int]:
    return [piece for offset, length in reads for piece in prefetch.touch(offset, length)]


def scan(start: int, end: int, step: int) -> list[tuple[int, int]]:
    return [(offset, min(step, end - offset)) for offset in range(start, end, step)]


@settings(deadline=None)
@given(READS)
def test_pieces_asked_for_are_of_the_torrent_and_ahead_of_the_read(reads: list[tuple[int, int]]) -> None:
    prefetch = Prefetch(PIECE, COUNT, 32)

    for offset, length in reads:
        read = min(length, COUNT * PIECE - offset)
        ahead = prefetch.touch(offset, read)

        assert all((offset + read - 1) // PIECE < piece < COUNT for piece in ahead)
        assert len(ahead) <= 32


@settings(deadline=None)
@given(st.integers(0, COUNT * PIECE - 1), st.integers(1, 1 << 20))
def test_the_same_read_again_asks_for_nothing(offset: int, length: int) -> None:
    prefetch = Prefetch(PIECE, COUNT, 32)
    length = min(length, COUNT * PIECE - offset)
    prefetch.touch(offset, length)

    assert not prefetch.touch(offset, length)


@settings(deadline=None)
@given(st.integers(30_000, 400_000), st.integers(0, 1000))
def test_a_scan_asks_for_each_piece_but_the_first_once_and_in_time(step: int, start_piece: int) -> None:
    prefetch = Prefetch(PIECE, COUNT, 32)
    end = (start_piece + 200) * PIECE
    seen: list[int] = []
    late = []

    for offset, length in scan(start_piece * PIECE, end, step):
        last = (offset + length - 1) // PIECE
        if offset > (start_piece + 8) * PIECE and last not in seen:
            late.append(last)
        seen += prefetch.touch(offset, length)

    assert not late
    assert len(seen) == len(set(seen))


def test_a_scan_grows_its_window_to_16_and_a_long_one_to_32() -> None:
    prefetch = Prefetch(PIECE, COUNT, 32)

    short = max(
        max(prefetch.touch(o, n), default=0) - (o + n - 1) // PIECE for o, n in scan(0, 40 * PIECE, PIECE)
    )
    long = max(
        max(prefetch.touch(o, n), default=0) - (o + n - 1) // PIECE
        for o, n in scan(40 * PIECE, 200 * PIECE, PIECE)
    )

    assert (short, long) == (WINDOW_TREE_MAX, 32)


def test_random_reads_fetch_next_to_nothing_extra() -> None:
    prefetch = Prefetch(PIECE, COUNT, 32)
    dice = random.Random(1)
    reads = [(dice.randrange(COUNT) * PIECE + 5, 4096) for _ in range(1000)]

    each = [len(prefetch.touch(offset, length)) for offset, length in reads]

    assert max(each) <= 1
    assert sum(each) < 20


def test_jumps_to_neighbouring_places_get_the_next_piece_as_a_guess() -> None:
    prefetch = Prefetch(PIECE, COUNT, 32)
    reads = [(place * 20 * PIECE + part, 150_000) for place in range(50) for part in (0, 200_000)]

    pieces = set(asked(prefetch, reads))

    assert {place * 20 + 1 for place in range(1, 50)} <= pieces


def test_guesses_are_earned_and_end_when_none_of_them_is_right() -> None:
    prefetch = Prefetch(PIECE, COUNT, 32)
    jumps = [(place * 20 * PIECE, 4096) for place in range(100)]

    assert not asked(prefetch, jumps)
    asked(prefetch, scan(3000 * PIECE, 3020 * PIECE, 100_000))
    assert len(asked(prefetch, jumps)) == CREDIT_MAX


def test_a_small_file_here_and_there_widens_nothing() -> None:
    prefetch = Prefetch(PIECE, COUNT, 32)
    reads = [(index * 200_000, 60_000) for index in range(100)]

    widest = max(max(prefetch.touch(o, n), default=0) - (o + n - 1) // PIECE for o, n in reads)

    assert widest == 1


def test_several_scans_side_by_side_each_get_their_window() -> None:
    prefetch = Prefetch(PIECE, COUNT, 32)
    scans = [scan(k * 500 * PIECE, (k * 500 + 100) * PIECE, 100_000) for k in range(STREAMS_MAX)]

    pieces = {piece for step in zip(*scans, strict=True) for piece in asked(prefetch, list(step))}

    for k in range(STREAMS_MAX):
        assert set(range(k * 500 + 3, k * 500 + 100)) <= pieces


def test_reads_out_of_order_within_a_piece_are_one_scan() -> None:
    prefetch = Prefetch(PIECE, COUNT, 32)
    reads = scan(0, 100 * PIECE, 100_000)
    for index in range(0, len(reads) - 1, 2):
        reads[index], reads[index + 1] = reads[index + 1], reads[index]

    pieces = asked(prefetch, reads)

    assert set(range(3, 100)) <= set(pieces)
    assert len(pieces) == len(set(pieces))


def test_no_readahead_when_it_is_turned_off() -> None:
    assert not asked(Prefetch(PIECE, COUNT, 0), scan(0, 20 * PIECE, PIECE))


def test_the_last_pieces_of_a_torrent_are_asked_for() -> None:
    prefetch = Prefetch(PIECE, 21, 32)

    assert 20 in asked(prefetch, scan(0, 20 * PIECE, PIECE))
