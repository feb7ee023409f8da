"""This module answers for a repository that is elsewhere: what is not here is fetched once, for all who ask.

Packs and manifests, and their metainfo, go by the info-hash, which vouches for them; whatever else `public/`
has is the directory's of verified metadata.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio
from starlette.types import Receive, Scope, Send

from torrentfs.errors import CacheError, FetchError, TorrentfsError
from torrentfs.http.answer import METHODS, Answers, UnavailableError, headers_of, not_found, refuse_method
from torrentfs.http.static import PublicFiles
from torrentfs.repository.metainfo import InfoHash, Kind, Metainfo, TorrentRef

AHEAD_LENGTH = 4 * 1024 * 1024
"""How much of what a client asked for is fetched beyond what it gets just now."""

_PATH = re.compile(r"/((?:pack|manifest)s/([0-9a-f]{64})(\.torrent|\.tar\.zst|\.manifest))", re.ASCII)


class Door(Protocol):
    """What a node does for it; see `node.View`, of which these are methods."""

    async def find(self, info_hash: InfoHash, kind: Kind) -> Metainfo | None: ...
    def expect(self, refs: Sequence[TorrentRef]) -> None: ...
    async def read(self, ref: TorrentRef, offset: int, length: int, deadline: float) -> bytes: ...
    def ahead(self, ref: TorrentRef, offset: int, length: int) -> None: ...


@dataclass(frozen=True, slots=True)
class _Torrent:
    """A ``.torrent``, small and here."""

    data: bytes
    headers: dict[str, str]
    may_wait: bool = False

    @property
    def length(self) -> int:
        return len(self.data)

    async def read(self, offset: int, length: int, following: int) -> bytes:
        return self.data[offset : offset + length]


@dataclass(frozen=True, slots=True)
class _Pulled:
    """A pack or manifest, parts of which may have to be fetched."""

    door: Door
    ref: TorrentRef
    headers: dict[str, str]
    patience_s: float
    may_wait: bool = True

    @property
    def length(self) -> int:
        return self.ref.length

    async def read(self, offset: int, length: int, following: int) -> bytes:
        try:
            self.door.ahead(self.ref, offset, min(length + following, AHEAD_LENGTH))
            return await self.door.read(self.ref, offset, length, trio.current_time() + self.patience_s)
        except TorrentfsError as error:
            raise UnavailableError(_status(error), str(error)) from error


class Pull(Answers):
    """An ASGI application: a repository's `public/`, as far as anybody asks for it."""

    def __init__(
        self, door: Door, files: PublicFiles, patience_s: float, found: Callable[[InfoHash], None]
    ) -> None:
        """Serve the torrents of *door*, all else from *files*.

        A client waits *patience_s* at most for the next bytes; *found* is told of each torrent that one
        asked for.
        """
        super().__init__()
        self._door = door
        self._files = files
        self._patience_s = patience_s
        self._found = found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match = _PATH.fullmatch(scope["path"])
        if match is None:
            await self._files(scope, receive, send)
            return
        if scope["method"] not in METHODS:
            await refuse_method(scope, receive, send)
            return
        name, digits, suffix = match.groups()
        kind = Kind.PACK if name.startswith("packs") else Kind.MANIFEST
        if suffix not in (".torrent", kind.suffix):
            await not_found(scope, receive, send)
            return
        info_hash = InfoHash(bytes.fromhex(digits))
        try:
            metainfo = await self._find(info_hash, kind)
        except UnavailableError as error:
            await error.answer(scope, receive, send)
            return
        if metainfo is None or not metainfo.name.endswith(kind.suffix):
            await not_found(scope, receive, send)
            return
        self._found(info_hash)
        ref, headers = TorrentRef(info_hash, metainfo.length, kind), headers_of(name, f'"{digits}"')
        if suffix == ".torrent":
            # It will be asked for pieces next, and neighbours that have some are to find it.
            self._door.expect([ref])
            await self.answer(_Torrent(metainfo.torrent(), headers), scope, receive, send)
            return
        await self.answer(_Pulled(self._door, ref, headers, self._patience_s), scope, receive, send)

    async def _find(self, info_hash: InfoHash, kind: Kind) -> Metainfo | None:
        """Raises: UnavailableError."""
        try:
            with trio.fail_after(self._patience_s):
                return await self._door.find(info_hash, kind)
        except trio.TooSlowError:
            raise UnavailableError(504, f"no metainfo within {self._patience_s:g} s") from None
        except TorrentfsError as error:
            raise UnavailableError(_status(error), str(error)) from error


def _status(error: TorrentfsError) -> int:
    """Return the status (RFC 9110, 15.6) that tells a client's log whose fault it is."""
    if isinstance(error, CacheError):
        return 503
    return 504 if isinstance(error, FetchError) else 502
