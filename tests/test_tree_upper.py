"""This module tests the directories above the packages."""

import stat
from collections.abc import Mapping

import msgspec
import pytest
from local_content import MemoryLedger

from torrentfs.errors import FormatError, NotADirectory, NotALink, StaleInode
from torrentfs.repository.catalog import Catalog, Ordinal, Revision, Version
from torrentfs.repository.metainfo import InfoHash, NotCached, TorrentRef
from torrentfs.tree import ROOT, Inode, Tree
from torrentfs.tree.inode import UPPER_BIT, of_entry, of_path

SECOND = 1_000_000_000


class NothingCached:
    """A content of which no byte is here."""

    def range(self, ref: TorrentRef, offset: int, length: int) -> bytes:
        raise NotCached(ref, offset, length)

    def expect(self, refs):
        raise AssertionError("nothing above the packages is fetched")


def revision(number: int, ordinal: int, *, mode: int = stat.S_IFDIR | 0o755, size: int = 10) -> Revision:
    return Revision(
        number=number,
        ordinal=Ordinal(ordinal),
        manifest=InfoHash(ordinal.to_bytes(32, "big")),
        length=1000,
        mode=mode,
        mtime_ns=5 * SECOND + ordinal,
        size=size,
        entries=3,
        nlink=2,
        published=100 + ordinal,
    )


def catalog(*versions: Version, aliases: dict[str, str] | None = None) -> Catalog:
    return Catalog(
        name="alice", versions={version.path: version for version in versions}, aliases=aliases or {}
    )


def tree(*versions: Version, aliases: dict[str, str] | None = None) -> Tree:
    made = Tree(NothingCached(), MemoryLedger(), (0, 0))
    made.swap(catalog(*versions, aliases=aliases))
    return made


def names(made: Tree, inode: Inode) -> list[bytes]:
    return [name for _, name, _ in made.readdir(inode)]


def walk(made: Tree, path: str) -> Inode:
    inode = ROOT
    for part in path.split("/"):
        found = made.lookup(inode, part.encode())
        assert found is not None, path
        inode = found.inode
    return inode


ROOT_6 = Version("ROOT/v6", (revision(1, 1), revision(2, 4)))
ROOT_7 = Version("ROOT/v7", (revision(1, 2),))
ALIGNMENT = Version("data/Alignment.par", (revision(1, 3, mode=stat.S_IFREG | 0o640, size=1234),))


def test_directories_above_packages_are_listed_in_byte_order():
    made = tree(ROOT_7, ROOT_6, ALIGNMENT)

    assert names(made, ROOT) == [b"ROOT", b"data"]
    assert names(made, walk(made, "ROOT")) == [b"v6", b"v7"]


def test_listing_goes_on_from_any_position():
    made = tree(ROOT_7, ROOT_6, ALIGNMENT)

    positions = [position for position, _, _ in made.readdir(ROOT)]

    assert [name for _, name, _ in made.readdir(ROOT, positions[0])] == [b"data"]
    assert list(made.readdir(ROOT, positions[-1])) == []


def test_package_root_shows_the_catalogs_values_without_a_fetch():
    made = tree(ALIGNMENT)

    shown = made.attributes(walk(made, "data/Alignment.par"))

    assert (shown.mode, shown.size, shown.blocks) == (stat.S_IFREG | 0o640, 1234, 3)
    assert shown.mtime_ns == 5 * SECOND + 3
    assert shown.inode == of_entry(3, 0)


def test_holes_of_a_single_file_take_no_blocks() -> None:
    sparse = msgspec.structs.replace(ALIGNMENT.current, size=10**12, hole_length=10**12 - 4096)
    made = tree(Version("huge", (sparse,)))

    shown = made.lookup(ROOT, b"huge")

    assert (shown.size, shown.blocks) == (10**12, 8)


def test_inside_of_a_package_asks_for_its_manifest():
    made = tree(ROOT_6)

    with pytest.raises(NotCached) as caught:
        made.lookup(walk(made, "ROOT/v6"), b"bin")

    assert caught.value.ref == ROOT_6.current.ref


def test_path_shows_its_last_revision_and_reserved_names_every_one():
    made = tree(ROOT_6)

    assert walk(made, "ROOT/v6") == of_entry(4, 0)
    assert walk(made, ".revisions/ROOT/v6@1") == of_entry(1, 0)
    assert walk(made, ".revisions/ROOT/v6@2") == of_entry(4, 0)


@pytest.mark.parametrize(
    "name", [b"v6@3", b"v6@0", b"v6@01", b"v6@", b"v6", b"@1", b"v6@x", b"\xff@1", b"v6@\xb2"]
)
def test_reserved_directory_has_only_revisions(name):
    made = tree(ROOT_6)

    assert made.lookup(walk(made, ".revisions/ROOT"), name) is None


def test_reserved_names_are_not_listed():
    made = tree(ROOT_6)

    assert names(made, ROOT) == [b"ROOT"]
    assert names(made, walk(made, ".revisions")) == []
    assert names(made, walk(made, ".revisions/ROOT")) == []


def test_retired_path_is_hidden_but_reached_by_its_revision():
    made = tree(Version("ROOT/v6", (revision(1, 1),), "retired"), ROOT_7)

    assert names(made, walk(made, "ROOT")) == [b"v7"]
    assert walk(made, ".revisions/ROOT/v6@1") == of_entry(1, 0)


def test_what_is_retired_is_used_by_its_name_until_its_day_and_then_gone():
    now, leaving = [1000.0], Version("ROOT/v6", (revision(1, 1),), "retired", retires=2000)
    alone = Version("OLD/v1", (revision(1, 7),), "retired", retires=3000)
    made = Tree(NothingCached(), MemoryLedger(), (0, 0), clock=lambda: now[0])
    made.swap(catalog(leaving, ROOT_7, alone))

    assert names(made, walk(made, "ROOT")) == [b"v7"]
    assert names(made, ROOT) == [b"ROOT"]
    assert walk(made, "ROOT/v6") == of_entry(1, 0)
    assert walk(made, "OLD/v1") == of_entry(7, 0)
    assert not made.is_outdated
    now[0] = 2000.0
    assert made.is_outdated
    changed = made.swap(made.catalog)
    assert (walk(made, "ROOT"), b"v6") in changed.entries
    assert made.lookup(walk(made, "ROOT"), b"v6") is None
    assert made.attributes(of_entry(1, 0)).inode == of_entry(1, 0)  # for jobs that are in it
    assert not made.is_outdated
    now[0] = 3000.0
    made.swap(made.catalog)
    assert made.lookup(ROOT, b"OLD") is None


def test_retiring_and_undoing_it_only_changes_listings():
    live = Version("ROOT/v6", (revision(1, 1),))
    leaving = msgspec.structs.replace(live, state="retired", retires=2000)
    made = Tree(NothingCached(), MemoryLedger(), (0, 0), clock=lambda: 1000.0)
    made.swap(catalog(live, ROOT_7))
    for version in (leaving, live):
        changed = made.swap(catalog(version, ROOT_7))

        assert changed.entries == ()
        assert changed.inodes == (walk(made, "ROOT"),)


def test_a_path_may_be_a_link_to_its_current_revision():
    made = tree(Version("ROOT/v6", (revision(1, 1),), in_place="link"), ROOT_7)
    link = walk(made, "ROOT/v6")

    assert made.readlink(link) == b"../.revisions/ROOT/v6@1"
    assert names(made, walk(made, "ROOT")) == [b"v6", b"v7"]
    changed = made.swap(
        catalog(Version("ROOT/v6", (revision(1, 1), revision(2, 9)), in_place="link"), ROOT_7)
    )
    assert link in changed.inodes
    assert made.readlink(link) == b"../.revisions/ROOT/v6@2"
    # And back: the name leads to another inode.
    changed = made.swap(catalog(Version("ROOT/v6", (revision(1, 1), revision(2, 9))), ROOT_7))
    assert (walk(made, "ROOT"), b"v6") in changed.entries
    assert walk(made, "ROOT/v6") == of_entry(9, 0)


def test_a_mount_may_list_what_is_retired():
    leaving = Version("ROOT/v6", (revision(1, 1),), "retired", retires=2000)
    made = Tree(NothingCached(), MemoryLedger(), (0, 0), clock=lambda: 1000.0, show_retired=True)

    made.swap(catalog(leaving, ROOT_7))

    assert names(made, walk(made, "ROOT")) == [b"v6", b"v7"]


def test_aliases_are_relative_links():
    made = tree(ROOT_6, ROOT_7, aliases={"ROOT/latest": "ROOT/v7", "current": "ROOT/v6", "x/y/z": "ROOT/v6"})

    assert made.readlink(walk(made, "ROOT/latest")) == b"v7"
    assert made.readlink(walk(made, "current")) == b"ROOT/v6"
    assert made.readlink(walk(made, "x/y/z")) == b"../../ROOT/v6"
    with pytest.raises(NotALink):
        made.readlink(ROOT)


def test_link_counts_and_times_of_upper_directories():
    made = tree(ROOT_6, ROOT_7, ALIGNMENT, aliases={"ROOT/latest": "ROOT/v7"})

    assert made.attributes(ROOT).nlink == 4
    assert made.attributes(walk(made, "ROOT")).nlink == 4
    assert made.attributes(walk(made, "data")).nlink == 2
    assert made.attributes(walk(made, "data")).mtime_ns == 103 * SECOND
    assert made.attributes(ROOT).mtime_ns == 104 * SECOND


def test_upper_inodes_are_a_function_of_the_path():
    assert walk(tree(ROOT_6), "ROOT") == walk(tree(ROOT_7, ALIGNMENT), "ROOT") == of_path("ROOT")
    assert UPPER_BIT <= of_path("ROOT") < 1 << 63


def test_revision_is_in_the_ledger_before_its_inode_is_shown():
    ledger = MemoryLedger()
    made = Tree(NothingCached(), ledger, (0, 0))
    made.swap(catalog(ROOT_6, ROOT_7))

    walk(made, "ROOT/v6")
    assert set(ledger) == {4}

    names(made, walk(made, "ROOT"))
    assert set(ledger) == {2, 4}


def test_long_listing_waits_for_the_disk_once_for_many_revisions() -> None:
    writes: list[int] = []

    class Counting(MemoryLedger):
        """Notes how much is written down each time."""

        def record(self, refs: Mapping[int, TorrentRef]) -> None:
            writes.append(len(refs))
            super().record(refs)

    made = Tree(NothingCached(), Counting(), (0, 0))
    made.swap(catalog(*(Version(f"p{n}", (revision(1, n),)) for n in range(1, 1001))))

    assert len(list(made.readdir(ROOT))) == 1000
    assert sum(writes) == 1000
    assert len(writes) <= 4


def test_dropped_revision_is_found_in_the_ledger_and_an_unknown_one_is_stale():
    made = tree(ROOT_6)
    inode = walk(made, "ROOT/v6")
    made.swap(catalog(ROOT_7))

    with pytest.raises(NotCached) as caught:
        made.lookup(inode, b"bin")
    assert caught.value.ref == ROOT_6.current.ref
    with pytest.raises(StaleInode):
        made.lookup(of_entry(77, 0), b"bin")
    with pytest.raises(StaleInode):
        made.attributes(of_path("gone"))


def test_lookup_in_an_alias_is_refused():
    made = tree(ROOT_6, aliases={"latest": "ROOT/v6"})

    with pytest.raises(NotADirectory):
        made.lookup(walk(made, "latest"), b"x")


@pytest.mark.parametrize("other", ["ROOT/v6/x", "ROOT"])
def test_path_inside_another_is_refused_and_the_old_catalog_stays(other):
    made = tree(ROOT_6)

    with pytest.raises(FormatError):
        made.swap(catalog(ROOT_6, Version(other, (revision(1, 9),))))

    assert walk(made, "ROOT/v6") == of_entry(4, 0)


def test_new_revision_changes_the_name_and_its_directory():
    made = tree(ROOT_6, ROOT_7)

    changed = made.swap(catalog(Version("ROOT/v6", (*ROOT_6.revisions, revision(3, 9))), ROOT_7))

    assert set(changed.entries) == {(of_path("ROOT"), b"v6"), (of_path(".revisions/ROOT"), b"v6@3")}
    assert set(changed.inodes) == {ROOT, of_path("ROOT")}


def test_added_and_removed_names_are_forgotten_with_their_directories():
    made = tree(ROOT_6)

    changed = made.swap(catalog(ALIGNMENT))

    assert (ROOT, b"ROOT") in changed.entries
    assert (ROOT, b"data") in changed.entries
    assert {ROOT, of_path("ROOT"), of_path("data")} <= set(changed.inodes)


def test_same_catalog_changes_nothing():
    made = tree(ROOT_6, ROOT_7, aliases={"latest": "ROOT/v7"})

    assert not made.swap(catalog(ROOT_7, ROOT_6, aliases={"latest": "ROOT/v7"}))


def test_turned_alias_is_an_inode_that_changed():
    made = tree(ROOT_6, ROOT_7, aliases={"latest": "ROOT/v7"})

    changed = made.swap(catalog(ROOT_6, ROOT_7, aliases={"latest": "ROOT/v6"}))

    assert changed.inodes == (of_path("latest"),)
    assert changed.entries == ()


def test_paths_for_log_lines():
    made = tree(ROOT_6)

    assert made.path(ROOT) == b"/"
    assert made.path(of_path("ROOT")) == b"ROOT"
    assert made.path(of_entry(4, 0)) == b"ROOT/v6@2"
    assert made.path(of_entry(4, 7)) == b"ROOT/v6@2 (entry 7)"


def test_totals_count_what_paths_show():
    made = tree(ROOT_6, ALIGNMENT, Version("old", (revision(1, 8),), "retired"))

    assert (made.totals.size, made.totals.entries) == (1244, 6)
