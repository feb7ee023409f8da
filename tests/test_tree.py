"""This module tests reading through the tree: inodes, slices, and what a hostile or absent manifest does."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_content import LocalContent, MemoryLedger

from torrentfs.errors import CacheError, FormatError, IsADirectory, NotADirectory, NotALink, StaleInode
from torrentfs.repository.manifest import HOLE, Extent
from torrentfs.repository.metainfo import InfoHash, Kind, NotCached, TorrentRef
from torrentfs.repository.publisher import publish
from torrentfs.repository.workshop import Repository
from torrentfs.tree import ROOT, Inode, Slice, Tree
from torrentfs.tree.inode import ENTRY_MASK, UPPER_BIT, of_entry, of_path
from torrentfs.tree.revisions import EXPECTED_PACKS_MAX, MANIFESTS_MAX
from torrentfs.tree.slices import cut

PACKS = [TorrentRef(InfoHash(bytes([number]) * 32), 1 << 30, Kind.PACK) for number in range(3)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    directory = tmp_path_factory.mktemp("repository")
    made = Repository.create(directory / "alice", "alice")
    source = directory / "source"
    (source / "below").mkdir(parents=True)
    (source / "file").write_bytes(b"0123456789")
    (source / "below/large").write_bytes(os.urandom(700_000))
    (source / "link").symlink_to("file")
    publish(made, source, "soft/v1")
    return made


@pytest.fixture
def content(repository: Repository) -> LocalContent:
    return LocalContent(repository.public)


@pytest.fixture
def tree(repository: Repository, content: LocalContent) -> Tree:
    made = Tree(content, MemoryLedger(), (0, 0))
    made.swap(repository.catalog())
    return made


def find(tree: Tree, path: str) -> Inode:
    inode = ROOT
    for name in path.split("/"):
        found = tree.lookup(inode, name.encode())
        assert found is not None
        inode = found.inode
    return inode


def test_small_file_is_one_slice(tree: Tree) -> None:
    (wanted,) = tree.plan(find(tree, "soft/v1/file"), 0, 131_072)

    assert wanted.length == 10
    assert wanted.ref is not None
    assert wanted.ref.kind is Kind.PACK


def test_slices_are_clipped_to_the_read_and_the_file(tree: Tree) -> None:
    inode = find(tree, "soft/v1/below/large")

    assert sum(piece.length for piece in tree.plan(inode, 262_140, 10)) == 10
    assert len(tree.plan(inode, 262_140, 10)) == 2
    assert sum(piece.length for piece in tree.plan(inode, 699_999, 10)) == 1
    assert tree.plan(inode, 700_000, 10) == ()
    assert tree.plan(inode, 1 << 62, 10) == ()


def test_first_read_has_the_packs_prepared_and_others_do_not(tree: Tree, content: LocalContent) -> None:
    inode = find(tree, "soft/v1/file")
    assert content.expected == []

    tree.plan(inode, 0, 1)
    tree.plan(inode, 0, 1)

    assert 1 <= len(content.expected) <= EXPECTED_PACKS_MAX
    assert all(ref.kind is Kind.PACK for ref in content.expected)


def test_wrong_kinds_are_said(tree: Tree) -> None:
    file, directory = find(tree, "soft/v1/file"), find(tree, "soft/v1/below")

    with pytest.raises(IsADirectory):
        tree.plan(directory, 0, 1)
    with pytest.raises(IsADirectory):
        tree.plan(ROOT, 0, 1)
    with pytest.raises(NotADirectory):
        list(tree.readdir(file))
    with pytest.raises(NotALink):
        tree.readlink(file)
    assert tree.lookup(file, b"x") is None
    assert tree.readlink(find(tree, "soft/v1/link")) == b"file"


def test_entry_that_a_revision_does_not_have_is_stale(tree: Tree) -> None:
    inode = Inode(find(tree, "soft/v1") | ENTRY_MASK)

    for ask in (tree.attributes, tree.readlink, tree.xattrs, lambda inode: tree.plan(inode, 0, 1)):
        with pytest.raises(StaleInode):
            ask(inode)
    with pytest.raises(StaleInode):
        tree.lookup(inode, b"x")
    with pytest.raises(StaleInode):
        list(tree.readdir(inode))


def test_paths_inside_a_revision_are_named_for_the_log(tree: Tree) -> None:
    assert tree.path(find(tree, "soft/v1/below/large")) == b"soft/v1@1/below/large"


def test_everything_inside_a_package_is_asked_for_first(tree: Tree, content: LocalContent) -> None:
    content.held.add(Kind.MANIFEST)
    root = find(tree, "soft/v1")

    assert stat.S_ISDIR(tree.attributes(root).mode)
    for ask in (
        tree.readlink,
        tree.xattrs,
        lambda inode: tree.plan(inode, 0, 1),
        lambda inode: list(tree.readdir(inode)),
    ):
        with pytest.raises(NotCached) as caught:
            ask(root)
        assert caught.value.ref.kind is Kind.MANIFEST


def test_manifest_that_is_none_is_a_format_error_and_other_packages_live_on(
    repository: Repository, tmp_path: Path
) -> None:
    class Hostile(LocalContent):
        """A content whose manifests are noise."""

        def range(self, ref: TorrentRef, offset: int, length: int) -> bytes:
            return b"\xff" * length if ref.kind is Kind.MANIFEST else super().range(ref, offset, length)

    tree = Tree(Hostile(repository.public), MemoryLedger(), (0, 0))
    tree.swap(repository.catalog())

    with pytest.raises(FormatError):
        tree.lookup(find(tree, "soft/v1"), b"file")

    assert [name for _, name, _ in tree.readdir(find(tree, "soft"))] == [b"v1"]


def test_open_manifests_are_bounded(repository: Repository, content: LocalContent) -> None:
    ledger = MemoryLedger()
    tree = Tree(content, ledger, (0, 0))
    (version,) = repository.catalog().versions.values()
    for ordinal in range(1, MANIFESTS_MAX + 10):
        ledger[ordinal] = version.current.ref
        assert tree.lookup(of_entry(ordinal, 0), b"file") is not None

    assert len(tree._revisions._open) == MANIFESTS_MAX


@given(st.integers(1, (1 << 38) - 1), st.integers(0, ENTRY_MASK), st.text(max_size=50))
def test_inodes_of_entries_and_of_upper_names_never_meet(ordinal: int, number: int, path: str) -> None:
    inode = of_entry(ordinal, number)

    assert inode < UPPER_BIT
    assert inode != ROOT
    assert (inode >> 24, inode & ENTRY_MASK) == (ordinal, number)
    upper = of_path(path.encode("utf-8", "replace").decode())
    assert upper == ROOT if not path else UPPER_BIT <= upper < 1 << 63


@given(
    st.lists(st.tuples(st.integers(HOLE, 2), st.integers(1, 1000)), min_size=1, max_size=20),
    st.integers(0, 30_000),
    st.integers(1, 30_000),
)
def test_slices_give_the_same_bytes_as_the_extents(
    parts: list[tuple[int, int]], offset: int, length: int
) -> None:
    placed, size = [], 0
    for number, (pack, part) in enumerate(parts):
        place = (
            Extent(pack, 0, 0, 0, part) if pack == HOLE else Extent(pack, number * 5000, 900, number, part)
        )
        placed.append((size, place))
        size += part
    end = min(offset + length, size)
    if offset >= end:
        return
    overlapping = [
        (start, extent) for start, extent in placed if start < end and start + extent.length > offset
    ]

    slices = cut(overlapping, PACKS, offset, end)

    assert [byte for piece in slices for byte in addresses(piece)] == [
        byte
        for start, extent in placed
        for byte in addresses(whole(extent))[max(offset - start, 0) : max(end - start, 0)]
    ]


def whole(extent: Extent) -> Slice:
    ref = None if extent.pack == HOLE else PACKS[extent.pack]
    return Slice(ref, extent.offset, extent.stored, extent.skip, extent.length)


def addresses(piece: Slice) -> list[tuple[bytes, int, int]]:
    """Where each byte of a slice comes from."""
    if piece.ref is None:
        return [(b"", 0, 0)] * piece.length
    return [(piece.ref.info_hash, piece.offset, piece.skip + position) for position in range(piece.length)]


@pytest.mark.parametrize(
    "found",
    [
        [],
        [(0, Extent(0, 0, 9, 0, 50))],
        [(0, Extent(0, 0, 9, 0, 50)), (60, Extent(0, 9, 9, 0, 40))],
        [(0, Extent(0, 0, 9, 0, 50)), (40, Extent(0, 9, 9, 0, 5))],
        [(10, Extent(0, 0, 9, 0, 90))],
        [(0, Extent(3, 0, 9, 0, 100))],
    ],
)
def test_extents_that_do_not_make_up_a_read_are_refused(found: list[tuple[int, Extent]]) -> None:
    with pytest.raises(FormatError):
        cut(found, PACKS, 0, 100)


def test_an_inode_is_named_even_when_the_disk_refuses(tree: Tree) -> None:
    inode = find(tree, "soft/v1/below/large")
    refusing = Tree(Refusing(), MemoryLedger(), (0, 0))
    refusing.swap(tree.catalog)

    assert refusing.path(inode) == b"soft/v1@1 (entry %d)" % (inode & ENTRY_MASK)


class Refusing:
    """A content on a disk that fails."""

    def range(self, ref: TorrentRef, offset: int, length: int) -> bytes:
        raise CacheError("cannot read: Input/output error")

    def expect(self, refs: Sequence[TorrentRef]) -> None:
        pass
