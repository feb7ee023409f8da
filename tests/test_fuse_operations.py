"""This module tests the answers to the kernel's requests, byte by byte, from a repository's own files."""

import errno
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from local_content import LocalContent, MemoryLedger

from torrentfs.config import MountSettings
from torrentfs.errors import (
    IsADirectory,
    NameTooLong,
    NoAttribute,
    NotADirectory,
    NotALink,
    NotSupported,
    ProtocolError,
    StaleInode,
    TooSmall,
)
from torrentfs.fuse import protocol
from torrentfs.fuse.errnos import errno_of
from torrentfs.fuse.filesystem import FIXED_TIMEOUT_S, UPPER_TIMEOUT_S, Filesystem
from torrentfs.fuse.operations import FIXED_ERRORS, REPLY_MAX, SILENT, Operation, Operations
from torrentfs.fuse.protocol import Opcode
from torrentfs.repository.metainfo import Kind, NotCached
from torrentfs.repository.publisher import publish
from torrentfs.repository.workshop import Repository
from torrentfs.tree import ROOT, Inode, Slice, Tree

OWNER = (1234, 5678)
MANY = 3000
PAGE = 4096
LARGE = 700_001
HOLE = 1 << 20
PLAIN = b"hello\n"
VALUE = b"\0\xffvalue"
DIRENT_LENGTH = 24
ENTRY_LENGTH = 128


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    directory = tmp_path_factory.mktemp("repository")
    made = Repository.create(directory / "alice", "alice")
    source = directory / "source"
    (source / "many").mkdir(parents=True)
    (source / "empty").mkdir()
    for number in range(MANY):
        (source / f"many/{number:04}").touch()
    (source / "plain").write_bytes(PLAIN)
    (source / "plain").chmod(0o640)
    os.utime(source / "plain", ns=(0, -1_500_000_000))
    os.setxattr(source / "plain", "user.first", VALUE)
    os.setxattr(source / "plain", "user.second", b"")
    (source / "large").write_bytes(os.urandom(LARGE))
    with (source / "sparse").open("wb") as file:
        file.write(b"start")
        file.truncate(HOLE)
    (source / "link").symlink_to("plain")
    publish(made, source, "soft/v1")
    return made


@dataclass(frozen=True)
class Stage:
    """Operations on a tree all of which is here, and what they told of reads."""

    operations: Operations
    content: LocalContent
    reads: list[tuple[Inode, Sequence[Slice]]]

    def ask(self, opcode: Opcode, inode: int, body: bytes = b"") -> bytes:
        return b"".join(self.operations.table[opcode](Inode(inode), memoryview(body)))

    def find(self, path: str) -> Inode:
        """Walk down to a path by lookups."""
        inode = ROOT
        for name in path.split("/"):
            inode = Inode(entry(self.ask(Opcode.LOOKUP, inode, name.encode() + b"\0"))[0])
        return inode

    def list(self, opcode: Opcode, inode: int, room: int = PAGE) -> list[tuple[bytes, int, int]]:
        """List a directory as the kernel does, one answer after the other."""
        found: list[tuple[bytes, int, int]] = []
        position = 0
        while answer := self.ask(opcode, inode, read_in(position, room)):
            assert len(answer) <= room
            for name, position, shown, mode in records(answer, opcode is Opcode.READDIRPLUS):  # noqa: B007
                found.append((name, shown, mode))
        return found


@pytest.fixture
def stage(repository: Repository) -> Iterator[Stage]:
    content = LocalContent(repository.public)
    tree = Tree(content, MemoryLedger(), OWNER)
    tree.swap(repository.catalog())
    reads: list[tuple[Inode, Sequence[Slice]]] = []
    filesystem = Filesystem(tree, content, MountSettings())
    yield Stage(Operations(filesystem, lambda *read: reads.append(read)), content, reads)


def read_in(offset: int, size: int, fh: int = 0) -> bytes:
    return protocol.READ_IN.pack(fh, offset, size)


def getxattr_in(size: int, name: bytes = b"") -> bytes:
    return protocol.GETXATTR_IN.pack(size) + name


def entry(answer: bytes) -> tuple[int, float, float, bytes]:
    """Take a lookup's answer apart: inode, how long name and attributes are good for, attributes."""
    inode, generation, entry_s, attr_s, entry_ns, attr_ns, attr = protocol.ENTRY_OUT.unpack(answer)
    assert (generation, entry_ns, attr_ns) == (0, 0, 0)
    return inode, entry_s, attr_s, attr


def records(answer: bytes, plus: bool) -> Iterator[tuple[bytes, int, int, int]]:
    """Take a listing apart as fs/fuse/readdir.c does: (name, position of the next, inode, type)."""
    while answer:
        if plus:
            looked_up = entry(answer[:ENTRY_LENGTH])[0]
            answer = answer[ENTRY_LENGTH:]
        inode, position, length, kind = protocol.DIRENT.unpack_from(answer)
        name = answer[DIRENT_LENGTH : DIRENT_LENGTH + length]
        assert len(name) == length
        if plus:
            assert looked_up == inode
        answer = answer[DIRENT_LENGTH + (length + 7 & ~7) :]
        yield name, position, inode, kind << 12


# LOOKUP and GETATTR


def test_a_name_is_found_with_its_attributes(stage: Stage) -> None:
    package = stage.find("soft/v1")

    inode, _, _, attr = entry(stage.ask(Opcode.LOOKUP, package, b"plain\0"))

    shown = protocol.ATTR.unpack(attr)
    assert shown[:3] == (inode, len(PLAIN), 1)
    assert shown[3:9] == (-2, -2, -2, 500_000_000, 500_000_000, 500_000_000)
    assert shown[9:] == (stat.S_IFREG | 0o640, 1, *OWNER, 0, 4096, 0)


@pytest.mark.parametrize(
    ("path", "name_s", "attributes_s"),
    [
        ("soft", UPPER_TIMEOUT_S, UPPER_TIMEOUT_S),
        # Another revision may be published at its path; what this one is does not change.
        ("soft/v1", UPPER_TIMEOUT_S, FIXED_TIMEOUT_S),
        ("soft/v1/plain", FIXED_TIMEOUT_S, FIXED_TIMEOUT_S),
    ],
)
def test_what_cannot_change_is_good_for_longer(
    stage: Stage, path: str, name_s: float, attributes_s: float
) -> None:
    parent, _, name = path.rpartition("/")
    directory = stage.find(parent) if parent else ROOT

    answer = stage.ask(Opcode.LOOKUP, directory, name.encode() + b"\0")

    assert entry(answer)[1:3] == (name_s, attributes_s)
    seconds, _, _ = protocol.ATTR_OUT.unpack(stage.ask(Opcode.GETATTR, stage.find(path)))
    assert seconds == attributes_s


def test_attributes_are_those_of_the_lookup(stage: Stage) -> None:
    package = stage.find("soft/v1")
    inode, _, _, attr = entry(stage.ask(Opcode.LOOKUP, package, b"large\0"))

    _, _, again = protocol.ATTR_OUT.unpack(stage.ask(Opcode.GETATTR, inode, bytes(16)))

    assert again == attr


@pytest.mark.parametrize(("path", "good_s"), [("soft", UPPER_TIMEOUT_S), ("soft/v1", FIXED_TIMEOUT_S)])
def test_a_name_that_is_not_there_is_an_answer_to_be_kept(stage: Stage, path: str, good_s: float) -> None:
    answer = stage.ask(Opcode.LOOKUP, stage.find(path), b"absent\0")

    assert entry(answer) == (0, good_s, 0, bytes(protocol.ATTR.size))


@pytest.mark.parametrize("path", ["soft", "soft/v1"])
def test_a_name_that_no_directory_can_hold_is_too_long(stage: Stage, path: str) -> None:
    with pytest.raises(NameTooLong):
        stage.ask(Opcode.LOOKUP, stage.find(path), b"n" * 256 + b"\0")


# READ and READLINK


def test_a_read_is_parts_that_follow_one_another(stage: Stage, repository: Repository) -> None:
    inode = stage.find("soft/v1/large")
    wanted = (repository.directory.parent / "source/large").read_bytes()

    parts = stage.operations.read(inode, memoryview(read_in(100, LARGE)))

    assert len(parts) > 1
    assert b"".join(parts) == wanted[100:]


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 1), (262_143, 2), (LARGE - 1, PAGE), (LARGE - 5, 5), (1, 300_000)]
)
def test_a_read_ends_with_its_size_or_the_file(
    stage: Stage, repository: Repository, offset: int, size: int
) -> None:
    wanted = (repository.directory.parent / "source/large").read_bytes()

    shown = stage.ask(Opcode.READ, stage.find("soft/v1/large"), read_in(offset, size, fh=99))

    assert shown == wanted[offset : offset + size]


@pytest.mark.parametrize(
    ("offset", "size"), [(LARGE, 1), (LARGE + 1, PAGE), ((1 << 63) - 1, (1 << 32) - 1), (0, 0)]
)
def test_a_read_of_nothing_is_empty(stage: Stage, offset: int, size: int) -> None:
    assert stage.ask(Opcode.READ, stage.find("soft/v1/large"), read_in(offset, size)) == b""


def test_holes_are_zeros(stage: Stage) -> None:
    shown = stage.ask(Opcode.READ, stage.find("soft/v1/sparse"), read_in(0, HOLE))

    assert shown == b"start" + bytes(HOLE - 5)


def test_a_read_is_told_of_with_its_slices(stage: Stage) -> None:
    inode = stage.find("soft/v1/plain")

    stage.ask(Opcode.READ, inode, read_in(0, PAGE))

    [(read, slices)] = stage.reads
    assert read == inode
    assert [wanted.length for wanted in slices] == [len(PLAIN)]


def test_a_read_whose_bytes_are_not_here_says_what_is_missing(stage: Stage) -> None:
    inode = stage.find("soft/v1/plain")
    stage.content.held.add(Kind.PACK)

    with pytest.raises(NotCached) as caught:
        stage.ask(Opcode.READ, inode, read_in(0, PAGE))

    assert caught.value.ref.kind is Kind.PACK
    assert stage.reads == []


def test_only_files_are_read(stage: Stage) -> None:
    for path in ("soft", "soft/v1", "soft/v1/link"):
        with pytest.raises(IsADirectory):
            stage.ask(Opcode.READ, stage.find(path), read_in(0, PAGE))


def test_a_link_has_a_target_and_nothing_else_has(stage: Stage) -> None:
    assert stage.ask(Opcode.READLINK, stage.find("soft/v1/link")) == b"plain"
    for path in ("soft", "soft/v1", "soft/v1/plain"):
        with pytest.raises(NotALink):
            stage.ask(Opcode.READLINK, stage.find(path))


# READDIR and READDIRPLUS

LISTINGS = pytest.mark.parametrize("opcode", [Opcode.READDIR, Opcode.READDIRPLUS])


@LISTINGS
@pytest.mark.parametrize("room", [PAGE, 32 * PAGE, REPLY_MAX])
def test_a_long_directory_is_listed_in_parts_each_name_once(stage: Stage, opcode: Opcode, room: int) -> None:
    found = stage.list(opcode, stage.find("soft/v1/many"), room)

    assert [name for name, _, _ in found] == [b"%04d" % number for number in range(MANY)]
    assert {mode for _, _, mode in found} == {stat.S_IFREG}
    assert len({inode for _, inode, _ in found}) == MANY


@LISTINGS
def test_a_listing_names_what_a_lookup_finds(stage: Stage, opcode: Opcode) -> None:
    for path in ("soft", "soft/v1"):
        for name, inode, mode in stage.list(opcode, stage.find(path)):
            assert inode == stage.find(f"{path}/{name.decode()}")
            _, _, attr = protocol.ATTR_OUT.unpack(stage.ask(Opcode.GETATTR, inode))
            assert stat.S_IFMT(protocol.ATTR.unpack(attr)[9]) == mode


def test_a_listing_with_attributes_has_those_of_lookups(stage: Stage) -> None:
    package = stage.find("soft/v1")

    answer = stage.ask(Opcode.READDIRPLUS, package, read_in(0, PAGE))

    assert answer[:ENTRY_LENGTH] == stage.ask(Opcode.LOOKUP, package, b"empty\0")


@LISTINGS
def test_as_many_names_are_listed_as_there_is_room_for(stage: Stage, opcode: Opcode) -> None:
    each = 32 + (ENTRY_LENGTH if opcode is Opcode.READDIRPLUS else 0)
    many = stage.find("soft/v1/many")

    assert len(stage.ask(opcode, many, read_in(0, 5 * each))) == 5 * each
    assert len(stage.ask(opcode, many, read_in(0, 6 * each - 1))) == 5 * each


@LISTINGS
@pytest.mark.parametrize("room", [0, 1, 31])
def test_a_listing_without_room_for_one_name_is_an_error_and_not_the_end(
    stage: Stage, opcode: Opcode, room: int
) -> None:
    with pytest.raises(TooSmall):
        stage.ask(opcode, stage.find("soft/v1/many"), read_in(0, room))


@LISTINGS
def test_no_listing_is_longer_than_we_make_at_once(stage: Stage, opcode: Opcode) -> None:
    answer = stage.ask(opcode, stage.find("soft/v1/many"), read_in(0, (1 << 32) - 1))

    assert len(answer) <= REPLY_MAX


@LISTINGS
@pytest.mark.parametrize("path", ["soft", "soft/v1", "soft/v1/many", "soft/v1/empty"])
@pytest.mark.parametrize("position", [MANY, MANY + 1, (1 << 63) - 1])
def test_beyond_the_last_name_there_is_nothing(
    stage: Stage, opcode: Opcode, path: str, position: int
) -> None:
    assert stage.ask(opcode, stage.find(path), read_in(position, PAGE)) == b""


@LISTINGS
def test_only_directories_are_listed(stage: Stage, opcode: Opcode) -> None:
    with pytest.raises(NotADirectory):
        stage.ask(opcode, stage.find("soft/v1/plain"), read_in(0, PAGE))


class Broken(Tree):
    """A tree whose third name is not here yet."""

    def readdir(self, inode: Inode, start: int = 0) -> Iterator[tuple[int, bytes, object]]:
        for position, name, found in super().readdir(inode, start):
            if position == 3:
                raise NotCached(self.catalog.versions["soft/v1"].current.ref, 0, 1)
            yield position, name, found


@LISTINGS
def test_what_is_here_of_a_listing_is_an_answer(repository: Repository, opcode: Opcode) -> None:
    content = LocalContent(repository.public)
    tree = Broken(content, MemoryLedger(), OWNER)
    tree.swap(repository.catalog())
    operations = Operations(Filesystem(tree, content, MountSettings()), lambda *_: None)
    broken = Stage(operations, content, [])
    many = broken.find("soft/v1/many")

    answer = broken.ask(opcode, many, read_in(0, PAGE))

    shown = list(records(answer, opcode is Opcode.READDIRPLUS))
    assert [name for name, *_ in shown] == [b"0000", b"0001"]
    with pytest.raises(NotCached):
        broken.ask(opcode, many, read_in(shown[-1][1], PAGE))


# Extended attributes

NAMES = b"user.first\0user.second\0"


def test_an_attribute_is_its_value(stage: Stage) -> None:
    inode = stage.find("soft/v1/plain")

    assert stage.ask(Opcode.GETXATTR, inode, getxattr_in(len(VALUE), b"user.first\0")) == VALUE
    assert stage.ask(Opcode.GETXATTR, inode, getxattr_in(65_536, b"user.second\0")) == b""


def test_the_names_of_attributes_are_a_list_with_ends(stage: Stage) -> None:
    inode = stage.find("soft/v1/plain")

    assert stage.ask(Opcode.LISTXATTR, inode, getxattr_in(len(NAMES))) == NAMES
    assert stage.ask(Opcode.LISTXATTR, stage.find("soft"), getxattr_in(100)) == b""


def test_without_room_the_length_is_said(stage: Stage) -> None:
    inode = stage.find("soft/v1/plain")

    length = stage.ask(Opcode.GETXATTR, inode, getxattr_in(0, b"user.first\0"))
    names_length = stage.ask(Opcode.LISTXATTR, inode, getxattr_in(0))

    assert struct.unpack("=I4x", length) == (len(VALUE),)
    assert struct.unpack("=I4x", names_length) == (len(NAMES),)


def test_with_too_little_room_that_is_said(stage: Stage) -> None:
    inode = stage.find("soft/v1/plain")

    with pytest.raises(TooSmall) as caught:
        stage.ask(Opcode.GETXATTR, inode, getxattr_in(len(VALUE) - 1, b"user.first\0"))
    with pytest.raises(TooSmall):
        stage.ask(Opcode.LISTXATTR, inode, getxattr_in(len(NAMES) - 1))

    assert errno_of(caught.value) == errno.ERANGE


def test_absent_attributes_and_other_namespaces_say_so(stage: Stage) -> None:
    inode = stage.find("soft/v1/plain")

    with pytest.raises(NoAttribute):
        stage.ask(Opcode.GETXATTR, inode, getxattr_in(0, b"user.absent\0"))
    with pytest.raises(NotSupported):
        stage.ask(Opcode.GETXATTR, inode, getxattr_in(0, b"security.capability\0"))


# The rest


def test_statfs_shows_what_paths_show_and_no_room(stage: Stage, repository: Repository) -> None:
    current = repository.catalog().versions["soft/v1"].current

    answer = stage.ask(Opcode.STATFS, ROOT)

    blocks, *free, block_size, name_max, fragment = protocol.STATFS_OUT.unpack(answer)
    assert blocks == -(-current.size // 4096)
    assert free == [0, 0, current.entries, 0]
    assert (block_size, name_max, fragment) == (4096, 255, 4096)


def test_goodbye_is_answered_with_nothing(stage: Stage) -> None:
    assert stage.ask(Opcode.DESTROY, 0) == b""


def table(stage: Stage) -> dict[int, Operation]:
    return stage.operations.table


def test_every_operation_has_a_name_for_the_log(stage: Stage) -> None:
    assert stage.operations.names.keys() == table(stage).keys()
    assert stage.operations.names[Opcode.READDIRPLUS] == "readdirplus"


def test_no_request_is_answered_in_two_ways(stage: Stage) -> None:
    assert not table(stage).keys() & FIXED_ERRORS.keys()
    assert not table(stage).keys() & SILENT
    assert not SILENT & FIXED_ERRORS.keys()


NEEDS_A_BODY = [
    Opcode.LOOKUP,
    Opcode.READ,
    Opcode.READDIR,
    Opcode.READDIRPLUS,
    Opcode.GETXATTR,
    Opcode.LISTXATTR,
]


@pytest.mark.parametrize("opcode", NEEDS_A_BODY)
@pytest.mark.parametrize("body", [b"", b"abc"])
def test_a_body_that_is_none_is_refused(stage: Stage, opcode: Opcode, body: bytes) -> None:
    with pytest.raises(ProtocolError):
        stage.ask(opcode, stage.find("soft/v1"), body)


BODIES = {
    Opcode.LOOKUP: b"name\0",
    Opcode.GETATTR: bytes(16),
    Opcode.READLINK: b"",
    Opcode.READ: read_in(0, PAGE),
    Opcode.READDIR: read_in(0, PAGE),
    Opcode.READDIRPLUS: read_in(0, PAGE),
    Opcode.GETXATTR: getxattr_in(0, b"user.name\0"),
    Opcode.LISTXATTR: getxattr_in(0),
}
UNKNOWN = {
    "zero": 0,
    "no revision": 77 << 24 | 3,
    "no entry": (1 << 24) - 1,
    "nothing above": 1 << 62 | 12345,
    "beyond": (1 << 64) - 1,
}


@pytest.mark.parametrize("opcode", BODIES)
@pytest.mark.parametrize("unknown", UNKNOWN)
def test_an_inode_that_is_unknown_is_stale(stage: Stage, opcode: Opcode, unknown: str) -> None:
    inode = UNKNOWN[unknown]
    if unknown == "no entry":
        inode |= stage.find("soft/v1")
    above = inode >= 1 << 62

    if above and opcode is Opcode.READ:
        # Nothing above the packages is a file; no need to know what it is.
        with pytest.raises(IsADirectory):
            stage.ask(opcode, inode, BODIES[opcode])
    elif above and opcode is Opcode.LISTXATTR:
        assert stage.ask(opcode, inode, BODIES[opcode]) == bytes(8)
    elif above and opcode is Opcode.GETXATTR:
        with pytest.raises(NoAttribute):
            stage.ask(opcode, inode, BODIES[opcode])
    else:
        with pytest.raises(StaleInode):
            stage.ask(opcode, inode, BODIES[opcode])
