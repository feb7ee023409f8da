"""This module makes source trees for tests, and reads back what was published, by formats alone."""

import hashlib
import os
import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torrentfs.repository.manifest import BlockCache, Entry, Manifest
from torrentfs.repository.metainfo import Kind, TorrentRef
from torrentfs.repository.pack import decode_frame

MTIME_NS = 1_600_000_000_123_456_789
HOLE_LENGTH = 3 * 1024 * 1024


def write(path: Path | bytes, data: bytes, mode: int = 0o644, mtime_ns: int = MTIME_NS) -> None:
    """Write a file with a mode and time of its own."""
    with open(path, "wb") as file:  # noqa: PTH123 - names of any bytes
        file.write(data)
    os.chmod(path, mode)  # noqa: PTH101
    os.utime(path, ns=(mtime_ns, mtime_ns))


def odd_tree(base: Path, order: int = 0) -> Path:
    """Make a tree of everything that can be published; *order* shuffles the order of creation."""
    chance = random.Random(7)
    base.mkdir(parents=True)
    root = os.fsencode(base)
    contents = {
        b"plain": b"hello\n",
        b"empty": b"",
        b"setuid": b"#!/bin/sh\n",
        b"\xff\xfe not utf-8 \n\t": b"odd",
        "grüße".encode(): b"umlaut",
        b"-rf": b"dash",
        b"n" * 255: b"long name",
        b"sub/deeper/file": chance.randbytes(1000),
        b"sub/just a frame": chance.randbytes(256 * 1024 - 100),
        b"sub/larger": chance.randbytes(700_001),
        b"sub/compressible": b"torrentfs " * 100_000,
    }
    names = list(contents)
    random.Random(order).shuffle(names)
    os.makedirs(root + b"/sub/deeper")  # noqa: PTH103
    os.makedirs(root + b"/sub/nothing here")  # noqa: PTH103
    for name in names:
        write(root + b"/" + name, contents[name], mtime_ns=MTIME_NS + len(name))
    (base / "setuid").chmod(0o6755)
    os.setxattr(base / "plain", "user.odd=%name", b"\0\xffvalue\n")
    os.setxattr(base / "sub", "user.directory", b"too")
    os.link(base / "plain", base / "sub" / "hard link")
    os.link(base / "plain", base / "another")
    os.symlink(b"../\xff nowhere", root + b"/dangling")  # noqa: PTH211 - bytes
    (base / "long target").symlink_to("t" * 3000)
    _sparse(base / "sub" / "sparse")
    for path in (base / "dangling", base / "long target"):
        os.utime(path, ns=(5, 1_000_000_007), follow_symlinks=False)
    os.utime(base / "empty", ns=(0, -1_500_000_000))
    for directory, mtime_ns in (
        ("sub/deeper", 17),
        ("sub/nothing here", 2**40),
        ("sub", 999_999_999),
        ("", 10**18),
    ):
        os.utime(base / directory, ns=(mtime_ns, mtime_ns))
    return base


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"start")
        file.seek(HOLE_LENGTH)
        file.write(b"middle" * 1000)
        file.truncate(2 * HOLE_LENGTH)
    os.utime(path, ns=(MTIME_NS, MTIME_NS))


@dataclass(frozen=True, slots=True)
class Revision:
    """A published manifest, read from ``public/`` without a node."""

    manifest: Manifest
    public: Path

    def content(self, entry: Entry) -> bytes:
        """Return all bytes of a file."""
        parts = []
        for _, extent in self.manifest.extents(entry, 0, entry.size):
            if extent.pack < 0:
                parts.append(bytes(extent.length))
                continue
            pack = self.public / Kind.PACK.url_path(self.manifest.packs[extent.pack].info_hash)
            with pack.open("rb") as file:
                data = decode_frame(os.pread(file.fileno(), extent.stored, extent.offset))
            parts.append(data[extent.skip : extent.skip + extent.length])
        return b"".join(parts)

    def walk(self, number: int = 0, path: bytes = b"") -> Iterator[tuple[bytes, int, Entry]]:
        """Iterate over (path, number, entry)."""
        entry = self.manifest.entry(number)
        yield path, number, entry
        if stat.S_ISDIR(entry.mode):
            for child_number, child in self.manifest.children(number):
                yield from self.walk(child_number, path + b"/" + child.name if path else child.name)


def open_revision(public: Path, ref: TorrentRef) -> Revision:
    """Open a manifest on disk."""
    data = (public / Kind.MANIFEST.url_path(ref.info_hash)).read_bytes()
    assert len(data) == ref.length
    return Revision(
        Manifest(ref, lambda offset, length: data[offset : offset + length], BlockCache(8)), public
    )


def assert_same(revision: Revision, source: Path) -> None:
    """Compare every entry with the tree on disk."""
    inodes: dict[tuple[int, int], set[int]] = {}
    seen = set()
    for path, number, entry in revision.walk():
        full = os.path.join(os.fsencode(source), path) if path else os.fsencode(source)  # noqa: PTH118
        found = os.lstat(full)
        seen.add(path)
        assert (entry.mode, entry.mtime_ns) == (found.st_mode, found.st_mtime_ns), path
        assert entry.nlink == found.st_nlink, path
        assert dict(entry.xattrs) == {
            os.fsencode(name): os.getxattr(full, name, follow_symlinks=False)
            for name in os.listxattr(full, follow_symlinks=False)
        }
        if stat.S_ISREG(entry.mode):
            with open(full, "rb") as file:  # noqa: PTH123
                data = file.read()
            assert revision.content(entry) == data, path
            if not entry.hole_length:
                assert revision.manifest.sha256(number) == hashlib.sha256(data).digest()
            inodes.setdefault((found.st_dev, found.st_ino), set()).add(entry.leader)
        elif stat.S_ISLNK(entry.mode):
            assert entry.target == os.readlink(full)  # noqa: PTH115
    assert all(len(leaders) == 1 for leaders in inodes.values())
    assert seen == _paths(os.fsencode(source))


def _paths(base: bytes) -> set[bytes]:
    found = {b""}
    for directory, directories, files in os.walk(base):
        found |= {os.path.join(directory, name)[len(base) + 1 :] for name in directories + files}  # noqa: PTH118
    return found
