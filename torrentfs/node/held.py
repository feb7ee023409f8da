"""This module holds what a cache has of one torrent, piece by piece. No I/O."""

from array import array

from torrentfs.repository.metainfo import PieceIndex, TorrentRef

MISSING, CLAIMED, CHECKED, IN_MEMORY = 0, 1, 2, 3
"""Of a piece: not here; here as an earlier start says; here, and its checksum was right since this start; in
memory only, verified, for a while.
"""

ON_DISK = frozenset({CLAIMED, CHECKED})


class Held:
    """What the cache holds of one torrent. `states` has one byte a piece; `lost` the pieces that turned
    out bad; `spoiled` those of them that still take room; `leaving` those whose room is being given back;
    `evicted` those that were here since this start.
    """

    __slots__ = (
        "cached",
        "digests",
        "evicted",
        "in_memory",
        "leaving",
        "lost",
        "number",
        "piece_count",
        "piece_length",
        "read_at",
        "ref",
        "spoiled",
        "states",
        "touched",
        "used_s",
    )

    def __init__(
        self, ref: TorrentRef, piece_length: int, number: int, cached: int = 0, used_s: int = 0
    ) -> None:
        self.ref = ref
        self.piece_length = piece_length
        self.piece_count = -(-ref.length // piece_length)
        self.number = number
        self.cached = cached
        self.states = bytearray(self.piece_count)
        self.digests = bytearray()
        self.lost: list[PieceIndex] = []
        self.spoiled: set[PieceIndex] = set()
        self.leaving: set[PieceIndex] = set()
        self.evicted: set[PieceIndex] = set()
        self.in_memory: dict[PieceIndex, bytes] = {}
        self.used_s = used_s
        """When it was last read, in Unix seconds, as far as earlier starts say."""
        self.read_at = 0
        """When it was last read since this start, in reads of the store."""
        self.touched = array("Q", bytes(8 * self.piece_count))
        """The same, of each piece."""

    @property
    def complete(self) -> bool:
        """Tell whether every piece is here."""
        return self.cached == self.ref.length

    def span(self, piece: PieceIndex) -> int:
        """Return the length of a piece in bytes."""
        return min(self.piece_length, self.ref.length - piece * self.piece_length)

    def pieces(self, offset: int, length: int) -> list[PieceIndex]:
        """Return the pieces that a range touches."""
        first, last = offset // self.piece_length, (offset + length - 1) // self.piece_length
        return [PieceIndex(piece) for piece in range(first, last + 1)]

    def missing(self, offset: int, length: int) -> list[PieceIndex]:
        """Return the pieces of a range that are not here."""
        return [piece for piece in self.pieces(offset, length) if not self.states[piece]]

    def checked(self) -> list[bool]:
        """Return, for each piece, whether it is here and was found right since this start."""
        return [state == CHECKED for state in self.states]
