"""This module tests manifests: what the writer writes the reader reads; what others write cannot harm."""

import os
import stat
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import odd_tree, open_revision

from torrentfs.errors import FormatError, VersionError
from torrentfs.repository.manifest import BlockCache, Entry, Extent, Manifest
from torrentfs.repository.manifest_check import EntryLimits, check_entry
from torrentfs.repository.manifest_format import HEADER, SECTION
from torrentfs.repository.metainfo import InfoHash, Kind, NotCached, TorrentRef
from torrentfs.repository.publisher import publish
from torrentfs.repository.publisher.manifest_writer import PackRow, write_manifest
from torrentfs.repository.publisher.nodes import Content, Node
from torrentfs.repository.workshop import Repository

PACK = PackRow(InfoHash(bytes(range(32))), 1 << 30, 1 << 18)
FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755
EMPTY = Content(bytes(32), 0)


def directory(name: bytes, children: list[Node]) -> Node:
    return Node(name, DIRECTORY, 1, children=children)


def file(name: bytes, size: int = 0) -> Node:
    return Node(name, FILE, 2, size, content=EMPTY)


def one_extent(node: Node) -> list[Extent]:
    return [Extent(0, 1000, 500, 7, node.size)] if node.size else []


def written(public: Path, root: Node, extents=one_extent) -> bytes:
    (public / "manifests").mkdir(exist_ok=True)
    metainfo, _ = write_manifest(public, root, [PACK], extents, lambda node: node.content.digest)
    return (public / Kind.MANIFEST.url_path(metainfo.info_hash)).read_bytes()


def reader(data: bytes, blocks_max: int = 4) -> Manifest:
    ref = TorrentRef(InfoHash(bytes(32)), len(data), Kind.MANIFEST)
    return Manifest(ref, lambda offset, length: data[offset : offset + length], BlockCache(blocks_max))


def visit(manifest: Manifest) -> int:
    """Read all that a mount could ask for."""
    count = 0
    stack = [0]
    assert manifest.packs is not None
    while stack:
        number = stack.pop()
        for child_number, child in list(manifest.children(number)):  # their order is checked as they come
            count += 1
            if stat.S_ISDIR(child.mode):
                stack.append(child_number)
            elif stat.S_ISREG(child.mode):
                manifest.sha256(child_number)
                position = 0
                for offset, extent in manifest.extents(child, 0, 64 * 1024 * 1024):
                    assert offset == position
                    position += extent.length
            assert manifest.lookup(number, child.name) == (child_number, child)
    return count


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> list[Node]:
    names = draw(
        st.lists(
            st.binary(min_size=1, max_size=255).filter(
                lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
            ),
            unique=True,
            max_size=6,
        )
    )
    return [
        directory(name, draw(trees(depth - 1)))
        if depth and draw(st.booleans())
        else file(name, draw(st.integers(0, 200_000)))
        for name in sorted(names)
    ]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(children=trees())
def test_every_tree_is_read_as_it_was_written(tmp_path: Path, children: list[Node]) -> None:
    root = directory(b"", children)

    manifest = reader(written(tmp_path, root))

    stack = [(0, root)]
    while stack:
        number, node = stack.pop()
        found = list(manifest.children(number))
        assert [entry.name for _, entry in found] == [child.name for child in node.children or []]
        assert [entry.size for _, entry in found] == [child.size for child in node.children or []]
        stack += [
            (child_number, child)
            for (child_number, _), child in zip(found, node.children or [], strict=True)
            if child.is_directory
        ]


def test_a_directory_may_hold_50_000_entries(tmp_path: Path) -> None:
    children = [file(b"entry %05d" % number, number) for number in range(50_000)]

    manifest = reader(written(tmp_path, directory(b"", [directory(b"wide", children), file(b"z")])))

    assert manifest.entry_count == 50_003
    for number in (0, 1, 333, 25_000, 49_999):
        found = manifest.lookup(1, b"entry %05d" % number)
        assert found is not None
        assert found[1].size == number
    assert manifest.lookup(1, b"entry 5") is None
    assert manifest.lookup(1, b"a") is None
    assert manifest.lookup(1, b"z") is None
    assert [entry.name for _, entry in manifest.children(1, 49_998)] == [b"entry 49998", b"entry 49999"]


def test_a_file_larger_than_4_gib_is_paged(tmp_path: Path) -> None:
    count, frame = 20_000, 256 * 1024
    size = count * frame

    def extents(node: Node) -> list[Extent]:
        return [Extent(0, number * 50_000, 50_000, 0, frame) for number in range(count)]

    manifest = reader(written(tmp_path, file(b"", size), extents))

    root = manifest.entry(0)
    assert (root.size, root.extents, root.page_count) == (size, [], 20)
    for position in (0, 1023, 1024, 12_345, count - 1):
        ((offset, extent),) = manifest.extents(root, position * frame + 5, 10)
        assert (offset, extent.offset) == (position * frame, position * 50_000)
    assert len(manifest.extents(root, 1023 * frame, 2 * frame)) == 2
    assert manifest.extents(root, size, 10) == []


def test_opening_and_the_root_take_one_piece_of_a_large_manifest(tmp_path: Path) -> None:
    names = [b"entry %06d %s" % (number, os.urandom(30).hex().encode()) for number in range(40_000)]
    data = written(tmp_path, directory(b"", [directory(b"wide", [file(name) for name in names])]))
    reads: list[int] = []

    def read(offset: int, length: int) -> bytes:
        reads.append(offset + length)
        return data[offset : offset + length]

    manifest = Manifest(TorrentRef(InfoHash(bytes(32)), len(data), Kind.MANIFEST), read)
    assert manifest.lookup(0, b"wide") is not None

    assert len(data) > 1024 * 1024
    assert max(reads) < 256 * 1024


def test_what_is_not_cached_is_asked_for_and_can_be_retried(tmp_path: Path) -> None:
    data = written(tmp_path, directory(b"", [file(b"a"), directory(b"d", [file(b"b", 5)])]))
    ref = TorrentRef(InfoHash(bytes(32)), len(data), Kind.MANIFEST)
    cached: set[tuple[int, int]] = set()

    def read(offset: int, length: int) -> bytes:
        if (offset, length) not in cached:
            raise NotCached(ref, offset, length)
        return data[offset : offset + length]

    manifest = Manifest(ref, read)
    for _ in range(20):
        try:
            found = manifest.lookup(2, b"b")
            break
        except NotCached as missing:
            cached.add((missing.offset, missing.length))

    assert found is not None
    assert found[1].size == 5


def test_the_cache_of_blocks_is_bounded(tmp_path: Path) -> None:
    data = written(tmp_path, directory(b"", [file(b"%05d" % number) for number in range(5000)]))
    cache = BlockCache(3)
    manifest = Manifest(
        TorrentRef(InfoHash(bytes(32)), len(data), Kind.MANIFEST), lambda o, n: data[o : o + n], cache
    )

    visit(manifest)

    assert len(cache._blocks) == 3


def test_a_newer_version_is_refused_as_such(tmp_path: Path) -> None:
    data = bytearray(written(tmp_path, directory(b"", [])))
    data[8:10] = struct.pack("<H", 2)

    with pytest.raises(VersionError, match="version 2"):
        reader(bytes(data)).entry(0)


@pytest.mark.parametrize("flags", [0, 1])
def test_an_unknown_section_is_skipped_unless_it_is_required(tmp_path: Path, flags: int) -> None:
    data = bytearray(written(tmp_path, file(b"")))
    # The pages' index, empty here, becomes a section from the future.
    for position in range(HEADER.size, HEADER.size + 6 * SECTION.size, SECTION.size):
        name, offset, length, _ = SECTION.unpack_from(data, position)
        if name.startswith(b"xindex"):
            SECTION.pack_into(data, position, b"bundles", offset, length, flags)
    manifest = reader(bytes(data))

    if flags:
        with pytest.raises(VersionError, match="bundles"):
            manifest.entry(0)
    else:
        assert manifest.entry(0).size == 0


ROOT = Entry(b"", DIRECTORY, 0, 0, 0, 2, 0, 1, 3)
CHILD = Entry(b"child", FILE, 0, 10, 0, 1, 1, extents=[Extent(0, 0, 9, 0, 10)])


@pytest.mark.parametrize(
    "changes",
    [
        {"name": b""},
        {"name": b"."},
        {"name": b".."},
        {"name": b"a/b"},
        {"name": b"a\0b"},
        {"name": b"n" * 256},
        {"mode": stat.S_IFSOCK | 0o777},
        {"mode": stat.S_IFCHR | 0o777},
        {"mode": -1},
        {"mode": 1 << 20},
        {"size": -1},
        {"size": 11},
        {"size": 1 << 63},
        {"mtime_ns": 1 << 63},
        {"parent": 1},
        {"parent": -1},
        {"leader": 2},
        {"leader": -1},
        {"nlink": 0},
        {"nlink": 100},
        {"child_count": 1, "first_child": 2},
        {"child_count": -1},
        {"mode": DIRECTORY},
        {"mode": DIRECTORY, "size": 0, "extents": [], "child_count": 1, "first_child": 1},
        {"mode": DIRECTORY, "size": 0, "extents": [], "child_count": 1, "first_child": 0},
        {"mode": DIRECTORY, "size": 0, "extents": [], "child_count": 3, "first_child": 2},
        {"mode": stat.S_IFLNK | 0o777},
        {"mode": stat.S_IFLNK | 0o777, "size": 0, "extents": []},
        {"mode": stat.S_IFLNK | 0o777, "size": 3, "target": b"a\0b", "extents": []},
        {"mode": stat.S_IFLNK | 0o777, "size": 5000, "target": b"t" * 5000, "extents": []},
        {"target": b"x"},
        {"hole_length": 11},
        {"page_count": 1},
        {"page_count": 1, "extents": []},
        {"extents": [Extent(1, 0, 9, 0, 10)]},
        {"extents": [Extent(-2, 0, 9, 0, 10)]},
        {"extents": [Extent(-1, 0, 9, 0, 10)]},
        {"extents": [Extent(0, -1, 9, 0, 10)]},
        {"extents": [Extent(0, 92, 9, 0, 10)]},
        {"extents": [Extent(0, 0, 0, 0, 10)]},
        {"extents": [Extent(0, 0, 9, -1, 10)]},
        {"extents": [Extent(0, 0, 9, 1 << 20, 10)]},
        {"extents": [Extent(0, 0, 9, 0, 10), Extent(0, 0, 9, 0, 0)]},
        {"extents": [Extent(0, 0, 9, 0, 1)] * 10},
        {"xattrs": [(b"user.a", b""), (b"user.a", b"")]},
        {"xattrs": [(b"", b"")]},
        {"xattrs": [(b"user.a", bytes(50_000))]},
    ],
    ids=str,
)
def test_an_absurd_entry_is_refused(changes: dict[str, object]) -> None:
    limits = EntryLimits(4, [100], 0)
    check_entry(CHILD, 1, limits)

    with pytest.raises(FormatError):
        check_entry(msgspec.structs.replace(CHILD, **changes), 1, limits)


@pytest.mark.parametrize("name", [b"one", b"odd"], ids=["twice", "out of order"])
def test_names_twice_or_out_of_order_are_refused(tmp_path: Path, name: bytes) -> None:
    data = written(tmp_path, directory(b"", [file(b"one"), file(b"two")]))

    manifest = reader(repacked(data, lambda raw: raw.replace(b"two", name)))

    with pytest.raises(FormatError, match="order"):
        list(manifest.children(0))


def repacked(data: bytes, change) -> bytes:
    """Let *change* edit the raw first block of entries, and put it back with its lengths."""
    from torrentfs.repository.manifest_format import BLOCK_RECORD, INDEX_HEADER
    from torrentfs.repository.pack import decode_frame, encode_frame

    sections = {}
    for position in range(HEADER.size, HEADER.size + 6 * SECTION.size, SECTION.size):
        name, offset, length, flags = SECTION.unpack_from(data, position)
        sections[name.rstrip(b"\0")] = (position, offset, length, flags)
    _, start, length, _ = sections[b"entries"]
    raw = change(bytearray(decode_frame(data[start : start + length])))
    frame = encode_frame(bytes(raw))
    changed = bytearray(data[:start] + frame + data[start + length :])
    for name in (b"entries", b"extents", b"sha256"):
        position, offset, old, flags = sections[name]
        moved = (offset, len(frame)) if name == b"entries" else (offset + len(frame) - length, old)
        SECTION.pack_into(changed, position, name, *moved, flags)
    BLOCK_RECORD.pack_into(changed, sections[b"index"][1] + INDEX_HEADER.size, 0, len(frame), len(raw), 0)
    return bytes(changed)


@pytest.fixture(scope="module")
def real_manifest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    base = tmp_path_factory.mktemp("manifest")
    repository = Repository.create(base / "repository", "alice")
    publish(repository, odd_tree(base / "source"), "odd")
    revision = open_revision(repository.public, repository.catalog().versions["odd"].current.ref)
    assert visit(revision.manifest) > 15
    return (repository.public / Kind.MANIFEST.url_path(revision.manifest.ref.info_hash)).read_bytes()


def outcome(data: bytes) -> str:
    """Visit a manifest that may be damaged; anything but a FormatError is let out."""
    try:
        return f"{visit(reader(data))} entries"
    except FormatError as error:
        return str(error)


@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_refused_or_harmless(real_manifest: bytes, data: st.DataObject) -> None:
    damaged = bytearray(real_manifest)
    front = data.draw(st.booleans())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, min(len(damaged), 400 if front else 1 << 30) - 1))
        damaged[position] = data.draw(st.integers(0, 255))

    assert "\n" not in outcome(bytes(damaged))


@settings(max_examples=250, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_hostile_entries_with_right_checksums_are_refused_or_harmless(
    real_manifest: bytes, data: st.DataObject
) -> None:
    def change(raw: bytearray) -> bytearray:
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        return raw

    assert "\n" not in outcome(repacked(real_manifest, change))


@settings(max_examples=50, deadline=2000)
@given(data=st.binary(max_size=400))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        reader(data).entry(0)


@given(length=st.integers(0, 5000))
@settings(max_examples=30, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_truncated_manifest_is_refused(real_manifest: bytes, length: int) -> None:
    with pytest.raises(FormatError):
        visit(reader(real_manifest[: min(length, len(real_manifest) - 1)]))


def test_a_truthful_manifest_survives_repacking(real_manifest: bytes) -> None:
    assert "entries" in outcome(repacked(real_manifest, lambda raw: raw))


def test_reading_manifests_imports_nothing_that_only_publishing_needs() -> None:
    code = textwrap.dedent(
        """
        import sys
        import torrentfs.repository.manifest
        unwanted = {"sqlite3", "tarfile", "zipfile", "tuf", "concurrent.futures"} & set(sys.modules)
        sys.exit(str(unwanted) if unwanted else 0)
        """
    )

    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=30
    )

    assert (done.returncode, done.stderr) == (0, "")
