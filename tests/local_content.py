"""This module reads a repository's own files in place of a node: all is here, unless a test holds it back."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import trio

from torrentfs.errors import DeadlineError
from torrentfs.repository.metainfo import Kind, NotCached, TorrentRef
from torrentfs.repository.pack import decode_frame

FRAMES_MAX = 64


class LocalContent:
    """Content and source of a filesystem, from `public/`.

    While `held` has a kind, torrents of that kind are not here: who waits for them does so until `release` or
    the deadline.
    """

    def __init__(self, public: Path, held: Sequence[Kind] = ()) -> None:
        self.held = set(held)
        self.expected: list[TorrentRef] = []
        self.asked: list[NotCached] = []
        self._public = public
        self._files: dict[TorrentRef, bytes] = {}
        self._frames: dict[tuple[TorrentRef, int], bytes] = {}
        self._released = trio.Event()

    def range(self, ref: TorrentRef, offset: int, length: int) -> bytes:
        if ref.kind in self.held:
            raise NotCached(ref, offset, length)
        if ref not in self._files:
            # Whole, not open: hundreds of these are made, and nobody closes them.
            self._files[ref] = (self._public / ref.kind.url_path(ref.info_hash)).read_bytes()
        return self._files[ref][offset : offset + length]

    def frame(self, ref: TorrentRef, offset: int, stored: int) -> bytes:
        frame = self._frames.get((ref, offset))
        if frame is None:
            frame = decode_frame(self.range(ref, offset, stored))
            if len(self._frames) >= FRAMES_MAX:
                del self._frames[next(iter(self._frames))]
            self._frames[ref, offset] = frame
        return frame

    def locate(self, ref: TorrentRef, offset: int, stored: int) -> Path | None:
        return None if ref.kind in self.held else self._public / ref.kind.url_path(ref.info_hash)

    def expect(self, refs: Sequence[TorrentRef]) -> None:
        self.expected += refs

    def release(self) -> None:
        """Let everything be here, and whoever waits go on."""
        self.held.clear()
        self._released.set()

    def needing(self, wanted: Sequence[NotCached]) -> AbstractContextManager[None]:
        return nullcontext()

    async def ensure(self, missing: NotCached, deadline: float) -> None:
        self.asked.append(missing)
        with trio.move_on_at(deadline):
            await self._released.wait()
            return
        raise DeadlineError(f"{missing}: no source answered")


class MemoryLedger(dict[int, TorrentRef]):
    """A ledger that forgets when the process ends."""

    def record(self, refs: Mapping[int, TorrentRef]) -> None:
        self.update(refs)

    def find(self, ordinal: int) -> TorrentRef | None:
        return self.get(ordinal)
