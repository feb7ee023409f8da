"""This module defines every exception that torrentfs raises on purpose.

A foreign exception is translated into one of these once, where it enters. An errno is chosen at the FUSE
edge only.

    TorrentfsError
    ├── UsageError              the user's mistake: one line, exit code 2
    ├── FormatError             bytes from outside that are malformed, hostile or over a limit
    │   ├── VersionError        a format version that this release cannot read
    │   └── ProtocolError       a FUSE message that is none, or that cannot be made of these values
    ├── TrustError              metadata that the chain of trust does not vouch for
    │   └── ExpiredError        … any more: it was good, and its time is over
    ├── RepositoryError         a repository on disk that cannot be used as asked
    ├── PublishError            a source that cannot be published; names the path
    ├── FetchError              bytes that could not be had
    │   └── DeadlineError       … in time
    ├── ListenError             an address that cannot be listened on
    ├── CacheError              a cache directory that cannot be used
    ├── MountError              a mount that cannot be made or ended
    ├── ControlError            a daemon that does not answer, or refuses
    └── TreeError               an answer of the filesystem, not a fault
        ├── NotFound            no such name
        ├── NotADirectory
        ├── IsADirectory
        ├── NotALink
        ├── NoAttribute         no such extended attribute
        ├── NameTooLong         a name that no directory can hold
        ├── NotSupported        an operation that torrentfs does not have
        ├── TooSmall            room for an answer that cannot hold it
        └── StaleInode          an inode whose revision this node does not know

`NotCached` stands apart: it is how a function without I/O says which bytes it needs first.
"""


class TorrentfsError(Exception):
    """Any failure that torrentfs foresees; its text is one line that says what to do or what is wrong."""


class UsageError(TorrentfsError):
    """The user's mistake: wrong option, wrong configuration."""


class FormatError(TorrentfsError):
    """Bytes from outside that are malformed, hostile or over a limit."""


class VersionError(FormatError):
    """A format version that this release cannot read."""


class ProtocolError(FormatError):
    """A FUSE message that is none, or that cannot be made of these values."""


class TrustError(TorrentfsError):
    """Metadata that the chain of trust does not vouch for."""


class ExpiredError(TrustError):
    """Metadata that was signed as it must be, and whose time is over."""


class RepositoryError(TorrentfsError):
    """A repository on disk that cannot be used as asked."""


class PublishError(TorrentfsError):
    """A source that cannot be published."""


class FetchError(TorrentfsError):
    """Bytes that could not be had from any source."""


class DeadlineError(FetchError):
    """Bytes that did not arrive in time."""


class ListenError(TorrentfsError):
    """An address that cannot be listened on: taken, or not this machine's."""


class CacheError(TorrentfsError):
    """A cache directory that cannot be used."""


class MountError(TorrentfsError):
    """A mount that cannot be made or ended."""


class ControlError(TorrentfsError):
    """A daemon that does not answer, or refuses."""


class TreeError(TorrentfsError):
    """An answer of the filesystem that the kernel passes on to the job; not a fault."""


class NotFound(TreeError):
    """No such name."""


class NotADirectory(TreeError):
    """The inode is not a directory."""


class IsADirectory(TreeError):
    """The inode is a directory."""


class NotALink(TreeError):
    """The inode is not a symbolic link."""


class NoAttribute(TreeError):
    """No such extended attribute."""


class NameTooLong(TreeError):
    """A name that no directory can hold."""


class NotSupported(TreeError):
    """An operation that torrentfs does not have."""


class TooSmall(TreeError):
    """The caller's room cannot hold the answer (ERANGE, as getxattr(2) has it)."""


class StaleInode(TreeError):
    """An inode whose revision this node does not know (ESTALE): never another file."""
