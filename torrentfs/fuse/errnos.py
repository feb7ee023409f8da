"""This module is the one table from errors to what a job sees as errno."""

import errno
from typing import Final

from torrentfs.errors import (
    IsADirectory,
    NameTooLong,
    NoAttribute,
    NotADirectory,
    NotALink,
    NotFound,
    NotSupported,
    StaleInode,
    TooSmall,
    TreeError,
)

# What is not here is EIO: bytes that could not be had or believed, a disk that refuses, a fault of ours.
TABLE: Final[dict[type[TreeError], int]] = {
    NotFound: errno.ENOENT,
    NotADirectory: errno.ENOTDIR,
    IsADirectory: errno.EISDIR,
    NotALink: errno.EINVAL,
    NoAttribute: errno.ENODATA,
    NameTooLong: errno.ENAMETOOLONG,
    NotSupported: errno.EOPNOTSUPP,
    TooSmall: errno.ERANGE,
    StaleInode: errno.ESTALE,
}


def errno_of(error: Exception) -> int:
    """Return the errno that an error is to a job."""
    return TABLE.get(type(error), errno.EIO) if isinstance(error, TreeError) else errno.EIO
