"""This module decides which pieces of one torrent to ask for before anybody reads them. No clock, no I/O.

A *stream* is a reader that goes forward: each read starts where its last one ended, as a scan of a large
file does, and a walk over small files, which lie in a pack in path order. A stream's window of pieces
doubles each time that it has moved on to another piece in exact sequence. A small step over some bytes
continues a stream, but proves nothing: its window is 1 or what it was. Anything else starts a new stream,
whose window is 0.

A new stream may get its next piece as a guess. A program's start jumps about, but what it touches lies close
together: a right guess saves a wait. They cost a cold numpy start 2 % more bytes, a light Python start 6 %
(the time saved was within the noise of the machine). They are paid from a credit
that streams earn when they move on, so that random reads soon fetch nothing extra.
"""

from torrentfs.repository.metainfo import PieceIndex

STREAMS_MAX = 8
"""Readers of one torrent that are told apart."""
WINDOW_TREE_MAX = 16
"""Pieces ahead in a scan; a cap of 128 fetched a whole pack for one Python start."""
LONG_RUN_PIECES = 48
"""A stream that has read so many pieces without a gap is a large file, or all of a tree: its window may
grow on.
"""

CREDIT_MAX = 8
"""Guesses that may be wrong one after the other."""
CREDIT_GAIN = 2
"""For each time that a stream moved on to another piece: a guess that is right half of the time pays."""


class Stream:
    """One forward reader: `position` is where it will read next, `asked` the first piece not yet asked
    for.
    """

    __slots__ = ("asked", "position", "run", "start", "window")

    def __init__(self, start: int, position: int, asked: int) -> None:
        self.start = start
        self.position = position
        self.asked = asked
        self.window = 0
        self.run = 0


class Prefetch:
    """The streams of one torrent, the one last seen at the end."""

    __slots__ = ("_credit", "_piece_count", "_piece_length", "_streams", "_window_max")

    def __init__(self, piece_length: int, piece_count: int, window_max: int) -> None:
        """*window_max* is the most pieces ahead within one large file; 0 turns readahead off."""
        self._piece_length = piece_length
        self._piece_count = piece_count
        self._window_max = window_max
        self._streams: list[Stream] = []
        self._credit = 0

    def touch(self, offset: int, length: int) -> range:
        """Take note of a read of *length* > 0 bytes at *offset*; return the pieces to ask for ahead of it.

        No piece is returned twice for one stream, and none that the read itself covers.
        """
        end = offset + length
        stream = self._find(offset)
        if stream is None:
            return self._guess(self._start(offset, end))
        if end <= stream.position:
            return range(
                0
            )  # the same again: a retry after its piece has arrived, or a decoded frame that was dropped
        self._advance(stream, end, exact=offset <= stream.position)
        return self._ahead(stream)

    def _find(self, offset: int) -> Stream | None:
        """Find the stream that a read continues or repeats, and make it the last used."""
        for index in range(len(self._streams) - 1, -1, -1):
            stream = self._streams[index]
            # A step of up to a piece: files that a walk leaves out, reads that the kernel sends out of order.
            if stream.start <= offset <= stream.position + self._piece_length:
                if index != len(self._streams) - 1:
                    self._streams.append(self._streams.pop(index))
                return stream
        return None

    def _start(self, offset: int, end: int) -> Stream:
        if len(self._streams) == STREAMS_MAX:
            del self._streams[0]
        stream = Stream(offset, end, (end - 1) // self._piece_length + 1)
        self._streams.append(stream)
        return stream

    def _guess(self, stream: Stream) -> range:
        """Return the next piece of a new stream, if guesses were right lately."""
        first = stream.asked
        if self._credit <= 0 or first >= self._piece_count:
            return range(0)
        self._credit -= 1
        stream.asked = first + 1
        return range(first, first + 1)

    def _advance(self, stream: Stream, end: int, *, exact: bool) -> None:
        """Move a stream on to *end*: from no window to one piece at once, then twice as many for
        each piece passed.
        """
        passed = (end - 1) // self._piece_length - (stream.position - 1) // self._piece_length
        stream.run = stream.run + passed if exact else 0
        if passed and self._window_max:
            self._credit = min(self._credit + CREDIT_GAIN, CREDIT_MAX)
        limit = self._window_max if stream.run >= LONG_RUN_PIECES else min(WINDOW_TREE_MAX, self._window_max)
        grown = 2 * stream.window if passed and exact else stream.window
        stream.window = min(max(grown, 1), max(limit, min(stream.window, self._window_max)))
        # What lies further back than a window is no longer repeated, but read anew.
        stream.start = max(stream.start, stream.position - max(stream.window, 1) * self._piece_length)
        stream.position = end

    def _ahead(self, stream: Stream) -> range:
        """Return what the window lacks, but not piece by piece: half a window at a time (bulk runs
        1.5 times faster).
        """
        here = (stream.position - 1) // self._piece_length
        first = max(stream.asked, here + 1)
        last = min(here + stream.window, self._piece_count - 1)
        stream.asked = first
        if last - first + 1 < (stream.window + 1) // 2 and last != self._piece_count - 1:
            return range(0)
        stream.asked = max(first, last + 1)
        return range(first, last + 1)


def pieces(ahead: range) -> list[PieceIndex]:
    """Return a range of `Prefetch.touch` as piece indices."""
    return [PieceIndex(piece) for piece in ahead]
