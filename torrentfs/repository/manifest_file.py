"""This module opens manifests in a repository's `public/`, on the publisher's own disk. It blocks."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torrentfs.errors import FormatError
from torrentfs.repository.manifest import BlockCache, Manifest
from torrentfs.repository.metainfo import TorrentRef


@contextmanager
def open_manifest(public: Path, ref: TorrentRef, cache: BlockCache | None = None) -> Iterator[Manifest]:
    """Open the manifest *ref*, to be read within.

    Raises:
        OSError: there is none. FormatError, from its reader: it is cut short or damaged.
    """
    with (public / ref.kind.url_path(ref.info_hash)).open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            data = os.pread(file.fileno(), length, offset)
            if len(data) != length:
                raise FormatError(f"{file.name} is cut short")
            return data

        yield Manifest(ref, read, cache)
