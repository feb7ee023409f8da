"""This module writes small files so that a crash or power loss leaves each of them whole, old or new."""

import os
from collections.abc import Mapping
from pathlib import Path


def write(files: Mapping[Path, bytes], mode: int = 0o644) -> None:
    """Replace *files*; when it returns, they and their names survive power loss.

    Each becomes visible by a rename, after the contents of all are on disk. What a crash leaves are hidden
    temporary files beside them. *mode* is subject to the umask.

    Raises:
        OSError: nothing of a file whose rename did not happen can be seen.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.new") for path in files}
    try:
        for path, data in files.items():
            _write(temporary[path], data, mode)
        for path in files:
            temporary[path].replace(path)
    except BaseException:
        for leftover in temporary.values():
            leftover.unlink(missing_ok=True)
        raise
    for directory in {path.parent for path in files}:
        sync(directory)


def make_directory(directory: Path, mode: int = 0o755) -> None:
    """Make a directory whose name survives power loss; one that is there is fine."""
    directory.mkdir(mode, exist_ok=True)
    sync(directory.parent)


def sync(path: Path) -> None:
    """Wait until a file's contents or a directory's names are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - the descriptor sets the mode
        file.write(data)
        file.flush()
        os.fsync(descriptor)
