"""This module reads tar and zip archives as sources, as if somebody hostile had made them.

Nothing is unpacked: names go into the tree in memory, contents into one unnamed file on disk.
"""

from pathlib import Path

from torrentfs.repository.node import Source

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".zip")


def is_archive(path: Path) -> bool:
    """Tell by its name whether a file's contents are to be published rather than itself."""
    return path.name.lower().endswith(_SUFFIXES) and path.is_file()


def open_archive(path: Path) -> Source:
    raise NotImplementedError
