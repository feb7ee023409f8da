"""This module tests publishing as a whole: what comes in is what can be read back, and unpacked by others."""

import os
import random
import socket
import sqlite3
import subprocess
import tempfile
from pathlib import Path

import msgspec
import pytest
from trees import assert_same, odd_tree, open_revision, write

from torrentfs.cli.app import run
from torrentfs.errors import PublishError, RepositoryError, UsageError
from torrentfs.repository import manifest_check
from torrentfs.repository.metainfo import Kind, parse
from torrentfs.repository.pack import FRAME_LENGTH
from torrentfs.repository.publisher import Progress, content_index, publish
from torrentfs.repository.workshop import Repository

FILE_LENGTH = 20_000


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.create(tmp_path / "repository", "alice")


def current(repository: Repository, path: str):
    return open_revision(repository.public, repository.catalog().versions[path].current.ref)


def packs(repository: Repository) -> list[Path]:
    return sorted((repository.public / "packs").glob("*.tar.zst"))


def unpack(pack: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    command = ["tar", "--zstd", "--xattrs", "--warning=no-timestamp", "-xpf", str(pack), "-C", str(target)]
    done = subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert done.stderr == b""


def differences(left: Path, right: Path) -> list[str]:
    """Compare two trees by contents, modes, times, hard links and extended attributes, with rsync."""
    command = ["rsync", "-nacHAX", "--delete", "--itemize-changes", f"{left}/", f"{right}/"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()


def numbered_tree(base: Path, count: int, seed: int = 0) -> Path:
    chance = random.Random(seed)
    for number in range(count):
        directory = base / f"d{number % 7}"
        directory.mkdir(parents=True, exist_ok=True)
        write(directory / f"f{number}", chance.randbytes(FILE_LENGTH))
    return base


def test_a_published_tree_is_the_source_in_every_respect(repository: Repository, tmp_path: Path) -> None:
    source = odd_tree(tmp_path / "source")

    published = publish(repository, source, "odd/v1")

    assert_same(current(repository, "odd/v1"), source)
    assert published.revision == 1
    revision = repository.catalog().versions["odd/v1"].current
    assert revision.mtime_ns == source.stat().st_mtime_ns
    assert revision.entries == 1 + sum(len(d) + len(f) for _, d, f in os.walk(source))


def test_gnu_tar_unpacks_what_was_published(repository: Repository, tmp_path: Path) -> None:
    source = odd_tree(tmp_path / "source")
    publish(repository, source, "odd/v1")
    (pack,) = packs(repository)

    unpack(pack, tmp_path / "unpacked")

    assert differences(source, tmp_path / "unpacked") == []
    sparse = (tmp_path / "unpacked" / "sub" / "sparse").stat()
    assert sparse.st_blocks * 512 < sparse.st_size / 10


def test_zstd_accepts_a_pack_with_its_table(repository: Repository, tmp_path: Path) -> None:
    publish(repository, odd_tree(tmp_path / "source"), "odd/v1")

    done = subprocess.run(
        ["zstd", "-tq", str(packs(repository)[0])], check=False, capture_output=True, timeout=60
    )

    assert (done.returncode, done.stderr) == (0, b"")


def test_metainfo_lies_beside_packs_and_manifests(repository: Repository, tmp_path: Path) -> None:
    publish(repository, odd_tree(tmp_path / "source"), "odd/v1")

    revision = current(repository, "odd/v1")

    for ref in (*revision.manifest.packs, revision.manifest.ref):
        torrent = (repository.public / ref.kind.torrent_path(ref.info_hash)).read_bytes()
        metainfo = parse(torrent, ref)
        data = (repository.public / ref.kind.url_path(ref.info_hash)).read_bytes()
        assert all(
            metainfo.verify(piece, data[piece * metainfo.piece_length :][: metainfo.piece_span(piece)])
            for piece in range(metainfo.piece_count)
        )
    assert sorted(path.suffix for path in (repository.public / "packs").iterdir()) == [".torrent", ".zst"]


def test_order_and_place_of_creation_do_not_change_the_info_hash(tmp_path: Path) -> None:
    hashes = set()
    for order in range(3):
        repository = Repository.create(tmp_path / f"repository{order}", f"name{order}")
        source = odd_tree(tmp_path / f"place{order}" / ("x" * order) / "source", order)
        hashes.add(publish(repository, source, "odd/v1").info_hash)

    assert len(hashes) == 1


def test_publishing_the_same_again_packs_nothing_and_gives_the_same_manifest(
    repository: Repository, tmp_path: Path
) -> None:
    source = odd_tree(tmp_path / "source")
    first = publish(repository, source, "odd/v1")

    second = publish(repository, source, "odd/v1")

    assert (second.info_hash, second.bytes_packed, second.revision) == (first.info_hash, 0, 2)


def test_one_percent_of_changes_makes_a_pack_of_one_percent(repository: Repository, tmp_path: Path) -> None:
    source = numbered_tree(tmp_path / "source", 300)
    first = publish(repository, source, "tree/v1")
    for number in (5, 100, 200):
        write(source / f"d{number % 7}" / f"f{number}", random.Random(number).randbytes(FILE_LENGTH))

    second = publish(repository, source, "tree/v2")

    assert 0.009 < second.bytes_packed / first.bytes_packed < 0.013
    assert_same(current(repository, "tree/v2"), source)
    assert len(current(repository, "tree/v2").manifest.packs) == 2


@pytest.mark.parametrize("path", ["large/v1", "large/v2"])
def test_of_a_large_file_that_changed_in_part_only_the_part_is_packed(
    repository: Repository, tmp_path: Path, path: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write(source / "data", data := random.Random(1).randbytes(40 * FRAME_LENGTH + 1000))
    write(source / "other", random.Random(2).randbytes(3 * FRAME_LENGTH))
    publish(repository, source, "large/v1")

    for start, new in (
        (7 * FRAME_LENGTH + 5, b"changed"),  # within a block
        (20 * FRAME_LENGTH, random.Random(3).randbytes(2 * FRAME_LENGTH)),
        (40 * FRAME_LENGTH + 999, b"the last byte, and more"),
    ):
        data = data[:start] + new + data[start + len(new) :]
        write(source / "data", data)
        published = publish(repository, source, path)

        assert published.bytes_packed < (len(new) // FRAME_LENGTH + 1) * FRAME_LENGTH + 4000
        assert_same(current(repository, path), source)

    assert publish(repository, source, "large/v3").bytes_packed == 0
    write(source / "data", random.Random(4).randbytes(40 * FRAME_LENGTH))
    assert publish(repository, source, path).bytes_packed > 40 * FRAME_LENGTH
    assert_same(current(repository, path), source)


def test_a_large_file_changed_again_and_again_stays_within_32_older_packs(
    repository: Repository, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    data = bytearray(random.Random(1).randbytes(40 * FRAME_LENGTH))
    for number in range(40):
        data[number * FRAME_LENGTH] ^= 1
        write(source / "data", bytes(data))
        publish(repository, source, "large")

        assert_same(current(repository, "large"), source)
        assert len(current(repository, "large").manifest.packs) <= 33


def test_blocks_of_a_pack_that_is_damaged_are_packed_anew(repository: Repository, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    data = random.Random(1).randbytes(8 * FRAME_LENGTH)
    write(source / "data", data)
    publish(repository, source, "large")
    (pack,) = packs(repository)
    with pack.open("r+b") as file:
        file.seek(3 * FRAME_LENGTH + 100_000)
        file.write(b"damage")
    write(source / "data", data[:-1] + bytes([data[-1] ^ 1]))

    published = publish(repository, source, "large")

    assert 2 * FRAME_LENGTH < published.bytes_packed < 3 * FRAME_LENGTH
    assert_same(current(repository, "large"), source)


def test_a_pack_of_changes_unpacks_over_the_first(repository: Repository, tmp_path: Path) -> None:
    source = numbered_tree(tmp_path / "source", 20)
    publish(repository, source, "tree/v1")
    unpack(packs(repository)[0], tmp_path / "unpacked")
    before = packs(repository)
    write(source / "d3" / "f3", b"new")
    publish(repository, source, "tree/v1")

    (pack,) = set(packs(repository)) - set(before)
    unpack(pack, tmp_path / "unpacked")

    assert (tmp_path / "unpacked" / "d3" / "f3").read_bytes() == b"new"


def test_a_revision_uses_32_older_packs_at_most_and_rewrites_the_emptiest(
    repository: Repository, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(34):
        # The twelfth pack holds the least, the rest grow with their numbers.
        write(source / f"f{number}", random.Random(number).randbytes(10 if number == 12 else 1000 + number))
        publish(repository, source, "growing")

    manifest = current(repository, "growing").manifest

    assert len(manifest.packs) == 33
    assert_same(current(repository, "growing"), source)
    entry = manifest.lookup(0, b"f12")[1]
    assert entry.extents[0].pack == 32


def test_a_content_that_occurs_twice_is_stored_once_and_shown_as_a_hard_link(
    repository: Repository, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    small, large = random.Random(1).randbytes(5000), random.Random(2).randbytes(600_000)
    for name, data in (("a", small), ("b", small), ("c", large), ("d", large)):
        write(source / name, data)

    published = publish(repository, source, "twice")

    assert published.bytes_packed < 620_000
    assert_same(current(repository, "twice"), source)
    unpack(packs(repository)[0], tmp_path / "unpacked")
    numbers = [(tmp_path / "unpacked" / name).stat().st_ino for name in "abcd"]
    assert numbers[0] == numbers[1] != numbers[2] == numbers[3]


def test_random_bytes_are_stored_and_hardly_grow(repository: Repository, tmp_path: Path) -> None:
    source = tmp_path / "data"
    write(source, random.Random(1).randbytes(5_000_000))

    published = publish(repository, source, "data")

    assert 5_000_000 <= published.bytes_packed < 5_004_000


def test_a_single_file_is_the_root(repository: Repository, tmp_path: Path) -> None:
    source = tmp_path / "data.bin"
    write(source, b"alignment" * 100_000, 0o444)

    published = publish(repository, source, "data/Alignment.par")

    revision = current(repository, "data/Alignment.par")
    assert published.files == revision.manifest.entry_count == 1
    assert revision.content(revision.manifest.entry(0)) == source.read_bytes()
    assert repository.catalog().versions["data/Alignment.par"].current.size == 900_000
    unpack(packs(repository)[0], tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "Alignment.par").read_bytes() == source.read_bytes()


def test_a_sparse_file_of_500_gb_takes_little(repository: Repository, tmp_path: Path) -> None:
    size = 500 * 10**9
    source = tmp_path / "source"
    with source.open("wb") as file:
        for offset in (0, 123_456_789_012, size - 5):
            file.seek(offset)
            file.write(b"here!")

    published = publish(repository, source, "huge")

    assert published.bytes_packed < 10_000
    revision = current(repository, "huge")
    root = revision.manifest.entry(0)
    assert root.size == size
    assert size - root.hole_length <= 3 * 4096
    assert repository.catalog().versions["huge"].current.hole_length == root.hole_length
    ((offset, extent),) = revision.manifest.extents(root, 123_456_789_012, 5)
    assert offset <= 123_456_789_012 < offset + extent.length
    assert extent.pack == 0


def test_manifest_cut_short_is_named_and_not_taken_for_one(repository: Repository, tmp_path: Path) -> None:
    write(tmp_path / "source", b"alignment")
    publish(repository, tmp_path / "source", "a")
    (manifest,) = (repository.public / "manifests").glob("*.manifest")
    os.truncate(manifest, manifest.stat().st_size - 20)

    with pytest.raises(RepositoryError, match=f"{manifest.name}.*restore it from a mirror"):
        publish(repository, tmp_path / "source", "b")


def test_many_holes_are_paged(repository: Repository, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        for number in range(3000):
            file.seek(number * 65536)
            file.write(b"%d" % number)

    publish(repository, source, "holes")

    revision = current(repository, "holes")
    root = revision.manifest.entry(0)
    assert root.page_count == 6
    assert revision.content(root) == source.read_bytes()
    for number in (0, 1, 511, 512, 1777, 2999):
        ((_, extent),) = revision.manifest.extents(root, number * 65536, 1)
        assert extent.pack == 0


@pytest.mark.parametrize("kind", ["socket", "fifo", "device"])
def test_what_cannot_be_published_is_refused_by_name(
    repository: Repository, tmp_path: Path, kind: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    odd = source / "odd one"
    if kind == "fifo":
        os.mkfifo(odd)
    elif kind == "device":
        if os.geteuid():
            pytest.skip("needs root to make a device")
        os.mknod(odd, 0o20666, os.makedev(1, 3))
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(odd)[-100:] if len(str(odd)) < 100 else os.path.relpath(odd))
        server.close()

    with pytest.raises(PublishError, match="odd one"):
        publish(repository, source, "odd")

    assert repository.catalog().versions == {}


def test_a_file_that_changes_while_it_is_read_is_refused_by_name(
    repository: Repository, tmp_path: Path
) -> None:
    source = numbered_tree(tmp_path / "source", 100)

    def meddle(progress: Progress) -> None:
        write(source / "d6" / "f6", b"changed")

    with pytest.raises(PublishError, match=r"d6/f6.*changed"):
        publish(repository, source, "tree", progress=meddle)

    assert [path.name for path in (repository.public / "packs").iterdir()] == []


def test_a_name_that_comes_while_reading_is_noticed(repository: Repository, tmp_path: Path) -> None:
    source = numbered_tree(tmp_path / "source", 100)

    def meddle(progress: Progress) -> None:
        (source / "d0" / "new").touch()

    with pytest.raises(PublishError, match=r"d0.*changed"):
        publish(repository, source, "tree", progress=meddle)


def test_nothing_there_is_refused_in_one_line(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match=r"nowhere: No such file or directory"):
        publish(repository, tmp_path / "nowhere", "path")


def test_a_path_inside_another_is_refused_before_reading(repository: Repository, tmp_path: Path) -> None:
    write(tmp_path / "file", b"1")
    publish(repository, tmp_path / "file", "a/b")

    with pytest.raises(UsageError):
        publish(repository, tmp_path / "nowhere", "a/b/c")


@pytest.mark.parametrize("seconds", [10**10, -(10**10), 2 * 10**10])
def test_time_that_no_manifest_can_hold_is_refused(repository: Repository, seconds: int) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as source:
        write(Path(source) / "file", b"1")
        os.utime(Path(source) / "file", (seconds, seconds))
        if abs((Path(source) / "file").stat().st_mtime_ns) < 1 << 63:
            pytest.skip("no file system with such times at /dev/shm")

        with pytest.raises(PublishError, match="file has an absurd time"):
            publish(repository, Path(source), "tree")


def test_entry_that_no_reader_takes_is_never_written(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    write(tmp_path / "source" / "file", b"1")
    monkeypatch.setattr(manifest_check, "MTIME_NS_LIMIT", 1)

    with pytest.raises(PublishError, match=r"the root .* cannot be published: entry 0 has an absurd"):
        publish(repository, tmp_path / "source", "tree")

    assert list((repository.public / "manifests").iterdir()) == []


@pytest.mark.parametrize("source", [".", "repository", "repository/private/default.pem"])
def test_keys_are_never_published(repository: Repository, tmp_path: Path, source: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / source)

    for place in (tmp_path / source, tmp_path / "link"):
        with pytest.raises(UsageError, match="inside one another"):
            publish(repository, place, "tree")


def test_a_lost_index_is_made_anew(repository: Repository, tmp_path: Path) -> None:
    source = odd_tree(tmp_path / "source")
    first = publish(repository, source, "odd/v1")
    for index in repository.private.glob("contents.sqlite*"):
        index.write_bytes(b"not a database at all" * 100)

    second = publish(repository, source, "odd/v1")

    assert (second.info_hash, second.bytes_packed) == (first.info_hash, 0)


def test_what_was_withdrawn_is_not_pointed_at(repository: Repository, tmp_path: Path) -> None:
    source = numbered_tree(tmp_path / "source", 20)
    before = repository.catalog()
    publish(repository, source, "wrong")
    publish(repository, source, "wrong too")
    with repository.lock():
        now = repository.catalog()
        repository.commit(msgspec.structs.replace(now, versions=before.versions))

    again = publish(repository, source, "right")

    assert again.bytes_packed > 20 * FILE_LENGTH


def test_the_earliest_of_equal_packs_is_pointed_at(repository: Repository, tmp_path: Path) -> None:
    source = numbered_tree(tmp_path / "source", 20)
    publish(repository, source, "first")
    first = current(repository, "first").manifest.packs
    index = repository.private / "contents.sqlite"
    index.unlink(missing_ok=True)
    with repository.lock():
        now = repository.catalog()
        hidden = repository.commit(msgspec.structs.replace(now, versions={}))
    assert hidden.versions == {}
    write(source / "a", b"another")
    publish(repository, source, "second")
    second = repository.catalog()
    with repository.lock():
        repository.commit(msgspec.structs.replace(second, versions={**now.versions, **second.versions}))
    (source / "a").unlink()

    publish(repository, source, "third")

    assert current(repository, "second").manifest.packs != first
    assert current(repository, "third").manifest.packs == first


def test_an_index_damaged_in_the_middle_is_named_and_made_anew(
    repository: Repository, tmp_path: Path
) -> None:
    source = numbered_tree(tmp_path / "source", 500)
    first = publish(repository, source, "tree")
    index = repository.private / "contents.sqlite"
    with index.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (index.stat().st_size - 4096))

    with pytest.raises(RepositoryError, match=r"was damaged .* made anew"):
        publish(repository, source, "tree")

    assert publish(repository, source, "tree").info_hash == first.info_hash


def test_a_missing_manifest_is_named(repository: Repository, tmp_path: Path) -> None:
    write(tmp_path / "file", b"1")
    published = publish(repository, tmp_path / "file", "a")
    publish(repository, tmp_path / "file", "c")
    (repository.public / Kind.MANIFEST.url_path(published.info_hash)).unlink()
    (repository.private / "contents.sqlite").unlink()

    with pytest.raises(RepositoryError, match=published.info_hash.hex()):
        publish(repository, tmp_path / "file", "b")


def test_progress_goes_once_from_nothing_to_the_length_of_the_source(
    repository: Repository, tmp_path: Path
) -> None:
    source = numbered_tree(tmp_path / "source", 100)
    write(source / "large", random.Random(1).randbytes(5_000_000))
    (source / "another name").hardlink_to(source / "large")
    total = 100 * FILE_LENGTH + 5_000_000

    for change in ("none", "one", "half"):
        reports: list[Progress] = []
        publish(repository, source, "tree", progress=reports.append)

        done = [report.bytes_done for report in reports]
        assert done == sorted(set(done)), change
        assert (done[0], done[-1]) == (0, total), change
        assert 5 < len(done) < 12, change
        assert {report.bytes_total for report in reports} == {total}
        numbered_tree(source, 50, seed=ord(change[0]))


def test_what_killed_publications_left_is_removed_and_nothing_else(
    repository: Repository, tmp_path: Path
) -> None:
    write(tmp_path / "file", b"1")
    publish(repository, tmp_path / "file", "a")
    kept = set(repository.public.rglob("*"))
    for litter in (
        "packs/.4711.pack.new",
        "packs/.4711.3.pack.new",
        "packs/.ab.torrent.4711.new",
        "manifests/.4711.manifest.new",
        "metadata/.timestamp.json.4711.new",
        "targets/catalog/default/.ab.namespace.4711.new",
    ):
        (repository.public / litter).write_bytes(b"half")
    (repository.public / "packs/.htaccess").touch()

    publish(repository, tmp_path / "file", "a")

    left = set(repository.public.rglob(".*"))
    assert left == {repository.public / "packs/.htaccess"}
    assert kept <= set(repository.public.rglob("*"))


@pytest.mark.parametrize("fault", ["missing", "cut", "no metainfo"])
def test_packs_that_are_not_there_are_packed_anew_and_named(
    repository: Repository, tmp_path: Path, fault: str
) -> None:
    source = numbered_tree(tmp_path / "source", 20)
    first = publish(repository, source, "tree")
    (pack,), before = packs(repository), source.stat()
    whole = pack.read_bytes()
    write(source / "another", b"contents of the second pack")
    publish(repository, source, "tree")
    if fault == "missing":
        pack.unlink()
    elif fault == "cut":
        os.truncate(pack, len(whole) - 1)
    else:
        pack.with_name(pack.name.replace(".tar.zst", ".torrent")).unlink()
    said: list[str] = []
    careful = Repository(repository.directory, notice=said.append)
    (source / "another").unlink()
    os.utime(source, ns=(0, before.st_mtime_ns))

    again = publish(careful, source, "tree")

    (line,) = said
    assert str(pack) in line
    assert "restore it" in line
    assert again.bytes_packed == len(whole)
    assert_same(current(repository, "tree"), source)
    # All of it again makes the very same pack: the first revision is whole again too.
    assert again.info_hash == first.info_hash
    assert pack.read_bytes() == whole
    publish(careful, source, "tree")
    assert len(said) == 1


def test_only_what_missing_packs_held_is_packed_anew(repository: Repository, tmp_path: Path) -> None:
    source = numbered_tree(tmp_path / "source", 20)
    publish(repository, source, "tree")
    kept = packs(repository)
    write(source / "another", random.Random(7).randbytes(FILE_LENGTH))
    publish(repository, source, "tree")
    (lost,) = set(packs(repository)) - set(kept)
    lost.unlink()
    said: list[str] = []

    again = publish(Repository(repository.directory, notice=said.append), source, "tree")

    assert FILE_LENGTH < again.bytes_packed < 2 * FILE_LENGTH
    assert len(said) == 1
    assert_same(current(repository, "tree"), source)


def test_an_index_on_a_full_disk_is_one_error(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = numbered_tree(tmp_path / "source", 200)
    publish(repository, source, "tree")
    connect = content_index._connect

    def full(path: Path) -> sqlite3.Connection:
        """Open the index as on a disk with no page left."""
        database = connect(path)
        database.execute("PRAGMA max_page_count = 1")
        return database

    monkeypatch.setattr(content_index, "_connect", full)

    with pytest.raises(RepositoryError, match=r"contents\.sqlite: database or disk is full"):
        publish(repository, source, "tree too")

    monkeypatch.undo()
    assert publish(repository, source, "tree too").bytes_packed == 0


def test_what_the_publisher_should_know_is_on_standard_error(
    repository: Repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "file", b"1")
    publish(repository, tmp_path / "file", "a")
    (pack,) = packs(repository)
    pack.unlink()

    code = run(["publish", str(repository.directory), str(tmp_path / "file"), "b"])

    printed = capsys.readouterr()
    assert code == 0
    assert printed.out.startswith("b@1 ")
    assert printed.err.startswith(f"torrentfs: {pack} is missing: ")
    assert printed.err.count("\n") == 1
