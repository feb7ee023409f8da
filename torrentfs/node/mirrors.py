"""This module reads ranges and small whole files from mirrors: servers or directories that hold `public/`.

Nothing that a mirror says is believed: who asks must verify. A mirror that fails is put aside for a growing
while. Which mirror is asked for what, and when, is decided elsewhere.
"""

import os
import re
import sys
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from torrentfs.errors import FetchError, UsageError
from torrentfs.node.rates import Rate
from torrentfs.repository.metainfo import InfoHash

if TYPE_CHECKING:
    import httpx

PAUSE_MIN_S = 0.5
PAUSE_MAX_S = 15.0
"""Well below a read's deadline, so that whoever waits sees a mirror come back."""
PAUSES_MAX = 1024
"""Torrents that one mirror is known not to have."""
CHUNK_LENGTH = 64 * 1024
WHOLE_INSTEAD_LENGTH_MAX = 4 * 1024 * 1024
"""A server that answers a range with the whole file is borne up to this length: as many bytes are thrown
away.
"""

Clock = Callable[[], float]


class MirrorError(FetchError):
    """A mirror that failed; its text has no newline. *absent*: it just lacks this one file; *unreachable*:
    there is no connection to it.
    """

    def __init__(self, reason: str, *, absent: bool = False, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.absent = absent
        self.unreachable = unreachable


class _Pause:
    __slots__ = ("failed_at", "pause_s", "reason", "until")

    def __init__(self) -> None:
        self.failed_at = float("-inf")
        self.pause_s = 0.0
        self.reason = ""
        self.until = float("-inf")


class Mirror:
    """One mirror: its base URL, how many requests it has, whether it is put aside."""

    def __init__(
        self,
        base: str,
        *,
        requests_max: int,
        timeout_s: float,
        within: bool = False,
        rate: Rate | None = None,
        freed: Callable[[], None] = lambda: None,
        clock: Clock = trio.current_time,
    ) -> None:
        """Prepare a mirror at *base*, http(s):// or file://; *within* the site or not, with a *rate*. *freed*
        is called whenever it has a request less.

        Raises:
            UsageError: another kind of URL.
        """
        self.base = base.rstrip("/") + "/"
        self.within = within
        self._rate = rate or Rate(0)
        self.requests = 0
        """Ranges that are being asked for: see `begin`."""
        self._freed = freed
        self.down_since: float | None = None
        """Since when, by its clock, it cannot be reached, if that is so."""
        self.probed_at = float("-inf")
        """When it was last found out whether it can."""
        self.requests_max = requests_max
        self._timeout_s = timeout_s
        # Small files have their own places: many that are expected must not keep one piece waiting.
        self._small_files = trio.CapacityLimiter(max(1, requests_max // 2))
        self._clock = clock
        self._pauses: dict[InfoHash | None, _Pause] = {}
        self._directory = _directory(self.base)
        self._client = None if self._directory else _http_client(self.base, requests_max, timeout_s)

    def __repr__(self) -> str:
        return f"Mirror({self.base!r})"

    def begin(self) -> None:
        """Take a place for a request for a range; `end` gives it back."""
        self.requests += 1

    def end(self) -> None:
        """Give a place back: whoever waits for one may take it."""
        self.requests -= 1
        self._freed()

    def ready_at(self, info_hash: InfoHash) -> float:
        """Return when the mirror may be asked for a torrent: a time of its clock, perhaps in the past."""
        return max(pause.until for pause in self._pauses_of(info_hash)) if self._pauses else float("-inf")

    def reason(self, info_hash: InfoHash) -> str:
        """Return why the mirror last failed, "" if it did not."""
        return next(
            (f"{self.base}: {pause.reason}" for pause in self._pauses_of(info_hash) if pause.reason), ""
        )

    def aside(self) -> tuple[str, str, float] | None:
        """Return base URL, reason and seconds left of a mirror that is put aside, for all torrents."""
        pause = self._pauses.get(None)
        left_s = pause.until - self._clock() if pause else 0.0
        return (self.base, pause.reason, left_s) if pause and left_s > 0 else None

    def is_news(self, error: MirrorError, info_hash: InfoHash) -> bool:
        """Tell whether *error* is another than it is put aside for already."""
        pause = self._pauses.get(info_hash if error.absent else None)
        return pause is None or pause.reason != str(error)

    def failed(self, error: MirrorError, info_hash: InfoHash, asked_at: float) -> None:
        """Put the mirror aside, for one torrent if it just lacks that. Of requests side by side,
        one failure counts.
        """
        key = info_hash if error.absent else None
        if key not in self._pauses and len(self._pauses) >= PAUSES_MAX:
            del self._pauses[next(iter(self._pauses))]
        pause = self._pauses.setdefault(key, _Pause())
        pause.reason = str(error)
        if asked_at < pause.failed_at:
            return
        pause.failed_at = self._clock()
        if error.unreachable and self.down_since is None:
            self.down_since = pause.failed_at
        pause.pause_s = min(max(2 * pause.pause_s, PAUSE_MIN_S), PAUSE_MAX_S)
        pause.until = pause.failed_at + pause.pause_s

    def succeeded(self, info_hash: InfoHash) -> None:
        """Forget failures."""
        self.reached()
        self._pauses.pop(None, None)
        self._pauses.pop(info_hash, None)

    def reached(self) -> None:
        """Take note that it answers: it need not be put aside for having been out of reach."""
        if self.down_since is not None:
            self.down_since = None
            self._pauses.pop(None, None)

    async def ranges(
        self, path: str, offset: int, length: int, file_length: int
    ) -> AsyncGenerator[bytes, None]:
        """Yield *length* bytes at *offset* of the file *path*, in chunks of any size, as they come.

        Raises:
            MirrorError: the mirror fails, stalls, or has a file of another length than *file_length*.
        """
        source = self._read_local if self._directory else self._read_http
        left = length
        async with aclosing(source(path, offset, length, file_length)) as chunks:
            async for chunk in chunks:
                if len(chunk) > left:
                    raise MirrorError("sent more than was asked for")
                left -= len(chunk)
                await self._rate.take(len(chunk))
                yield chunk
        if left:
            raise MirrorError("the answer ended early")

    async def whole(self, path: str, length_max: int) -> bytes:
        """Return a small file.

        Raises:
            MirrorError: the mirror fails, stalls, or the file is longer than *length_max*.
        """
        async with self._small_files:
            if self._directory:
                return await _read_in_thread(self._directory / path, 0, length_max, None)
            return await self._download(path, length_max)

    async def close(self) -> None:
        """Close idle connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _download(self, path: str, length_max: int) -> bytes:
        body = bytearray()
        async with self._response(path, {}) as response:
            if response.status_code != 200:
                raise _status_error(response)
            async for chunk in response.aiter_raw(CHUNK_LENGTH):
                body += chunk
                if len(body) > length_max:
                    raise MirrorError(f"{path} is longer than {length_max} bytes")
        return bytes(body)

    def _pauses_of(self, info_hash: InfoHash) -> list[_Pause]:
        return [self._pauses.get(key) or _Pause() for key in (info_hash, None)]

    async def _read_local(
        self, path: str, offset: int, length: int, file_length: int
    ) -> AsyncGenerator[bytes, None]:
        assert self._directory is not None
        for start in range(offset, offset + length, 4 * CHUNK_LENGTH):
            size = min(4 * CHUNK_LENGTH, offset + length - start)
            yield await _read_in_thread(self._directory / path, start, size, file_length)

    async def _read_http(
        self, path: str, offset: int, length: int, file_length: int
    ) -> AsyncGenerator[bytes, None]:
        wanted = f"bytes={offset}-{offset + length - 1}"
        async with self._response(path, {"Range": wanted}) as response:
            if response.status_code == 206:
                if (
                    response.headers.get("Content-Range")
                    != f"bytes {offset}-{offset + length - 1}/{file_length}"
                ):
                    raise MirrorError(
                        f"answered {wanted} with {response.headers.get('Content-Range', '')[:80]!r}"
                    )
                async for chunk in response.aiter_raw():
                    yield chunk
            elif response.status_code == 200 and file_length <= WHOLE_INSTEAD_LENGTH_MAX:
                async for chunk in _slice(response.aiter_raw(), offset, length):
                    yield chunk
            elif response.status_code == 200:
                raise MirrorError("the server ignores byte ranges")
            else:
                raise _status_error(response)

    @asynccontextmanager
    async def _response(self, path: str, headers: dict[str, str]) -> "AsyncIterator[httpx.Response]":
        import httpx

        assert self._client is not None, "a directory is not asked by HTTP"
        try:
            async with self._client.stream("GET", self.base + path, headers=headers) as response:
                yield response
        except httpx.ConnectTimeout as error:
            raise MirrorError(f"no connection within {self._timeout_s:g} s", unreachable=True) from error
        except httpx.ConnectError as error:
            raise MirrorError(_one_line(str(error) or "no connection"), unreachable=True) from error
        except httpx.TimeoutException as error:
            raise MirrorError(f"no bytes for {self._timeout_s:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise MirrorError(_one_line(str(error) or type(error).__name__)) from error


def _http_client(base: str, requests_max: int, timeout_s: float) -> "httpx.AsyncClient":
    # Its command line would bring rich and click along: 5 of 11 MB and 90 of 210 ms. Without it httpx puts a
    # stand-in in its place, as where it is installed without.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    # Not at the top: local mirrors need none of it. Nor at the first read: a job would wait for it.
    import httpx

    # No redirects: a mirror is what the site's configuration names. No environment: it belongs to whoever
    # happened to start the daemon. No compression: a pack is compressed, and a range must be exact.
    return httpx.AsyncClient(
        verify=base.startswith("https:"),
        follow_redirects=False,
        trust_env=False,
        # Who waits for a connection to come free is no sign of a bad mirror.
        timeout=httpx.Timeout(timeout_s, pool=None),
        headers={"Accept-Encoding": "identity", "User-Agent": "torrentfs"},
        limits=httpx.Limits(max_connections=2 * requests_max, max_keepalive_connections=requests_max),
    )


async def _slice(chunks: AsyncIterator[bytes], offset: int, length: int) -> AsyncIterator[bytes]:
    """Yield *length* bytes from *offset* on, and stop there."""
    position = 0
    async for chunk in chunks:
        part = chunk[max(0, offset - position) : max(0, offset + length - position)]
        position += len(chunk)
        if part:
            yield part
        if position >= offset + length:
            return


async def _read_in_thread(path: Path, offset: int, length: int, file_length: int | None) -> bytes:
    # Given up when cancelled: a network filesystem that hangs must not keep a node from ending.
    return await trio.to_thread.run_sync(
        _read_file, path, offset, length, file_length, abandon_on_cancel=True
    )


def _read_file(path: Path, offset: int, length: int, file_length: int | None) -> bytes:
    """Read a range of a local file that must be *file_length* bytes long, or without that at most
    *length*.
    """
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if file_length is None and size > length:
                raise MirrorError(f"{path} is longer than {length} bytes")
            if file_length is not None and size != file_length:
                raise MirrorError(f"{path} has {size} bytes, not {file_length}", absent=True)
            return os.pread(file.fileno(), length, offset)
    except OSError as error:
        absent = isinstance(error, FileNotFoundError)
        raise MirrorError(f"{path}: {error.strerror}", absent=absent) from error


def _status_error(response: "httpx.Response") -> MirrorError:
    absent = response.status_code in {404, 410, 416}
    return MirrorError(f"HTTP status {response.status_code} for {response.url.path}", absent=absent)


def _directory(base: str) -> Path | None:
    parts = urllib.parse.urlsplit(base)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path.startswith("/"):
        return Path(urllib.parse.unquote(parts.path))
    if parts.scheme in {"http", "https"} and parts.netloc:
        return None
    raise UsageError(f"{base!r} is not the URL of a mirror: write http://…, https://… or file:///…")


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)[:200]
