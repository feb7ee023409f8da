"""This module bounds what an archive becomes: what is read of it, and what is kept of its contents.

Which format it has is `archive`'s and its readers' concern.
"""

from pathlib import Path
from typing import IO, Protocol

from torrentfs.errors import PublishError


class Expanded(Protocol):
    """An archive without its compression, read forwards."""

    def read(self, length: int, /) -> bytes:
        """Return up to *length* bytes; none at the end."""

    def close(self) -> None:
        """Give up what reading needed."""


class Spool:
    """Where contents are written, within a budget of bytes."""

    def __init__(self, file: IO[bytes], path: Path, budget: int) -> None:
        self._file = file
        self._path = path
        self._budget = budget
        self.offset = 0

    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            PublishError: more than the archive's size can explain.
        """
        self.offset += len(data)
        if self.offset > self._budget:
            raise _bomb(self._path, self._budget)
        self._file.write(data)

    def flush(self) -> None:
        """Make what was written readable."""
        self._file.flush()


class Bounded:
    """What an archive expands to, read forwards only; neither one read nor the whole may be absurd."""

    READ_LENGTH_MAX = 1024 * 1024
    HEADER_LENGTH_MAX = 32 * 1024 * 1024

    def __init__(self, file: Expanded, path: Path, budget: int) -> None:
        self._file = file
        self._path = path
        self._budget = budget
        self._position = 0
        self._header_room = self.HEADER_LENGTH_MAX

    def read(self, length: int) -> bytes:
        """Read up to *length* bytes of headers.

        Raises:
            PublishError: a header, or part of one, is absurdly long; or as with `take`.
        """
        self._header_room -= length
        if not 0 <= length <= self.READ_LENGTH_MAX or self._header_room < 0:
            raise PublishError(f"{self._path}: an archive with a header of an absurd length")
        return self.take(length)

    def end_header(self) -> None:
        """Tell that a member's headers are complete."""
        self._header_room = self.HEADER_LENGTH_MAX

    def take(self, length: int) -> bytes:
        """Read up to *length* bytes; fewer only at the end.

        Raises:
            PublishError: the archive expands absurdly.
        """
        parts = []
        while length and (part := self._file.read(length)):
            parts.append(part)
            length -= len(part)
        data = b"".join(parts)
        self._position += len(data)
        if self._position > self._budget + self.READ_LENGTH_MAX:
            raise _bomb(self._path, self._budget)
        return data

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._position

    def seek(self, position: int) -> int:
        """Skip forwards."""
        if position < self._position:
            raise PublishError(f"{self._path}: an archive whose members overlap")
        while self._position < position:
            if not self.take(min(position - self._position, self.READ_LENGTH_MAX)):
                raise PublishError(f"{self._path}: damaged archive: it ends early")
        return self._position

    def finish(self) -> None:
        """Read what follows the archive's end: zeros that fill it up, and the checksums of its compression.

        Raises:
            PublishError: there is more, such as a second archive, which nobody would see.
        """
        while data := self.take(self.READ_LENGTH_MAX):
            if data.strip(b"\0"):
                raise PublishError(f"{self._path}: something follows the end of this archive: pack it anew")


def _bomb(path: Path, budget: int) -> PublishError:
    """Say that an archive expands too much."""
    return PublishError(
        f"{path}: expands to more than {budget} bytes; unpack it and publish the directory if that is right"
    )
