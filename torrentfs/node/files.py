"""This module keeps the files of torrents open for reading, a bounded number of them."""

import errno
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from torrentfs.errors import CacheError
from torrentfs.repository.metainfo import InfoHash, TorrentRef


class OpenFiles:
    """Files by the torrent whose data they hold."""

    def __init__(self, path: Callable[[TorrentRef], Path], files_max: int) -> None:
        """Open no more than *files_max*; *path* tells where a torrent's data lies."""
        self._path = path
        self._files_max = files_max
        self._files: OrderedDict[InfoHash, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._files)

    def pread(self, ref: TorrentRef, length: int, offset: int) -> bytes:
        """Read what there is, b"" of a file that is not there.

        Raises:
            CacheError: the disk refuses.
        """
        try:
            return os.pread(self._open(ref), length, offset)
        except FileNotFoundError:
            return b""
        except OSError as error:
            self.close(
                ref.info_hash
            )  # the next read opens it anew: an administrator may have mended something
            raise CacheError(f"cannot read {self._path(ref)}: {error.strerror}") from error

    def is_deleted(self, info_hash: InfoHash) -> bool:
        """Tell whether an open file has no name any more."""
        file = self._files.get(info_hash)
        return file is not None and os.fstat(file).st_nlink == 0

    def close(self, info_hash: InfoHash) -> None:
        """Close a file, if it is open."""
        file = self._files.pop(info_hash, None)
        if file is not None:
            os.close(file)

    def close_all(self) -> None:
        """Close every file."""
        for info_hash in list(self._files):
            self.close(info_hash)

    def _open(self, ref: TorrentRef) -> int:
        file = self._files.get(ref.info_hash)
        if file is not None:
            self._files.move_to_end(ref.info_hash)
            return file
        try:
            file = os.open(self._path(ref), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in {errno.EMFILE, errno.ENFILE} or not self._files:
                raise
            self.close_all()  # others of this process or machine have them all: live on few
            file = os.open(self._path(ref), os.O_RDONLY | os.O_CLOEXEC)
        self._files[ref.info_hash] = file
        if len(self._files) > self._files_max:
            self.close(next(iter(self._files)))
        return file
