"""This module reads a directory or a single file as a source, and notices when it changes meanwhile.

Archives are `archive`'s; `open_source` tells which is which.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from torrentfs.errors import PublishError
from torrentfs.repository.manifest_format import (
    MTIME_NS_LIMIT,
    TARGET_LENGTH_MAX,
    XATTRS_LENGTH_MAX,
    xattrs_length,
)
from torrentfs.repository.publisher.nodes import DEPTH_MAX, Node, Source, walk

ENTRY_COUNT_MAX = (1 << 24) - 1
XATTR_PREFIX = "user."
"""Other attributes are the machine's own: labels, access lists, capabilities."""

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_BLOCK_LENGTH = 512
_REFUSED = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
    stat.S_IFIFO: "a fifo",
}
type_of = stat.S_IFMT


def open_source(path: Path) -> Source:
    """Read the tree of a directory, a single file or an archive.

    Raises:
        PublishError: it cannot be published; the path is named.
    """
    from torrentfs.repository.publisher.archive import is_archive, open_archive

    return open_archive(path) if is_archive(path) else DirectorySource(path)


class DirectorySource:
    """A tree on disk, or a single file."""

    def __init__(self, path: Path) -> None:
        """Walk the tree.

        Raises:
            PublishError: something in it cannot be published.
        """
        self._base = os.fsencode(path.resolve())
        self._groups: dict[tuple[int, int], list[Node]] = {}
        with _naming(self._base):
            self.root = self._node(b"", self._base, os.stat(self._base))  # noqa: PTH116 - bytes
        self._fill()
        self._link()

    def read(self, node: Node, path: bytes) -> bytes | None:
        """Return all of a small file."""
        _, _, sparse = _origin(node)
        if sparse:
            return None
        full = self._full(path)
        try:
            descriptor = os.open(full, _OPEN)
            try:
                data = os.read(descriptor, node.size + 1)
                while 0 < len(data) < node.size and (more := os.read(descriptor, node.size - len(data))):
                    data += more
                _check(node, full, os.fstat(descriptor), len(data))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _publish_error(full, error) from error
        return data

    @contextlib.contextmanager
    def open(self, node: Node, path: bytes) -> Iterator["FileReader"]:
        """Open a file; it is checked when it is left."""
        full = self._full(path)
        with _naming(full):
            descriptor = os.open(full, _OPEN)
            try:
                _check(node, full, os.fstat(descriptor), node.size)
                yield FileReader(descriptor, full, node.size, _origin(node)[2])
                _check(node, full, os.fstat(descriptor), node.size)
            finally:
                os.close(descriptor)

    def check(self) -> None:
        """Look at every directory once more: names may have come and gone."""
        for path, node in walk(self.root):
            if node.is_directory:
                full = self._full(path)
                with _naming(full):
                    found = os.stat(full, follow_symlinks=not path)  # noqa: PTH116 - bytes
                    _check(node, full, found, node.size)

    def close(self) -> None:
        """Nothing is held."""

    def _full(self, path: bytes) -> bytes:
        return self._base + b"/" + path if path else self._base

    def _fill(self) -> None:
        """Read all directories below the root."""
        count = 1
        stack = [(self._base, self.root, 0)] if self.root.is_directory else []
        while stack:
            path, directory, depth = stack.pop()
            if depth > DEPTH_MAX:
                raise PublishError(f"{_shown(path)}: more than {DEPTH_MAX} directories deep")
            with _naming(path), os.scandir(path) as listing:
                directory.children = [
                    self._node(item.name, item.path, item.stat(follow_symlinks=False)) for item in listing
                ]
            directory.children.sort(key=lambda node: node.name)
            count += len(directory.children)
            if count > ENTRY_COUNT_MAX:
                raise PublishError(f"{_shown(self._base)}: more than {ENTRY_COUNT_MAX} entries")
            stack += [
                (path + b"/" + child.name, child, depth + 1)
                for child in directory.children
                if child.is_directory
            ]

    def _node(self, name: bytes, path: bytes, found: os.stat_result) -> Node:
        kind = type_of(found.st_mode)
        if kind in _REFUSED:
            raise PublishError(f"{_shown(path)} is {_REFUSED[kind]}, which cannot be published")
        if not -MTIME_NS_LIMIT <= found.st_mtime_ns < MTIME_NS_LIMIT:
            raise PublishError(f"{_shown(path)} has an absurd time: touch it")
        sparse = kind == stat.S_IFREG and found.st_blocks * _BLOCK_LENGTH < found.st_size
        node = Node(name, found.st_mode, found.st_mtime_ns, origin=(found.st_ino, found.st_ctime_ns, sparse))
        if kind == stat.S_IFDIR:
            node.children = []
        elif kind == stat.S_IFLNK:
            node.target = os.readlink(path)  # noqa: PTH115 - bytes
            node.size = len(node.target)
            if node.size > TARGET_LENGTH_MAX:
                raise PublishError(f"{_shown(path)} has a target longer than {TARGET_LENGTH_MAX} bytes")
        else:
            node.size = found.st_size
        node.xattrs = _xattrs(path)
        if found.st_nlink > 1 and kind != stat.S_IFDIR:
            self._groups.setdefault((found.st_dev, found.st_ino), []).append(node)
        return node

    def _link(self) -> None:
        """Find the leader of each group of hard links: the first in path order, on whatever disk."""
        groups = {id(node): group for group in self._groups.values() if len(group) > 1 for node in group}
        if not groups:
            return
        leaders: dict[int, Node] = {}
        for _, node in walk(self.root):
            group = groups.get(id(node))
            if group is None:
                continue
            leader = leaders.setdefault(id(group), node)
            node.nlink = len(group)
            if leader is not node:
                node.leader = leader
        self._groups.clear()


class FileReader:
    """An open file on disk."""

    def __init__(self, descriptor: int, path: bytes, size: int, sparse: bool) -> None:
        self._descriptor = descriptor
        self._path = path
        self.ranges = _data_ranges(descriptor, size) if sparse else [(0, size)]

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly these bytes.

        Raises:
            PublishError: the file has become shorter.
        """
        data = os.pread(self._descriptor, length, offset)
        while len(data) < length:
            more = os.pread(self._descriptor, length - len(data), offset + len(data))
            if not more:
                raise PublishError(f"{_shown(self._path)} has changed while it was read")
            data += more
        return data


def _data_ranges(descriptor: int, size: int) -> list[tuple[int, int]]:
    ranges = []
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                break
            raise
        position = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        if position > start:
            ranges.append((start, position - start))
    return ranges


def _xattrs(path: bytes) -> tuple[tuple[bytes, bytes], ...]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return ()
        raise
    if not names:
        return ()
    wanted = sorted(os.fsencode(name) for name in names if name.startswith(XATTR_PREFIX))
    xattrs = tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in wanted)
    if xattrs_length(xattrs) > XATTRS_LENGTH_MAX:
        raise PublishError(f"{_shown(path)} has more than {XATTRS_LENGTH_MAX} bytes of extended attributes")
    return xattrs


def _origin(node: Node) -> tuple[int, int, bool]:
    assert isinstance(node.origin, tuple)
    return node.origin


def _check(node: Node, path: bytes, found: os.stat_result, length: int) -> None:
    """Compare with what the walk found; the change time gives away what kept size and mtime."""
    inode, ctime_ns, _ = _origin(node)
    same = found.st_ino == inode and found.st_ctime_ns == ctime_ns and found.st_mtime_ns == node.mtime_ns
    if not same or length != node.size or (found.st_size != node.size and not node.is_directory):
        raise PublishError(f"{_shown(path)} has changed while it was read: publish when nobody writes to it")


@contextlib.contextmanager
def _naming(path: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _publish_error(path, error) from error


def _publish_error(path: bytes, error: OSError) -> PublishError:
    named = error.filename if isinstance(error.filename, bytes) else path
    return PublishError(f"{_shown(named)}: {error.strerror or error}")


def _shown(path: bytes) -> str:
    """Show a path of any bytes on one line."""
    return (
        path.decode("utf-8", "backslashreplace").encode("unicode_escape").decode("ascii")
        if any(byte < 0x20 or byte > 0x7E for byte in path)
        else path.decode()
    )
