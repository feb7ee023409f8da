"""This module holds what every backend of the filesystem must do, whatever serves it.

A backend is the tree in process, or a real mount. `Conformance` compares it with the directory that was
published; a test class derives from it and provides the fixtures `backend` and `material`. `make_material`
makes that directory: all that a published one may hold.
"""

# Names are bytes of any kind here, which pathlib does not hold.
# ruff: noqa: PTH101, PTH102, PTH115, PTH118, PTH119, PTH120, PTH123, PTH208, PTH211

import _ctypes
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

SECOND = 1_000_000_000
MANY = 50_000
MIB = 1024 * 1024
SPARSE_LENGTH = 6 * 1024 * MIB


@dataclass(frozen=True)
class Seen:
    """What stat shows."""

    inode: int
    mode: int
    nlink: int
    size: int
    blocks: int
    mtime_ns: int
    owner: tuple[int, int]


class Backend(Protocol):
    """A filesystem; paths are bytes, relative to its root. What cannot be done is an OSError."""

    def stat(self, path: bytes) -> Seen: ...
    def names(self, path: bytes) -> list[bytes]: ...
    def read(self, path: bytes, offset: int, length: int) -> bytes: ...
    def readlink(self, path: bytes) -> bytes: ...
    def xattrs(self, path: bytes) -> dict[bytes, bytes]: ...
    def xattr(self, path: bytes, name: bytes) -> bytes: ...


@dataclass(frozen=True)
class Material:
    """A directory that was published at *path*, and a file at *file_path*; *alias* leads to *path*."""

    source: bytes
    path: bytes
    file_source: bytes
    file_path: bytes
    alias: bytes
    owner: tuple[int, int]


def make_material(directory: Path) -> Path:
    """Fill a new directory with all that can be published."""
    root = os.fsencode(directory)
    os.mkdir(root)
    _names(root + b"/names")
    _modes(root + b"/modes")
    _links(root + b"/links")
    _contents(root + b"/contents")
    os.mkdir(root + b"/empty directory")
    os.mkdir(root + b"/many")
    for number in range(MANY):
        os.close(os.open(root + b"/many/%05d" % number, os.O_CREAT | os.O_WRONLY, 0o644))
    _programs(root + b"/programs")
    deep = root + b"/deep"
    for level in range(40):
        os.mkdir(deep)
        deep += b"/%d" % level
    _write(deep, b"at the bottom")
    for number, (path, _) in enumerate(walk(root)):
        if not path.startswith(b"many/"):
            os.utime(
                join(root, path),
                ns=(0, 1_600_000_000 * SECOND + number * 999_999_937),
                follow_symlinks=False,
            )
    os.utime(root + b"/names/long", ns=(0, -12_345_678_901))
    return directory


def _write(path: bytes, data: bytes, mode: int = 0o644) -> None:
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, mode)


def _names(directory: bytes) -> None:
    os.mkdir(directory)
    odd = [
        b" ",
        b"-rf",
        b"new\nline",
        b"\xff\xfe",
        b"caf\xc3\xa9",
        b"cafe\xcc\x81",
        b"*",
        b"'\"\\",
        b"\x01\x7f",
        b"...",
    ]
    for name in [*odd, b"a" * 255, b"\xf0" * 255, b".hidden", b"A", b"a", b"a0", b"a.", b"a-b", b"aa"]:
        _write(directory + b"/" + name, name)
    _write(directory + b"/long", b"older than 1970")


def _modes(directory: bytes) -> None:
    os.mkdir(directory)
    for mode in (0o000, 0o400, 0o644, 0o755, 0o777, 0o4755, 0o2755, 0o6711, 0o1644):
        _write(directory + b"/%04o" % mode, b"x", mode)
        os.mkdir(directory + b"/d%04o" % mode)
        os.chmod(directory + b"/d%04o" % mode, mode)


def _links(directory: bytes) -> None:
    os.mkdir(directory)
    _write(directory + b"/first", b"one file, four names")
    os.mkdir(directory + b"/below")
    for name in (b"/second", b"/below/third", b"/below/fourth"):
        os.link(directory + b"/first", directory + name)
    targets = [
        b"first",
        b"../names/\xff\xfe",
        b"nowhere",
        b"/etc/passwd",
        b".",
        b"x" * 4000,
        b"\n",
        b"below/../first",
    ]
    for number, target in enumerate(targets):
        os.symlink(target, directory + b"/to%d" % number)
    os.link(directory + b"/to0", directory + b"/hard link to a symbolic one", follow_symlinks=False)


def _contents(directory: bytes) -> None:
    os.mkdir(directory)
    noise = os.urandom(MIB)
    for length in (0, 1, 4095, 4096, 4097, 65_536, 262_144, 262_145, 1_000_003):
        _write(directory + b"/%d" % length, noise[:length])
        _write(directory + b"/zeros %d" % length, bytes(length))
    _write(directory + b"/twin", noise[:4097])
    with open(directory + b"/large", "wb") as file:
        for number in range(9):
            file.write(noise[number * 1000 :])
    with open(directory + b"/sparse", "wb") as file:
        for offset, data in ((0, b"start"), (5 * MIB + 3, b"middle"), (SPARSE_LENGTH - 3 * MIB, noise)):
            file.seek(offset)
            file.write(data)
        file.truncate(SPARSE_LENGTH)
    with open(directory + b"/hole only", "wb") as file:
        file.truncate(3 * MIB + 1)
    _write(directory + b"/tagged", b"with attributes")
    os.setxattr(directory + b"/tagged", "user.empty", b"")
    os.setxattr(directory + b"/tagged", "user.bytes", bytes(range(256)))
    os.setxattr(directory + b"/tagged", "user.\xfcml", b"name of any bytes")
    os.setxattr(directory, "user.on.directory", b"yes")


def _programs(directory: bytes) -> None:
    os.mkdir(directory)
    _write(directory + b"/shell", b"#!/bin/sh\necho shell $1\n", 0o755)
    _write(directory + b"/module.py", b"X = 42\n")
    # An extension module of the Python that runs this: a shared library that is sure to be here.
    _write(directory + b"/library.so", Path(_ctypes.__file__).read_bytes(), 0o755)
    _write(directory + b"/true", Path("/bin/true").read_bytes(), 0o755)


def join(directory: bytes, path: bytes) -> bytes:
    return directory + b"/" + path if path else directory


def walk(root: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Iterate over (path relative to *root*, lstat) of all below it, and itself."""
    stack = [b""]
    while stack:
        path = stack.pop()
        found = os.lstat(join(root, path))
        yield path, found
        if stat.S_ISDIR(found.st_mode):
            stack += [os.path.join(path, name) for name in os.listdir(join(root, path))]


def fails_with(code: int) -> "pytest.RaisesExc[OSError]":
    return pytest.raises(OSError, match=rf"\[Errno {code}\]")


class Conformance:
    """The suite."""

    def test_every_entry_shows_what_was_published(self, backend: Backend, material: Material) -> None:
        for path, wanted in walk(material.source):
            if path.startswith(b"many/"):
                continue
            shown = backend.stat(join(material.path, path))
            assert shown.mode == wanted.st_mode, path
            assert shown.mtime_ns == wanted.st_mtime_ns, path
            assert shown.owner == material.owner, path
            if not stat.S_ISDIR(wanted.st_mode):
                assert shown.size == wanted.st_size, path
            if path.count(b"/") < 3:
                assert shown.nlink == wanted.st_nlink, path

    def test_directories_list_what_was_published(self, backend: Backend, material: Material) -> None:
        for path, found in walk(material.source):
            if stat.S_ISDIR(found.st_mode):
                shown = backend.names(join(material.path, path))
                assert len(shown) == len(set(shown)), path
                assert set(shown) == set(os.listdir(join(material.source, path))), path

    def test_files_read_whole_are_the_same(self, backend: Backend, material: Material) -> None:
        for path, found in walk(material.source):
            if stat.S_ISREG(found.st_mode) and not path.startswith(b"many/") and found.st_size < 64 * MIB:
                shown = backend.read(join(material.path, path), 0, found.st_size + 1)
                assert shown == Path(os.fsdecode(join(material.source, path))).read_bytes(), path

    def test_reads_anywhere_are_the_same(self, backend: Backend, material: Material) -> None:
        for name in (b"contents/large", b"contents/sparse", b"contents/262145", b"contents/hole only"):
            with open(os.path.join(material.source, name), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                places = [
                    0,
                    1,
                    4095,
                    262_143,
                    262_144,
                    5 * MIB,
                    5 * MIB + 4,
                    size // 2,
                    size - MIB - 7,
                    size - 1,
                    size,
                ]
                for offset in [place for place in places if 0 <= place <= size]:
                    for length in (1, 4096, 131_072, 300_001):
                        shown = backend.read(os.path.join(material.path, name), offset, length)
                        assert shown == os.pread(file.fileno(), length, offset), (name, offset, length)

    def test_reads_beyond_the_end_are_empty(self, backend: Backend, material: Material) -> None:
        assert backend.read(material.path + b"/contents/4096", 4096, 10) == b""
        assert backend.read(material.path + b"/contents/4096", 10**12, 10) == b""
        assert backend.read(material.path + b"/contents/0", 0, 10) == b""

    def test_holes_take_no_blocks(self, backend: Backend, material: Material) -> None:
        assert backend.stat(material.path + b"/contents/hole only").blocks == 0
        assert backend.stat(material.path + b"/contents/sparse").blocks * 512 < 4 * MIB
        assert backend.stat(material.path + b"/contents/4097").blocks == 9

    def test_symbolic_links_have_their_targets(self, backend: Backend, material: Material) -> None:
        for path, found in walk(material.source):
            if stat.S_ISLNK(found.st_mode):
                shown = backend.readlink(join(material.path, path))
                assert shown == os.readlink(join(material.source, path))

    def test_hard_links_are_one_inode(self, backend: Backend, material: Material) -> None:
        shown = [
            backend.stat(material.path + b"/links/" + name) for name in (b"first", b"second", b"below/third")
        ]

        assert len({seen.inode for seen in shown}) == 1
        assert {seen.nlink for seen in shown} == {4}

    def test_equal_contents_are_two_inodes(self, backend: Backend, material: Material) -> None:
        first = backend.stat(material.path + b"/contents/twin")

        assert first.inode != backend.stat(material.path + b"/contents/4097").inode
        assert first.nlink == 1

    def test_extended_attributes_are_the_same(self, backend: Backend, material: Material) -> None:
        for name in (b"contents/tagged", b"contents", b"contents/0"):
            source = os.path.join(material.source, name)
            wanted = {
                os.fsencode(key): os.getxattr(source, key)
                for key in os.listxattr(source)
                if key.startswith("user.")
            }
            assert backend.xattrs(os.path.join(material.path, name)) == wanted

    def test_absent_attributes_say_so(self, backend: Backend, material: Material) -> None:
        with fails_with(errno.ENODATA):
            backend.xattr(material.path + b"/contents/tagged", b"user.absent")
        with fails_with(errno.EOPNOTSUPP):
            backend.xattr(material.path + b"/contents/tagged", b"trusted.absent")

    def test_absent_names_say_so(self, backend: Backend, material: Material) -> None:
        absent = (
            b"x",
            b"names/b",
            b"many/50000",
            b"names/a" + b"a" * 200,
            b"empty directory/x",
            b"names/\xff",
        )
        for path in absent:
            with fails_with(errno.ENOENT):
                backend.stat(material.path + b"/" + path)
        for path in (b"nothing", b"soft/x", b".revisions/soft/x@1", b".revisions/" + material.path + b"@2"):
            with fails_with(errno.ENOENT):
                backend.stat(path)

    def test_what_is_no_directory_and_what_is_too_long_say_so(
        self, backend: Backend, material: Material
    ) -> None:
        with fails_with(errno.ENOTDIR):
            backend.stat(material.path + b"/contents/0/x")
        with fails_with(errno.ENAMETOOLONG):
            backend.stat(material.path + b"/" + b"n" * 256)
        with fails_with(errno.EINVAL):
            backend.readlink(material.path + b"/contents/0")

    def test_names_of_a_large_directory_are_found(self, backend: Backend, material: Material) -> None:
        inodes = {
            backend.stat(material.path + b"/many/%05d" % number).inode for number in range(0, MANY, 997)
        }

        assert len(inodes) == len(range(0, MANY, 997))

    def test_a_published_file_is_at_its_path(self, backend: Backend, material: Material) -> None:
        wanted = os.lstat(material.file_source)

        shown = backend.stat(material.file_path)

        assert (shown.mode, shown.size, shown.mtime_ns) == (
            wanted.st_mode,
            wanted.st_size,
            wanted.st_mtime_ns,
        )
        assert (
            backend.read(material.file_path, 0, MIB) == Path(os.fsdecode(material.file_source)).read_bytes()
        )

    def test_directories_above_packages_list_packages(self, backend: Backend, material: Material) -> None:
        parts = material.path.split(b"/")

        assert parts[0] in backend.names(b"")
        assert b".revisions" not in backend.names(b"")
        assert backend.names(b".revisions") == []
        assert set(backend.names(parts[0])) == {parts[1], os.path.basename(material.alias)}

    def test_revisions_have_names_of_their_own(self, backend: Backend, material: Material) -> None:
        shown = backend.stat(b".revisions/" + material.path + b"@1/links/first")

        assert shown == backend.stat(material.path + b"/links/first")

    def test_aliases_lead_to_their_paths(self, backend: Backend, material: Material) -> None:
        target = backend.readlink(material.alias)

        assert not target.startswith(b"/")
        assert os.path.normpath(os.path.join(os.path.dirname(material.alias), target)) == material.path
