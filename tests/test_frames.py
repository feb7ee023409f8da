from hypothesis import given, settings
from hypothesis import strategies as st

from torrentfs.node.frames import FrameCache
from torrentfs.repository.metainfo import InfoHash

TORRENT = InfoHash(bytes(32))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60))))
def test_frames_never_hold_more_than_they_may(puts: list[tuple[int, int]]) -> None:
    frames = FrameCache(100)

    for offset, length in puts:
        frames.put((TORRENT, offset), bytes(length))

        assert frames.bytes_held <= 100
    kept = [frame for offset in range(10) if (frame := frames.get((TORRENT, offset))) is not None]
    assert sum(map(len, kept)) == frames.bytes_held


def test_the_frame_that_was_read_last_stays_longest() -> None:
    frames = FrameCache(100)
    frames.put((TORRENT, 0), bytes(50))
    frames.put((TORRENT, 1), bytes(50))

    frames.get((TORRENT, 0))
    frames.put((TORRENT, 2), bytes(50))

    assert frames.get((TORRENT, 0)) == bytes(50)
    assert frames.get((TORRENT, 1)) is None


def test_a_frame_larger_than_the_cache_is_not_kept() -> None:
    frames = FrameCache(100)

    frames.put((TORRENT, 0), bytes(101))

    assert len(frames) == 0
