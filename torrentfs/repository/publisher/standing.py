"""This module looks whether earlier packs are still there, so that no revision points at what is gone.

One look at length and metainfo each: reading a terabyte to publish a megabyte would be absurd, and a node
checks every piece anyway.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from torrentfs.repository.metainfo import Kind
from torrentfs.repository.publisher.manifest_writer import PackRow


class Standing:
    """Which of the packs in *public* can be pointed at; *notice* is told once of each that cannot."""

    def __init__(self, public: Path, pack: Callable[[int], PackRow], notice: Callable[[str], None]) -> None:
        self._public = public
        self._pack = pack
        self._notice = notice
        self._known: dict[int, bool] = {}

    def has(self, packs: Sequence[int]) -> bool:
        """Tell whether all these packs, by the index's ids, are there and whole as far as can be seen."""
        return all(self._has(identity) for identity in packs)

    def _has(self, identity: int) -> bool:
        known = self._known.get(identity)
        if known is None:
            row = self._pack(identity)
            fault = self._fault(row)
            if fault:
                path = self._public / Kind.PACK.url_path(row.info_hash)
                self._notice(
                    f"{path} {fault}: its contents are packed anew where this publication needs them, but "
                    "earlier revisions still need that file: restore it from a mirror or backup"
                )
            known = self._known[identity] = not fault
        return known

    def _fault(self, row: PackRow) -> str:
        """Return what is wrong with a pack, if anything."""
        try:
            length = (self._public / Kind.PACK.url_path(row.info_hash)).stat().st_size
            (self._public / Kind.PACK.torrent_path(row.info_hash)).stat()
        except FileNotFoundError as error:
            return "is missing" if not str(error.filename).endswith(".torrent") else "has lost its .torrent"
        except OSError as error:
            return f"cannot be looked at ({error.strerror})"
        return "" if length == row.length else f"is {length} bytes long instead of {row.length}"
