"""This module fetches files for the TUF client from http(s):// and file:// URLs; that bounds their length.

It follows no redirects, takes no proxy from the environment, and waits for no server for long.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import urllib3
from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

CHUNK_LENGTH: Final = 64 * 1024
CONNECT_TIMEOUT_S: Final = 10.0
READ_TIMEOUT_S: Final = 15.0
CONNECTIONS_MAX: Final = 8


class Downloads(FetcherInterface):
    """Connections that are used again for one file after the other."""

    def __init__(self) -> None:
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S)
        # No compression: a bomb would be unpacked before its length is looked at.
        headers = {"Accept-Encoding": "identity", "User-Agent": "torrentfs"}
        self._pool = urllib3.PoolManager(
            maxsize=CONNECTIONS_MAX, retries=False, timeout=timeout, headers=headers
        )

    def _fetch(self, url: str) -> Iterator[bytes]:
        """Yield a file's bytes.

        Raises:
            DownloadError, DownloadHTTPError: the latter with status 404 if there is no such file.
        """
        parts = urlsplit(url)
        if parts.scheme == "file" and parts.netloc in ("", "localhost"):
            return _read(Path(unquote(parts.path)))
        if parts.scheme in ("http", "https"):
            return self._get(url)
        raise DownloadError(f"{url}: only http://, https:// and file:/// URLs can be read")

    def _get(self, url: str) -> Iterator[bytes]:
        try:
            response = self._pool.request("GET", url, redirect=False, preload_content=False)
            try:
                if response.status != 200:
                    raise DownloadHTTPError(
                        f"HTTP status {response.status} for {urlsplit(url).path}", response.status
                    )
                yield from response.stream(CHUNK_LENGTH, decode_content=False)
            except BaseException:
                # What is left of the answer may be endless.
                response.close()
                raise
            response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise DownloadError(f"{urlsplit(url).path}: {error}") from error


def _read(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_LENGTH):
                yield chunk
    except FileNotFoundError as error:
        raise DownloadHTTPError(f"{path} is missing", 404) from error
    except OSError as error:
        raise DownloadError(f"{path}: {error.strerror}") from error
