"""This module tests archives as sources: the same tree comes out, and hostile ones give one clear error."""

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import assert_same, odd_tree, open_revision

from torrentfs.errors import PublishError
from torrentfs.repository.publisher import archive, publish
from torrentfs.repository.publisher.nodes import Node, walk
from torrentfs.repository.publisher.source import open_source
from torrentfs.repository.workshop import Repository


def tar_file(path: Path, *members: tarfile.TarInfo, data: bytes = b"") -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as target:
        for member in members:
            member.size = len(data) if member.isreg() else 0
            target.addfile(member, io.BytesIO(data) if member.isreg() else None)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


def names(path: Path) -> dict[bytes, Node]:
    source = open_source(path)
    source.close()
    return dict(walk(source.root))


def refusal(path: Path) -> str:
    with pytest.raises(PublishError) as caught:
        open_source(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_gnu_tar_of_a_tree_gives_the_tree(tmp_path: Path) -> None:
    source = odd_tree(tmp_path / "source")
    packed = tmp_path / "packed.tar.zst"
    command = [
        "tar",
        "--zstd",
        "--sparse",
        "--xattrs",
        "--format=pax",
        "-cf",
        str(packed),
        "-C",
        str(source),
        ".",
    ]
    subprocess.run(command, check=True, timeout=60)
    repository = Repository.create(tmp_path / "repository", "alice")

    publish(repository, packed, "odd/v1")

    revision = open_revision(repository.public, repository.catalog().versions["odd/v1"].current.ref)
    assert_same(revision, source)


def test_a_tree_and_its_tar_are_the_same_input(tmp_path: Path) -> None:
    source = odd_tree(tmp_path / "source")
    packed = tmp_path / "packed.tar"
    command = ["tar", "--sparse", "--xattrs", "--format=pax", "-cf", str(packed), "-C", str(source), "."]
    subprocess.run(command, check=True, timeout=60)

    hashes = {
        publish(Repository.create(tmp_path / f"repository{number}", "alice"), what, "odd").info_hash
        for number, what in enumerate((source, packed))
    }

    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        ("tar", bytes),
        ("tar.gz", gzip.compress),
        ("tgz", gzip.compress),
        ("tar.bz2", bz2.compress),
        ("tar.xz", lzma.compress),
        ("tar.zst", zstandard.compress),
    ],
)
def test_every_compression_is_read(tmp_path: Path, suffix: str, compress) -> None:
    plain = tar_file(tmp_path / "plain.tar", member("dir/file"), data=b"12345")
    packed = tmp_path / f"packed.{suffix}"
    packed.write_bytes(compress(plain.read_bytes()))

    found = names(packed)

    assert sorted(found) == [b"", b"dir", b"dir/file"]
    assert found[b"dir/file"].size == 5


def test_a_zip_keeps_modes_links_and_times(tmp_path: Path) -> None:
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        program = zipfile.ZipInfo("bin/run", (2020, 2, 3, 4, 5, 6))
        program.external_attr = 0o100755 << 16
        program.extra = struct.pack("<HHBi", 0x5455, 5, 1, 1_600_000_001)
        target.writestr(program, b"#!/bin/sh\n")
        link = zipfile.ZipInfo("bin/link", (2020, 2, 3, 4, 5, 6))
        link.external_attr = 0o120777 << 16
        target.writestr(link, b"run")

    found = names(packed)

    assert (found[b"bin/run"].mode, found[b"bin/run"].mtime_ns) == (0o100755, 1_600_000_001 * 10**9)
    assert (found[b"bin/link"].target, stat.S_ISLNK(found[b"bin/link"].mode)) == (b"run", True)


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up", "a/.."])
def test_a_name_that_leaves_the_package_is_refused(tmp_path: Path, name: str) -> None:
    assert "would leave" in refusal(tar_file(tmp_path / "a.tar", member(name)))


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up"])
def test_a_name_that_leaves_the_package_is_refused_in_zips(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as target:
        target.writestr(name, b"")

    assert "would leave" in refusal(tmp_path / "a.zip")


@pytest.mark.parametrize("second", ["a", "./a", ".//a/"])
def test_a_name_that_occurs_twice_is_refused(tmp_path: Path, second: str) -> None:
    assert "twice" in refusal(tar_file(tmp_path / "a.tar", member("a"), member(second)))


def test_nothing_is_written_through_a_symbolic_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    packed = tar_file(tmp_path / "a.tar", member("a", tarfile.SYMTYPE, str(outside)), member("a/b"))

    assert "no directory" in refusal(packed)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("target", ["b", "a", "../../etc/passwd", "/etc/passwd", "d"])
def test_a_hard_link_to_nothing_itself_outside_or_a_directory_is_refused(tmp_path: Path, target: str) -> None:
    packed = tar_file(
        tmp_path / "a.tar", member("d", tarfile.DIRTYPE), member("a", tarfile.LNKTYPE, target), member("b")
    )

    refusal(packed)


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"])
def test_devices_and_fifos_are_refused_by_name(tmp_path: Path, kind: bytes) -> None:
    packed = tar_file(tmp_path / "a.tar", member("odd one"))
    data = bytearray(packed.read_bytes())
    data[156:157] = kind
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    packed.write_bytes(data)
    assert "odd one" in refusal(packed)


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.zst", "zip"])
def test_a_bomb_is_refused(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "EXPANSION_FREE", 1024 * 1024)
    monkeypatch.setattr(archive, "EXPANSION_MAX", 10)
    plain = tar_file(tmp_path / "plain.tar", member("zeros"), data=bytes(20_000_000))
    packed = tmp_path / f"packed.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
            target.write(plain, "zeros")
    else:
        packed.write_bytes((gzip if suffix == "tar.gz" else zstandard).compress(plain.read_bytes()))

    assert "expands to more" in refusal(packed)


def test_an_absurdly_long_header_is_refused_without_reading_it(tmp_path: Path) -> None:
    packed = tar_file(tmp_path / "a.tar", member("a"))
    header = bytearray(packed.read_bytes()[:512])
    header[156:157] = b"x"
    header[124:136] = b"77777777777\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    packed.write_bytes(bytes(header) + packed.read_bytes())

    assert "header" in refusal(packed)


def test_a_chain_of_headers_is_refused(tmp_path: Path) -> None:
    packed = tmp_path / "a.tar"
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 1
    packed.write_bytes((long_name.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 20_000)

    refusal(packed)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst", "zip"])
@pytest.mark.parametrize("data", [b"", b"\0", b"not an archive" * 100])
def test_what_is_no_archive_is_refused(tmp_path: Path, suffix: str, data: bytes) -> None:
    packed = tmp_path / f"a.{suffix}"
    packed.write_bytes(data)

    refusal(packed)


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    packed = tar_file(tmp_path / "a.tar", member("a"), data=os.urandom(5000))
    packed.write_bytes(packed.read_bytes()[:3000])

    assert "damaged" in refusal(packed)


COMPRESSIONS = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
    "tar.zst": zstandard.compress,
}


def many(path: Path, count: int = 300) -> bytes:
    """Return a tar of empty files."""
    return tar_file(path, *(member(f"dir/{number}") for number in range(count))).read_bytes()


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_an_archive_that_is_cut_anywhere_is_refused(tmp_path: Path, suffix: str) -> None:
    whole = COMPRESSIONS[suffix](many(tmp_path / "plain.tar"))
    path = tmp_path / f"a.{suffix}"
    end = 300 * 512 if suffix == "tar" else len(whole) - 1  # half of what ends a tar is enough
    for length in (*range(1, 100, 9), 700, 1024, end // 2, end - 512, end - 100, end - 3, end):
        path.write_bytes(whole[: min(length, end)])

        assert "damaged" in refusal(path), length


def test_a_tar_with_one_block_of_zeros_is_whole(tmp_path: Path) -> None:
    plain = many(tmp_path / "plain.tar")
    path = tmp_path / "a.tar"
    path.write_bytes(plain[: 301 * 512])

    assert len(names(path)) == 302


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    plain = bytearray(many(tmp_path / "plain.tar"))
    plain[10 * 512 + 20] ^= 1
    path = tmp_path / "a.tar"
    path.write_bytes(plain)

    assert "header at byte 5120" in refusal(path)


def test_what_follows_the_end_of_a_tar_is_not_ignored(tmp_path: Path) -> None:
    plain = many(tmp_path / "plain.tar")
    path = tmp_path / "a.tar"
    path.write_bytes(plain + plain)

    assert "something follows" in refusal(path)


def test_frames_of_zstd_are_all_read_and_must_be_whole(tmp_path: Path) -> None:
    plain = many(tmp_path / "plain.tar")
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    first, second = compressor.compress(plain[:70_000]), compressor.compress(plain[70_000:])
    skippable = struct.pack("<II", 0x184D2A5E, 100) + os.urandom(100)
    path = tmp_path / "a.tar.zst"

    path.write_bytes(first + skippable + second + skippable)
    assert len(names(path)) == 302
    for cut in (1, 4, 5, len(second) // 2, len(second) - 10):
        path.write_bytes(first + second[:-cut])
        assert refusal(path).endswith("damaged archive: it ends early"), cut
    path.write_bytes(first + second + b"garbage, not a frame")
    assert f"no zstd frame at byte {len(first + second)}" in refusal(path)
    path.write_bytes(first + second + skippable[:50])
    assert "ends early" in refusal(path)
    path.write_bytes(first + second[:-1] + b"?")
    assert "damaged" in refusal(path)


def test_frames_of_zstd_without_size_or_with_rle_blocks_are_whole(tmp_path: Path) -> None:
    plain = tar_file(tmp_path / "plain.tar", member("zeros"), data=bytes(5_000_000)).read_bytes()
    stream = zstandard.ZstdCompressor().compressobj()
    path = tmp_path / "a.tar.zst"
    path.write_bytes(stream.compress(plain) + stream.flush())

    assert names(path)[b"zeros"].size == 5_000_000


def test_streams_of_xz_are_all_read_between_padding(tmp_path: Path) -> None:
    plain = many(tmp_path / "plain.tar")
    path = tmp_path / "a.tar.xz"
    first, second = lzma.compress(plain[:70_000]), lzma.compress(plain[70_000:])
    path.write_bytes(first + bytes(200_000) + second + bytes(4))
    assert len(names(path)) == 302
    path.write_bytes(first + second + b"garbage")
    assert "damaged" in refusal(path)


def test_xz_and_zstd_that_ask_for_much_memory_are_refused(tmp_path: Path) -> None:
    plain = many(tmp_path / "plain.tar")
    greedy = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 512 * 1024 * 1024}]
    (tmp_path / "a.tar.xz").write_bytes(lzma.compress(plain, filters=greedy))
    stream = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=29)
    ).compressobj()
    (tmp_path / "a.tar.zst").write_bytes(stream.compress(plain) + stream.flush())

    assert "emory" in refusal(tmp_path / "a.tar.xz")
    assert "emory" in refusal(tmp_path / "a.tar.zst")


def test_times_of_archives_have_the_limit_of_manifests(tmp_path: Path) -> None:
    for name, text, taken in (
        ("last", "9223372036.854775807", True),
        ("next", "9223372036.854775808", False),
        ("first", "-9223372036.854775808", True),
        ("absurd", "1e999999", False),
    ):
        late = member("file")
        late.pax_headers = {"mtime": text}
        path = tar_file(tmp_path / f"{name}.tar", late)
        if taken:
            assert abs(names(path)[b"file"].mtime_ns) >= (1 << 63) - 1
        else:
            assert "absurd time" in refusal(path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_archive_gives_a_tree_or_one_error(tmp_path: Path, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from(["tar", "zip"]))
    path = tmp_path / f"a.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
            target.writestr("dir/a", b"12345" * 50)
            target.writestr("dir/b", b"")
    else:
        links = member("dir/l", tarfile.SYMTYPE, "a"), member("h", tarfile.LNKTYPE, "dir/a")
        tar_file(path, member("dir/" + "x" * 150), member("dir/a"), *links, data=b"12345")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)

    try:
        source = open_source(path)
    except PublishError as error:
        assert "\n" not in str(error)
    else:
        source.close()


def with_xattrs(path: Path, *names: str) -> Path:
    """Write a tar of one file with empty attributes."""
    file = member("file")
    file.pax_headers = {f"SCHILY.xattr.user.{name}": "" for name in names}
    return tar_file(path, file, data=b"abc")


def test_attributes_that_no_entry_can_hold_are_refused(tmp_path: Path) -> None:
    many = [f"{number:x}" for number in range(5500)]

    assert "extended attributes" in refusal(with_xattrs(tmp_path / "many.tar", *many))
    assert "an extended attribute twice" in refusal(with_xattrs(tmp_path / "twice.tar", "a%", "a%25"))
    assert len(names(with_xattrs(tmp_path / "fine.tar", *many[:2000]))[b"file"].xattrs) == 2000
