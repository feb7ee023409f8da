"""This module holds pieces that the disk cannot take: verified, a bounded number, for a while."""

from collections import OrderedDict
from collections.abc import Iterator

from torrentfs.node.held import IN_MEMORY, MISSING, Held
from torrentfs.repository.metainfo import PieceIndex


class PiecesInMemory:
    """The pieces in memory, of any number of torrents; those of one are in `Held.in_memory`."""

    def __init__(self, pieces_max: int) -> None:
        self._pieces_max = pieces_max
        self._pieces: OrderedDict[tuple[Held, PieceIndex], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pieces)

    def __iter__(self) -> Iterator[tuple[Held, PieceIndex]]:
        return iter(self._pieces)

    def hold(self, held: Held, piece: PieceIndex, data: bytes, keep: int = 1) -> None:
        """Have a piece in memory; what came longest ago goes, but for the last *keep*, which one read needs
        together.
        """
        if held.states[piece] != MISSING:
            return
        held.states[piece] = IN_MEMORY
        held.in_memory[piece] = data
        self._pieces[held, piece] = None
        while len(self._pieces) > max(self._pieces_max, keep):
            self.let_go(*next(iter(self._pieces)))

    def let_go(self, held: Held, piece: PieceIndex) -> None:
        """Forget a piece, if it is in memory."""
        if held.states[piece] == IN_MEMORY:
            del self._pieces[held, piece]
            del held.in_memory[piece]
            held.states[piece] = MISSING
