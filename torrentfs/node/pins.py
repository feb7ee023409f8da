"""This module knows what is to stay in a cache: torrents that are pinned, each under some labels."""

from collections.abc import Collection, Iterable

from torrentfs.node.state import State
from torrentfs.repository.metainfo import InfoHash


class Pins:
    """What the state says is pinned."""

    def __init__(self, state: State) -> None:
        """Take what *state* read when it was opened."""
        self._state = state
        self._pinned: dict[str, frozenset[InfoHash]] = {}
        for label, info_hash in state.pins:
            self._pinned[label] = self._pinned.get(label, frozenset()) | {InfoHash(info_hash)}

    @property
    def labels(self) -> Collection[str]:
        """Labels under which something is pinned."""
        return self._pinned.keys()

    def pin(self, label: str, info_hashes: Iterable[InfoHash]) -> None:
        """Have torrents stay, here or not yet, until *label* is given to others, or to none.

        Raises:
            CacheError: the disk refuses.
        """
        pinned = frozenset(info_hashes)
        self._state.pin(label, pinned)
        if pinned:
            self._pinned[label] = pinned
        else:
            self._pinned.pop(label, None)

    def has(self, info_hash: InfoHash, label: str) -> bool:
        """Tell whether a torrent is pinned under *label*."""
        return info_hash in self._pinned.get(label, ())

    def __contains__(self, info_hash: InfoHash) -> bool:
        return any(info_hash in pinned for pinned in self._pinned.values())
